package redistest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Run(m)) }

func dialTo(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(c, line+"\r\n"); err != nil {
		t.Fatal(err)
	}
}

func wantLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read ended with %v, want a reset", err)
	}
}

// wantRefused checks that a new connection is reset. The reset may arrive so
// early that the dial reports it.
func wantRefused(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("a new connection ended with %v, want a reset", err)
	}
}

// wantSilence checks that nothing arrives for a while, which takes that long.
func wantSilence(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v, want silence", n, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
}

func TestServerAnswersInEveryReplyForm(t *testing.T) {
	s := Start(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"SET", "a", "one\r\ntwo"}, "OK"},
		{[]string{"GET", "a"}, "one\r\ntwo"},
		{[]string{"GET", "b"}, "(nil)"},
		{[]string{"INCR", "n"}, "1"},
		{[]string{"MGET", "n", "b"}, "1\n(nil)"},
		{[]string{"EVAL", "return {1,{2,'x'}}", "0"}, "1\n2\nx"},
	} {
		if got := s.MustDo(c.args...); got != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
	_, err := s.Do("INCR", "a")
	var refused ReplyError
	if !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), "ERR value is not") {
		t.Errorf("INCR of a text: %v", err)
	}
}

func TestServerAuthenticatesByItself(t *testing.T) {
	s := Start(t, "--requirepass", "secret")
	if got := s.MustDo("PING"); got != "PONG" {
		t.Error(got)
	}
	if _, err := Do(s.Addr(), "PING"); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
		t.Errorf("without a password: %v", err)
	}
}

func TestServerComesBackOnItsPortAfterKill(t *testing.T) {
	s := Start(t)
	addr, pid := s.Addr(), s.Pid()
	s.Kill()
	if _, err := s.Do("PING"); s.Running() || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("running %v, PING: %v", s.Running(), err)
	}
	s.Restart("--requirepass", "late")
	if s.MustDo("PING") != "PONG" || s.Addr() != addr || s.Pid() == pid || !s.Running() {
		t.Fatal("the restarted server is not a new process on the old address")
	}
	s.Restart()
	if _, err := Do(s.Addr(), "PING"); err != nil {
		t.Fatalf("arguments of one restart outlive it: %v", err)
	}
}

func TestServerKeepsSavedDataOnRestartButNotOnRestartEmpty(t *testing.T) {
	s := Start(t)
	s.MustDo("SET", "k", "v")
	s.MustDo("SAVE")
	s.Restart()
	if got := s.MustDo("GET", "k"); got != "v" {
		t.Fatalf("after Restart: %q", got)
	}
	s.RestartEmpty()
	if got := s.MustDo("GET", "k"); got != "(nil)" {
		t.Fatalf("after RestartEmpty: %q", got)
	}
}

func TestPausedServerAnswersOnlyAfterResume(t *testing.T) {
	s := Start(t)
	c := dialTo(t, s.Addr())
	s.Pause()
	send(t, c, "PING")
	wantSilence(t, c, 100*time.Millisecond)
	s.Resume()
	wantLine(t, bufio.NewReader(c), "+PONG")
}

func TestPausedServerCanBeKilledAndRestarted(t *testing.T) {
	s := Start(t)
	s.Pause()
	if !s.Running() {
		t.Error("a paused server counts as not running")
	}
	s.Restart()
	s.MustDo("PING")
	s.Pause()
	s.Kill()
	if s.Running() {
		t.Error("still running after Kill")
	}
}

func TestClientsLeavesOutTheAskingConnection(t *testing.T) {
	s := Start(t)
	if got := s.Clients(); len(got) != 0 {
		t.Fatalf("clients of an unused server: %q", got)
	}
	c := dialTo(t, s.Addr())
	send(t, c, "CLIENT SETNAME me")
	wantLine(t, bufio.NewReader(c), "+OK")
	if got := s.Clients(); len(got) != 1 || !strings.Contains(got[0], "name=me") {
		t.Fatalf("clients: %q", got)
	}
}

// TestCrashedBinaryLeavesNoServer runs itself as another process that starts a
// server, tells where, and is killed.
func TestCrashedBinaryLeavesNoServer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only linux kills children with their parent")
	}
	if os.Getenv("REDISTEST_CRASH") == "1" {
		os.Stdout.WriteString("server at " + Start(t).Addr() + "\n")
		select {}
	}
	need(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashedBinaryLeavesNoServer$")
	cmd.Env = append(os.Environ(), "REDISTEST_CRASH=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "server at ")
	_, pingErr := Do(addr, "PING")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !ok || pingErr != nil {
		t.Fatalf("the other process said %q, %v, PING: %v", line, readErr, pingErr)
	}
	WaitFor(t, time.Minute, "the orphaned server to go away", func() bool {
		_, err := Do(addr, "PING")
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

func TestProxyPassesAndCounts(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	c := dialTo(t, p.Addr())
	send(t, c, "PING")
	wantLine(t, bufio.NewReader(c), "+PONG")
	if p.Accepted() != 1 || p.Active() != 1 || len(p.AcceptTimes()) != 1 {
		t.Errorf("accepted %d, active %d, times %d", p.Accepted(), p.Active(), len(p.AcceptTimes()))
	}
	c.Close()
	WaitFor(t, time.Minute, "no active connection", func() bool { return p.Active() == 0 })
}

func TestProxyResetsNewConnectionsWhenItRefuses(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	old := dialTo(t, p.Addr())
	send(t, old, "PING")
	r := bufio.NewReader(old)
	wantLine(t, r, "+PONG")
	p.SetMode(Refuse)
	wantRefused(t, p.Addr())
	send(t, old, "PING")
	wantLine(t, r, "+PONG")
	if p.Accepted() != 2 {
		t.Errorf("accepted %d", p.Accepted())
	}
}

func TestProxyThatCutsResetsOldAndNewConnections(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	old := dialTo(t, p.Addr())
	send(t, old, "PING")
	wantLine(t, bufio.NewReader(old), "+PONG")
	p.SetMode(Cut)
	if p.Active() != 0 {
		t.Errorf("active %d", p.Active())
	}
	wantReset(t, old)
	wantRefused(t, p.Addr())
	p.SetMode(Pass)
	if got, err := Do(p.Addr(), "PING"); got != "PONG" {
		t.Errorf("after Pass: %q, %v", got, err)
	}
}

func TestProxyKeepsAcceptingAfterCutAll(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	c := dialTo(t, p.Addr())
	send(t, c, "PING")
	wantLine(t, bufio.NewReader(c), "+PONG")
	p.CutAll()
	wantReset(t, c)
	if got, err := Do(p.Addr(), "PING"); got != "PONG" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestProxyThatHangsDeliversOnceItPasses(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr())
	old := dialTo(t, p.Addr())
	send(t, old, "PING")
	oldR := bufio.NewReader(old)
	wantLine(t, oldR, "+PONG")
	p.SetMode(Hang)
	fresh := dialTo(t, p.Addr())
	send(t, old, "INCR n")
	send(t, fresh, "PING")
	wantSilence(t, old, 100*time.Millisecond)
	wantSilence(t, fresh, 10*time.Millisecond)
	if got := s.MustDo("GET", "n"); got != "(nil)" {
		t.Errorf("the server got the command: n is %s", got)
	}
	p.SetMode(Pass)
	wantLine(t, oldR, ":1")
	wantLine(t, bufio.NewReader(fresh), "+PONG")
}

func TestProxyDeliversLateWhatAGoneClientHasSent(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr())
	p.SetMode(Hang)
	c := dialTo(t, p.Addr())
	send(t, c, "SET late yes")
	c.Close()
	WaitFor(t, time.Minute, "the client to be gone", func() bool { return p.Accepted() == 1 && p.Active() == 0 })
	p.SetMode(Pass)
	WaitFor(t, time.Minute, "the late write", func() bool { return s.MustDo("GET", "late") == "yes" })
}

func TestProxyHoldsBackRepliesThatArriveWhileItHangs(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr())
	c := dialTo(t, p.Addr())
	send(t, c, "BLPOP q 0")
	WaitFor(t, time.Minute, "the blocked client", func() bool {
		return strings.Contains(s.MustDo("INFO", "clients"), "blocked_clients:1")
	})
	p.SetMode(Hang)
	s.MustDo("RPUSH", "q", "x")
	wantSilence(t, c, 50*time.Millisecond)
	p.SetMode(Pass)
	wantLine(t, bufio.NewReader(c), "*2")
}

func TestProxyDelaysPipelinedRepliesTogether(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	const d, n = 100 * time.Millisecond, 10
	p.SetLatency(d)
	c := dialTo(t, p.Addr())
	r := bufio.NewReader(c)
	began := time.Now()
	for range n {
		send(t, c, "INCR n")
	}
	for i := range n {
		wantLine(t, r, []string{":1", ":2", ":3", ":4", ":5", ":6", ":7", ":8", ":9", ":10"}[i])
	}
	if took := time.Since(began); took < d || took > n*d/2 {
		t.Errorf("%d replies took %v with a latency of %v", n, took, d)
	}
}

func TestProxyCutsAReplyAfterTheGivenBytes(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	c := dialTo(t, p.Addr())
	p.CutReplyAfter(3)
	send(t, c, "PING")
	got, err := io.ReadAll(c)
	if string(got) != "+PO" || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %q, %v", got, err)
	}
	if got, err := Do(p.Addr(), "PING"); got != "PONG" {
		t.Errorf("the next connection: %q, %v", got, err)
	}
	p.CutReplyAfter(0)
	if got, err := Do(p.Addr(), "PING"); err == nil {
		t.Errorf("with no bytes left: %q", got)
	}
}

func TestProxySwallowsMatchingChunks(t *testing.T) {
	p := NewProxy(t, Start(t).Addr())
	p.Swallow(func(b []byte) bool { return strings.Contains(string(b), "PONG") })
	c := dialTo(t, p.Addr())
	send(t, c, "PING")
	WaitFor(t, time.Minute, "a swallowed chunk", func() bool { return p.Swallowed() == 1 })
	p.Swallow(nil)
	send(t, c, "ECHO still")
	r := bufio.NewReader(c)
	wantLine(t, r, "$5")
	wantLine(t, r, "still")
}

func TestProxyResetsWhenTheBackendRefusesAndFollowsSetBackend(t *testing.T) {
	p := NewProxy(t, FreeAddr(t))
	wantRefused(t, p.Addr())
	p.SetBackend(Start(t).Addr())
	if got, err := Do(p.Addr(), "PING"); got != "PONG" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestProxyPassesOnThatTheServerIsGone(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr())
	c := dialTo(t, p.Addr())
	send(t, c, "QUIT")
	if got, err := io.ReadAll(c); string(got) != "+OK\r\n" || err != nil {
		t.Errorf("after QUIT: %q, %v", got, err)
	}
	c = dialTo(t, p.Addr())
	send(t, c, "PING")
	r := bufio.NewReader(c)
	wantLine(t, r, "+PONG")
	s.Kill()
	if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Kill: %v", err)
	}
}

func TestProxyCloseLeavesNoGoroutines(t *testing.T) {
	s := Start(t)
	base := runtime.NumGoroutine()
	p := NewProxy(t, s.Addr())
	c := dialTo(t, p.Addr())
	send(t, c, "PING")
	wantLine(t, bufio.NewReader(c), "+PONG")
	p.SetMode(Hang)
	send(t, c, "PING")
	p.Close()
	p.Close()
	GoroutinesBackTo(t, base, 0)
}

func TestBlackholeAcceptsAndNeverAnswers(t *testing.T) {
	l := Blackhole(t)
	c := dialTo(t, l.Addr())
	send(t, c, "PING")
	wantSilence(t, c, 50*time.Millisecond)
	if l.Accepted() != 1 || len(l.AcceptTimes()) != 1 {
		t.Errorf("accepted %d, times %d", l.Accepted(), len(l.AcceptTimes()))
	}
}

func TestHTTPAnswersLikeAWebServerAndCloses(t *testing.T) {
	c := dialTo(t, HTTP(t).Addr())
	send(t, c, "PING")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
}

func TestGarbageAnswersPerConnection(t *testing.T) {
	l := Garbage(t, func(n int) []byte { return []byte{'A' + byte(n), '\n'} })
	for _, want := range []string{"A", "B"} {
		c := dialTo(t, l.Addr())
		send(t, c, "PING")
		wantLine(t, bufio.NewReader(c), want)
		wantSilence(t, c, 10*time.Millisecond)
	}
}

func TestFreeAddrRefuses(t *testing.T) {
	if _, err := Do(FreeAddr(t), "PING"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("%v", err)
	}
}

func TestRateOKKnowsTheLaw(t *testing.T) {
	from := time.Now()
	at := func(secs ...float64) []time.Time {
		var out []time.Time
		for _, s := range secs {
			out = append(out, from.Add(time.Duration(s*float64(time.Second))))
		}
		return out
	}
	for _, c := range []struct {
		name  string
		times []time.Time
		ok    bool
	}{
		{"none", nil, true},
		{"earlier ones do not count", at(-3, -2, -1, -.5, -.4, -.3, .1), true},
		{"five in the first second", at(0, .1, .2, .3, .9), true},
		{"six in the first second", at(0, .1, .2, .3, .4, .9), false},
		{"one a second", at(.5, 1, 2, 3, 4, 5, 6), true},
		{"two a second", at(.5, 1, 1.5, 2, 2.5, 3, 3.5, 4), false},
	} {
		if err := RateOK(c.times, from); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := RateOKUntil(at(1, 1.1, 1.2, 1.3), from, from.Add(6*time.Second)); err != nil {
		t.Errorf("four attempts in five seconds: %v", err)
	}
}

func TestDialCounterCountsAttemptsAndOpenConnections(t *testing.T) {
	var d DialCounter
	mute := Blackhole(t).Addr()
	c, err := d.Dial(t.Context(), mute, &net.Dialer{}, nil)
	if err != nil || d.Open() != 1 {
		t.Fatalf("open %d, %v", d.Open(), err)
	}
	c.Close()
	c.Close()
	if _, err := d.Dial(t.Context(), FreeAddr(t), nil, nil); err == nil {
		t.Error("a dial to where nothing listens went through")
	}
	if n := len(d.TimesTo(mute)); n != 1 {
		t.Errorf("%d attempts to the one address", n)
	}
	if d.Attempts() != 2 || len(d.Times()) != 2 || d.Open() != 0 {
		t.Errorf("attempts %d, times %d, open %d", d.Attempts(), len(d.Times()), d.Open())
	}
}

func TestSlotFollowsHashTags(t *testing.T) {
	for key, want := range map[string]int{
		"foo": 12182, "bar": 5061, "{foo}bar": 12182, "x{foo}{bar}": 12182,
		"": 0, "123456789": 0x31c3,
	} {
		if got := Slot(key); got != want {
			t.Errorf("slot of %q: %d, want %d", key, got, want)
		}
	}
	if Slot("{}foo") == Slot("") {
		t.Error("an empty hash tag counts")
	}
}

func TestSentinelFailsOverWhenTheMasterDies(t *testing.T) {
	r := StartSentinel(t, 1)
	first := r.Master()
	if first != r.Servers()[0] || len(r.Addrs()) != 3 || len(r.Sentinels()) != 3 {
		t.Fatalf("master %s of %v, sentinels %v", first.Addr(), r.Servers(), r.Addrs())
	}
	first.MustDo("SET", "k", "v")
	first.AwaitReplicas(1)
	first.Kill()
	WaitFor(t, time.Minute, "a new master", func() bool { return r.Master() != first })
	if got := r.Master().MustDo("GET", "k"); got != "v" {
		t.Errorf("the new master has %q", got)
	}
}

func TestSentinelSurvivesItsOwnRestart(t *testing.T) {
	r := StartSentinel(t, 0)
	s := r.Sentinels()[0]
	s.Restart()
	if r.Master() != r.Servers()[0] {
		t.Error("the restarted sentinel knows another master")
	}
}

func TestClusterServesKeysWhereNodeForSays(t *testing.T) {
	c := StartCluster(t, 3, 0)
	for _, key := range []string{"a", "b", "c", "{a}d", "foo"} {
		if got := c.NodeFor(key).MustDo("SET", key, "v"); got != "OK" {
			t.Errorf("%s: %s", key, got)
		}
		if got, _ := c.Nodes()[0].Do("CLUSTER", "KEYSLOT", key); got != strconv.Itoa(Slot(key)) {
			t.Errorf("slot of %s: %d, the server says %s", key, Slot(key), got)
		}
	}
	if len(c.Addrs()) != 3 {
		t.Error(c.Addrs())
	}
}

func TestClusterMovesASlotWithItsKeys(t *testing.T) {
	c := StartCluster(t, 2, 0)
	from := c.NodeFor("{m}")
	to := c.Nodes()[0]
	if to == from {
		to = c.Nodes()[1]
	}
	for i := range 250 {
		from.MustDo("SET", "{m}"+strconv.Itoa(i), "v")
	}
	c.MoveSlot(Slot("{m}"), to)
	if got := c.NodeFor("{m}"); got != to {
		t.Fatalf("the slot is with %s", got.Addr())
	}
	if got := to.MustDo("GET", "{m}249"); got != "v" {
		t.Errorf("the new node has %q", got)
	}
	if _, err := from.Do("GET", "{m}0"); err == nil || !strings.HasPrefix(err.Error(), "MOVED ") {
		t.Errorf("the old node: %v", err)
	}
}

func TestClusterReplicaTakesOverWhenItsMasterDies(t *testing.T) {
	c := StartCluster(t, 3, 1)
	first := c.NodeFor("k")
	first.MustDo("SET", "k", "v")
	first.AwaitReplicas(1)
	first.Kill()
	WaitFor(t, time.Minute, "the replica to serve the key", func() bool {
		for _, s := range c.Nodes()[3:] {
			if got, err := s.Do("GET", "k"); err == nil && got == "v" {
				return c.NodeFor("k") == s
			}
		}
		return false
	})
}

func TestClusterReplicaTakesOverWhenItIsTold(t *testing.T) {
	c := StartCluster(t, 3, 1)
	first := c.NodeFor("k")
	first.MustDo("SET", "k", "v")
	for i, master := range c.Nodes()[:3] {
		if master != first {
			continue
		}
		c.Failover(c.Nodes()[3+i])
		if got := c.NodeFor("k"); got != c.Nodes()[3+i] {
			t.Errorf("%s serves the key", got.Addr())
		}
	}
	if got := c.NodeFor("k").MustDo("GET", "k"); got != "v" {
		t.Errorf("the new master has %q", got)
	}
	if out := first.MustDo("ROLE"); !strings.HasPrefix(out, "slave\n") {
		t.Errorf("the old master's role: %q", out)
	}
	c.AwaitServed()
}

func TestClusterAsksWhileASlotIsOnTheMove(t *testing.T) {
	c := StartCluster(t, 2, 0)
	from := c.NodeFor("{m}")
	to := c.Nodes()[0]
	if to == from {
		to = c.Nodes()[1]
	}
	for _, key := range []string{"{m}moved", "{m}here"} {
		from.MustDo("SET", key, "v")
	}
	m := c.BeginMove(Slot("{m}"), to)
	m.Keys("{m}moved")
	ask := "ASK " + strconv.Itoa(Slot("{m}")) + " " + to.Addr()
	for _, key := range []string{"{m}moved", "{m}absent"} {
		if _, err := from.Do("GET", key); err == nil || err.Error() != ask {
			t.Errorf("%s at the old owner: %v", key, err)
		}
	}
	if got, err := to.Asking("GET", "{m}moved"); err != nil || got != "v" {
		t.Errorf("at the new owner: %q, %v", got, err)
	}
	if got := from.MustDo("GET", "{m}here"); got != "v" {
		t.Errorf("a key that was not moved yet: %q", got)
	}
	m.AllKeys()
	m.End()
	if got := to.MustDo("GET", "{m}here"); got != "v" {
		t.Errorf("after the move: %q", got)
	}
	if c.BeginMove(Slot("{m}"), to) != nil {
		t.Error("a slot moves to where it is")
	}
}

func TestClusterEvictsAMasterWithAllItsKeys(t *testing.T) {
	c := StartCluster(t, 3, 0)
	from, to := c.Nodes()[0], c.Nodes()[1]
	var keys []string
	for i := range 200 {
		if key := "k" + strconv.Itoa(i); c.NodeFor(key) == from {
			from.MustDo("SET", key, "v")
			keys = append(keys, key)
		}
	}
	c.Evict(from, to)
	if got := from.MustDo("DBSIZE"); got != "0" || len(keys) == 0 {
		t.Errorf("%s of %d keys were left behind", got, len(keys))
	}
	c.AwaitServed()
	for _, key := range keys {
		// On a busy machine the nodes lose each other for a moment, and say CLUSTERDOWN.
		var got string
		WaitFor(t, time.Minute, "an answer", func() (ok bool) {
			v, err := to.Do("GET", key)
			got = v
			return err == nil
		})
		if got != "v" {
			t.Errorf("%s: %q", key, got)
		}
	}
}

func TestClusterThatWantsFullCoverageIsDownWithoutAMaster(t *testing.T) {
	c := StartCluster(t, 3, 0)
	c.Configure("cluster-require-full-coverage", "yes")
	dead := c.NodeFor("k")
	dead.Kill()
	if got := c.Owner("k"); got != nil {
		t.Errorf("%s serves the key of a master that is gone", got.Addr())
	}
	other := c.Nodes()[0]
	if other == dead {
		other = c.Nodes()[1]
	}
	WaitFor(t, time.Minute, "CLUSTERDOWN", func() bool {
		_, err := other.Do("GET", "k")
		return err != nil && strings.HasPrefix(err.Error(), "CLUSTERDOWN")
	})
	dead.Restart()
	c.AwaitServed()
}

func TestSentinelTakesTheOldMasterBackAsReplica(t *testing.T) {
	r := StartSentinel(t, 2)
	first := r.Master()
	first.Pause()
	WaitFor(t, time.Minute, "a new master", func() bool { return r.Master() != first })
	first.Restart()
	WaitFor(t, time.Minute, "the old master to follow the new one", func() bool {
		out, err := first.Do("ROLE")
		return err == nil && strings.HasPrefix(out, "slave\n127.0.0.1\n"+strconv.Itoa(r.Master().Port())+"\nconnected")
	})
}

func TestSpawnerFunctionNamesTheGoroutineThatStays(t *testing.T) {
	buf := make([]byte, 1<<20)
	if stacks := string(buf[:runtime.Stack(buf, true)]); !strings.Contains(stacks, "\n"+SpawnerFunction+"(") {
		t.Errorf("no goroutine runs %s:\n%s", SpawnerFunction, stacks)
	}
}

func TestSentinelThatWasHeldUpSoonWorksAgain(t *testing.T) {
	s := StartSentinel(t, 0).Sentinels()[0]
	inTilt := func() bool { return strings.Contains(s.MustDo("INFO", "sentinel"), "sentinel_tilt:1") }
	s.Pause()
	<-time.After(3 * time.Second)
	s.Resume()
	WaitFor(t, time.Minute, "the sentinel to notice", inTilt)
	WaitFor(t, time.Minute, "the sentinel to work again", func() bool { return !inTilt() })
}

package wal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The test binary runs itself as the process that is killed.
const (
	victimDir    = "HOLDFAST_WAL_VICTIM_DIR"
	victimPolicy = "HOLDFAST_WAL_VICTIM_POLICY"
	victimFirst  = "HOLDFAST_WAL_VICTIM_FIRST"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		if err := victim(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	writers       = 4
	keysPerWriter = 8
)

// nth is what a writer does in its n-th step: to which key, what it holds then, or
// that it holds nothing.
func nth(writer, n int) (key, payload string, live bool) {
	key = fmt.Sprintf("%d/%d", writer, n%keysPerWriter)
	if n/keysPerWriter%4 == 3 {
		return key, "", false
	}
	return key, fmt.Sprintf("%d %s", n, strings.Repeat("x", n*7%300)), true
}

// victim writes until it is killed. It says what was acknowledged, and nothing else.
func victim(dir string) error {
	policy, err := strconv.Atoi(os.Getenv(victimPolicy))
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(os.Getenv(victimFirst))
	if err != nil {
		return err
	}
	type value struct {
		seq     uint64
		payload string
	}
	var memory struct {
		sync.Mutex
		live map[string]value
	}
	memory.live = make(map[string]value)
	l, _, err := Open(dir, Options{Sync: SyncPolicy(policy), SegmentBytes: 8 << 10}, func(key string, payload []byte) {
		memory.live[key] = value{0, string(payload)}
	})
	if err != nil {
		return err
	}
	fail, compact := make(chan error), make(chan struct{}, 1)
	for writer := range writers {
		go func() {
			for n := first; ; n++ {
				key, payload, live := nth(writer, n)
				memory.Lock()
				if live {
					memory.live[key] = value{uint64(n), payload}
				} else {
					delete(memory.live, key)
				}
				memory.Unlock()
				var err error
				if live {
					err = l.Put(key, uint64(n), []byte(payload))
				} else {
					err = l.Drop(key, uint64(n))
				}
				if err == nil {
					_, err = fmt.Fprintf(os.Stdout, "%d %d\n", writer, n)
				}
				if err != nil {
					fail <- err
				}
				if n%16 == 0 {
					select {
					case compact <- struct{}{}:
					default:
					}
				}
			}
		}()
	}
	go func() {
		for range compact {
			err := l.Compact(func(yield func(string, uint64, []byte) bool) {
				for writer := range writers {
					for k := range keysPerWriter {
						key := fmt.Sprintf("%d/%d", writer, k)
						memory.Lock()
						v, ok := memory.live[key]
						memory.Unlock()
						if ok && !yield(key, v.seq, []byte(v.payload)) {
							return
						}
					}
				}
			})
			if err != nil {
				fail <- err
			}
		}
	}()
	return <-fail
}

func TestAProcessThatIsKilledLosesNothingThatItAcknowledged(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		policy SyncPolicy
		kills  int
	}{{SyncAlways, 100}, {SyncAlways, 100}, {SyncNone, 40}} { // side by side, for speed
		policy, kills := tt.policy, tt.kills
		if testing.Short() {
			kills = 10
		}
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			rng := newRand(uint64(i))
			held := make(map[string]string)
			acknowledged, torn := 0, 0
			for kill := range kills {
				first := kill * 1_000_000
				cmd := exec.Command(self)
				cmd.Env = append(os.Environ(), victimDir+"="+dir,
					fmt.Sprintf("%s=%d", victimPolicy, policy), fmt.Sprintf("%s=%d", victimFirst, first))
				last := run(t, cmd, rng.IntN(60))
				report := check(t, dir, policy, first, last, held)
				for _, n := range last {
					acknowledged += max(0, n-first+1)
				}
				if report.TornFile != "" {
					torn++
				}
			}
			t.Logf("%d records acknowledged in %d lives, %d torn", acknowledged, kills, torn)
			if acknowledged < kills {
				t.Errorf("only %d records were acknowledged", acknowledged)
			}
		})
	}
}

// run starts the victim, kills it when it has said so many lines, and returns the
// last step that each writer was told is kept, or -1.
func run(t *testing.T, cmd *exec.Cmd, lines int) (last [writers]int) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for w := range last {
		last[w] = -1
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
		}
	}
	defer kill()
	if lines == 0 {
		kill() // at its very beginning
	}
	for in := bufio.NewScanner(out); in.Scan(); {
		var w, n int
		if _, err := fmt.Sscan(in.Text(), &w, &n); err != nil {
			t.Fatalf("it said %q", in.Text())
		}
		last[w] = n
		if lines--; lines == 0 {
			kill()
		}
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("it ended by itself: %s", stderr.String())
	}
	return last
}

// check opens what the victim left behind. Each key holds what was acknowledged
// last, or what was written after that and not acknowledged any more. held is
// brought up to date.
func check(t *testing.T, dir string, policy SyncPolicy, first int, last [writers]int, held map[string]string) Report {
	t.Helper()
	got := make(map[string]string)
	l, report, err := Open(dir, Options{Sync: policy}, func(key string, payload []byte) { got[key] = string(payload) })
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if len(report.Damage) > 0 || report.Doubt != "" {
		t.Fatal(report)
	}
	after := func(payload string, live bool) string {
		if !live {
			return absent
		}
		return payload
	}
	for w, n := range last {
		from := max(n-keysPerWriter+1, first)
		for k := range keysPerWriter {
			key := fmt.Sprintf("%d/%d", w, k)
			may := []string{absent}
			if payload, ok := held[key]; ok {
				may[0] = payload
			}
			for step := from; step <= n; step++ {
				if of, payload, live := nth(w, step); of == key {
					may[0] = after(payload, live)
				}
			}
			if of, payload, live := nth(w, max(n+1, first)); of == key {
				may = append(may, after(payload, live)) // was under way
			}
			payload, live := got[key]
			if s := after(payload, live); !slices.Contains(may, s) {
				t.Fatalf("%s holds %.20q, and may hold %.20q (%v)", key, s, may, report)
			}
		}
	}
	clear(held)
	for key, payload := range got {
		held[key] = payload
	}
	return report
}

func TestTheErrorNamesTheProcessThatHasTheDirectory(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), victimDir+"="+dir, victimPolicy+"=0", victimFirst+"=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = bufio.NewReader(out).ReadString('\n') // it has opened the directory
	if err == nil {
		_, _, err = Open(dir, Options{}, nil)
	}
	var inUse *InUse
	if !errors.As(err, &inUse) || inUse.PID != cmd.Process.Pid {
		t.Errorf("%v; the process is %d", err, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatalf("after its death: %v", err)
	}
	mustClose(t, l)
}

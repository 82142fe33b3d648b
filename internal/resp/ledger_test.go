package resp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// request is one as rueidis writes it.
func request(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

func confirmation(kind, channel string) string {
	return fmt.Sprintf(">3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n", len(kind), kind, len(channel), channel)
}

const message = ">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nm\r\n"

func TestTheAnswersToSubscriptionsAreExpected(t *testing.T) {
	sub, unsub := request("SUBSCRIBE", "a", "b"), request("UNSUBSCRIBE", "a")+ping
	a, b, gone := confirmation("subscribe", "a"), confirmation("subscribe", "b"), confirmation("unsubscribe", "a")
	for _, c := range []struct{ name, sent, come, reason string }{
		{"a subscription", sub, a + b + message, ""},
		{"two at once", sub + request("PSUBSCRIBE", "a"), a + b + confirmation("psubscribe", "a") + message, ""},
		{"one among others", ping + ping + sub + ping, "+PONG\r\n+PONG\r\n" + a + b + "+PONG\r\n", ""},
		{"one that is refused", sub + ping, "-NOPERM no\r\n+PONG\r\n", ""},
		{"an end", sub + unsub + ping, a + b + gone + "+PONG\r\n" + message + "+PONG\r\n", ""},
		{"an end of what was not begun", request("UNSUBSCRIBE") + ping, ">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n+PONG\r\n", ""},
		{"an end that is refused", unsub + ping, "-NOPERM no\r\n+PONG\r\n+PONG\r\n", ""},
		{"an end while PING is refused", unsub, gone + "-NOPERM User x has no permissions to run the 'ping' command\r\n", ""},
		{"an end by the server", sub, a + b + confirmation("sunsubscribe", "a") + message, ""},
		{"an end by the server, before a subscription", sub, confirmation("sunsubscribe", "a") + a + b, ""},

		{"QUEUED", sub, "+QUEUED\r\n", "answered with a reply"},
		{"a confirmation of nothing", ping, a, "nobody asked for"},
		{"a confirmation of another kind", sub, confirmation("psubscribe", "a"), "nobody asked for"},
		{"one confirmation too many", sub + ping, a + b + b, "nobody asked for"},
		{"a reply beside the confirmations", sub, a + b + "+OK\r\n", "nobody asked for"},
		{"a reply amid the confirmations", sub + ping, a + "+PONG\r\n", "answered with a reply"},
		{"an end amid the confirmations", sub, a + gone, "amid a subscription"},
		{"a reply before everything", "", "+OK\r\n", "nobody asked for"},
		// Each of these makes rueidis v1.0.79 panic on its own goroutine.
		{"QUEUED to both", unsub, "+QUEUED\r\n+QUEUED\r\n", "nswered with"},
		{"no PONG", unsub, gone + "+OK\r\n", "answered with \"OK"},
		{"no PONG but a string", unsub, gone + "$4\r\nPONG\r\n", "answered with a reply"},
		{"PONG as an error", unsub, "-PONG\r\n+PONG\r\n", "answered with \"PONG"},
	} {
		for _, cut := range []int{0, 1, 7} {
			peer := &script{chunks: pieces(c.come, cut)}
			g := GuardPubSub(peer, Limits{}, nil)
			for _, piece := range pieces(c.sent, cut) {
				if piece != "" {
					send(t, g, piece)
				}
			}
			_, err := io.Copy(io.Discard, g)
			var violation *ProtocolError
			switch {
			case c.reason == "" && err != nil:
				t.Errorf("%s, cut %d: %v", c.name, cut, err)
			case c.reason != "" && (!errors.As(err, &violation) || !strings.Contains(err.Error(), c.reason)):
				t.Errorf("%s, cut %d: %v; want %q", c.name, cut, err, c.reason)
			}
		}
	}
}

// pieces cuts s into pieces of n bytes; 0 leaves it whole.
func pieces(s string, n int) (all []string) {
	for n > 0 && len(s) > n {
		all, s = append(all, s[:n]), s[n:]
	}
	return append(all, s)
}

// A script runs, and Redis says BUSY to everything; or its disk is full, or its master
// away, and it says so to PING only. rueidis would panic.
func TestAnErrorThatAnswersAnUnsubscriptionIsRewritten(t *testing.T) {
	unsub := request("UNSUBSCRIBE", "a") + ping
	gone := confirmation("unsubscribe", "a")
	sunsub, ended := request("SUNSUBSCRIBE", "a")+ping, confirmation("sunsubscribe", "a")
	long := "NOPERM User " + strings.Repeat("x", 5000) + " has no permissions to run the 'ping' command"
	blob := func(text string) string { return fmt.Sprintf("!%d\r\n%s\r\n", len(text), text) }
	for _, c := range []struct{ sent, come, want string }{
		{unsub + ping, "-BUSY a script\r\n-BUSY a script\r\n+PONG\r\n", blob("BUSY a script") + "+PONG\r\n+PONG\r\n"},
		{unsub, "-LOADING\r\n-LOADING\r\n", blob("LOADING") + "+PONG\r\n"},
		{unsub, "-NOAUTH\r\n-NOAUTH\r\n", blob("NOAUTH") + "+PONG\r\n"},
		{unsub, "-" + long + "\r\n-" + long + "\r\n", blob(long) + "+PONG\r\n"},
		{unsub + ping, gone + "-MISCONF disk\r\n" + message + "-MISCONF disk\r\n", gone + "+PONG\r\n" + message + "-MISCONF disk\r\n"},
		{unsub, gone + blob("MASTERDOWN"), gone + "+PONG\r\n"},
		{unsub, "-odd\r\r\r\n" + blob(""), blob("odd\r\r") + "+PONG\r\n"},
		{unsub + unsub, "-BUSY\r\n-BUSY\r\n" + gone + "+PONG\r\n", blob("BUSY") + "+PONG\r\n" + gone + "+PONG\r\n"},
		// The slot has moved, and the server has ended the subscription beforehand.
		{sunsub + ping, ended + "-MOVED 1 x:1\r\n+PONG\r\n+PONG\r\n", ended + blob("MOVED 1 x:1") + "+PONG\r\n+PONG\r\n"},
		{sunsub + ping, ended + "-MISCONF disk\r\n-MISCONF disk\r\n", ended + "+PONG\r\n-MISCONF disk\r\n"},
		{request("SUNSUBSCRIBE", "a", "b") + ping, ended + "-BUSY\r\n-BUSY\r\n", ended + blob("BUSY") + "+PONG\r\n"},
	} {
		for _, cut := range []int{0, 1, 7, 1000} {
			g := GuardPubSub(&script{chunks: pieces(c.come, cut)}, Limits{}, nil)
			send(t, g, c.sent)
			got, err := io.ReadAll(g)
			if string(got) != c.want || err != nil {
				t.Errorf("cut %d: of %.100q came %.100q, %v; want %.100q", cut, c.come, got, err, c.want)
			}
		}
	}
}

// A hundred goroutines subscribed and unsubscribed on one connection, so more than a
// kilobyte followed a PONG in one chunk, and was taken for its text.
func TestWhatFollowsTheAnswerToAnUnsubscriptionIsNotPartOfIt(t *testing.T) {
	const n = 100
	var come strings.Builder
	for range n {
		come.WriteString(confirmation("unsubscribe", "a") + "+PONG\r\n")
	}
	g := GuardPubSub(&script{chunks: []string{come.String()}}, Limits{}, nil)
	send(t, g, strings.Repeat(request("UNSUBSCRIBE", "a")+ping, n))
	if got, err := io.ReadAll(g); string(got) != come.String() || err != nil {
		t.Errorf("%d bytes of %d, %v", len(got), come.Len(), err)
	}
}

func TestAWaitingRequestCostsLittle(t *testing.T) {
	l := &ledger{}
	for range 100_000 {
		l.began()
		l.named([]byte("get"), 1)
	}
	if n := cap(l.mu.entries); n > 8 {
		t.Errorf("%d entries for plain requests in a row", n)
	}
	for range 100_000 {
		if _, reason := l.reply(false); reason != "" {
			t.Fatal(reason)
		}
	}
	for range 10_000 {
		l.began()
		l.named([]byte("subscribe"), 1)
		l.began()
		l.confirmed([]byte("subscribe"))
		l.named(nil, 0)
		if _, reason := l.reply(false); reason != "" {
			t.Fatal(reason)
		}
	}
	if n := cap(l.mu.entries); n > 256 {
		t.Errorf("%d entries, and nobody waits", n)
	}
}

func TestSubscribingAndReadingMayRunConcurrently(t *testing.T) {
	ours, theirs := net.Pipe()
	c := GuardPubSub(ours, Limits{}, nil)
	one, answer := request("SUBSCRIBE", "a")+ping, confirmation("subscribe", "a")+"+PONG\r\n"
	const rounds = 500
	var all sync.WaitGroup
	all.Go(func() {
		p := make([]byte, len(one))
		for range rounds {
			if _, err := io.ReadFull(theirs, p); err != nil {
				t.Error(err)
			}
			if _, err := io.WriteString(theirs, answer); err != nil {
				t.Error(err)
			}
		}
		_ = theirs.Close()
	})
	all.Go(func() {
		for range rounds {
			if _, err := c.Write([]byte(one)); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
	all.Wait()
}

// A hostile server's reply came while the request was being written, between its
// beginning and its name: the program ended, or rueidis got a reply to a subscription.
func TestAReplyToWhatWasNotSentYetIsAViolation(t *testing.T) {
	for _, tt := range []struct{ before, answered, begins, ends string }{
		{"", "", "*2\r\n$9\r\nSUBS", "CRIBE\r\n$1\r\na\r\n"},
		{ping, "+PONG\r\n", "*2\r\n$9\r\nSUBS", "CRIBE\r\n$1\r\na\r\n"},
		{"", "", "*2\r\n", "$9\r\nSUBSCRIBE\r\n$1\r\na\r\n"},
		{"", "", "*2\r\n$11\r\nUNSUBSCRI", "BE\r\n$1\r\na\r\n" + ping},
		{"", "", "*1\r\n$4\r\nPI", "NG\r\n"},
		{"*1\r\n$11\r\nUNSUBSCRIBE\r\n", ">3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n", "*1\r\n$4\r\nPI", "NG\r\n"},
		{ping + ping, "+PONG\r\n+PONG\r\n", "*1\r\n$10\r\nSSUBSCRI", "BE"},
	} {
		for _, reply := range []string{"+PONG\r\n", "-BUSY\r\n", ":1\r\n"} {
			both := &ledger{}
			in, out := newFramer(DefaultLimits), newRequestFramer()
			in.AllowPubSub, in.ledger, out.ledger = true, both, both
			if err := out.Feed([]byte(tt.before)); err != nil {
				t.Fatal(err)
			}
			if err := in.Feed([]byte(tt.answered)); err != nil {
				t.Fatal(err)
			}
			if err := out.Feed([]byte(tt.begins)); err != nil {
				t.Fatal(err)
			}
			err := in.Feed([]byte(reply))
			if err == nil {
				t.Errorf("%q was accepted behind %q", reply, tt.begins)
			}
			if err := out.Feed([]byte(tt.ends)); err != nil {
				t.Error(err)
			}
		}
	}
	// A request that was sent is answered while the next one, of any name, is being written.
	for _, name := range []string{"$9\r\nSUBSCRIBE", "$3\r\nGET", "$0\r\n", "$20\r\nAVERYLONGCOMMANDNAME"} {
		both := &ledger{}
		in, out := newFramer(DefaultLimits), newRequestFramer()
		in.AllowPubSub, in.ledger, out.ledger = true, both, both
		for _, step := range []struct {
			f    *Framer
			text string
		}{{&out, ping + "*1\r\n"}, {&in, "+PONG\r\n"}, {&out, name + "\r\n"}, {&in, "-ERR wrong number of arguments\r\n"}} {
			if err := step.f.Feed([]byte(step.text)); err != nil {
				t.Errorf("%q: %v", step.text, err)
			}
		}
	}
}

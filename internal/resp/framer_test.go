package resp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// helloReply is what Redis 7.0.15 answers to HELLO 3.
const helloReply = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n" +
	"$2\r\nid\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"

// commandReply is what it answers to COMMAND INFO GET.
const commandReply = "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n~3\r\n+@read\r\n" +
	"+@string\r\n+@fast\r\n~0\r\n~1\r\n%3\r\n$5\r\nflags\r\n~2\r\n+RO\r\n+access\r\n$12\r\nbegin_search\r\n%2\r\n" +
	"$4\r\ntype\r\n$5\r\nindex\r\n$4\r\nspec\r\n%1\r\n$5\r\nindex\r\n:1\r\n$9\r\nfind_keys\r\n%2\r\n$4\r\ntype\r\n" +
	"$5\r\nrange\r\n$4\r\nspec\r\n%3\r\n$7\r\nlastkey\r\n:0\r\n$7\r\nkeystep\r\n:1\r\n$5\r\nlimit\r\n:0\r\n~0\r\n"

const invalidation = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n"

// testLimits are small enough for a test to exceed.
var testLimits = Limits{MaxBulk: 64, MaxElements: 32, MaxDepth: 3, MaxLine: 40, MaxFrame: 256}

// A verdict is all that a Framer says about a stream.
type verdict struct {
	replies, pushes int64
	midFrame        bool
	offset          int64
	reason          string
}

func (f *Framer) verdict() verdict {
	v := verdict{replies: f.replies, pushes: f.pushes, offset: -1}
	if f.err != nil {
		v.offset, v.reason = f.err.Offset, f.err.Reason
		return v
	}
	v.midFrame = f.MidFrame()
	return v
}

// cuts lists the ways every case is fed: whole, byte by byte, at random.
var cuts = map[string]func(n int) int{
	"whole":        func(n int) int { return n },
	"byte by byte": func(int) int { return 1 },
	"random":       func(n int) int { return rand.IntN(min(n, 9) + 1) },
}

func feed(f *Framer, s string, cut func(n int) int) verdict {
	for b := []byte(s); len(b) > 0; {
		n := cut(len(b))
		chunk := append([]byte(nil), b[:n]...) // so that looking beyond it is seen
		if err := f.Feed(chunk); err != nil {
			if again := f.Feed([]byte("+OK\r\n")); again != err {
				panic("a violation was forgotten")
			}
			break
		}
		b = b[n:]
	}
	return f.verdict()
}

func everyCut(t *testing.T, newFramer func() *Framer, s string, want verdict) {
	t.Helper()
	for name, cut := range cuts {
		rounds := 1
		if name == "random" {
			rounds = 20
		}
		for range rounds {
			if got := feed(newFramer(), s, cut); got != want {
				t.Errorf("fed %s: got %+v, want %+v", name, got, want)
			}
		}
	}
}

func TestWhatRedisSendsIsAccepted(t *testing.T) {
	for _, c := range []struct {
		in              string
		replies, pushes int64
	}{
		{"", 0, 0},
		{"+OK\r\n", 1, 0},
		{"+\r\n", 1, 0},
		{"+a\rb\r\n", 1, 0},
		{"-ERR unknown command\r\n", 1, 0},
		{":0\r\n:-1\r\n:9223372036854775807\r\n:-9223372036854775808\r\n", 4, 0},
		{"$0\r\n\r\n$5\r\na\r\nbc\r\n$-1\r\n", 3, 0},
		{"$64\r\n" + strings.Repeat("\n", 64) + "\r\n", 1, 0},
		{"*0\r\n*-1\r\n*2\r\n$1\r\na\r\n$-1\r\n", 3, 0},
		{"*2\r\n*2\r\n*-1\r\n*0\r\n:1\r\n", 1, 0},
		{"*1\r\n*1\r\n*1\r\n*0\r\n", 1, 0},
		{"_\r\n#t\r\n#f\r\n,3.141\r\n,inf\r\n(1234567999999999999999999999999999999\r\n", 6, 0},
		{"=29\r\ntxt:This is a verbatim\nstring\r\n", 1, 0},
		{"!21\r\nSYNTAX invalid syntax\r\n", 1, 0},
		{"~3\r\n:0\r\n:1\r\n:2\r\n~0\r\n%0\r\n", 3, 0},
		{"%3\r\n:0\r\n#f\r\n:1\r\n#t\r\n:2\r\n#f\r\n", 1, 0},
		{"%1\r\n+a\r\n%1\r\n+b\r\n*2\r\n+c\r\n+d\r\n+OK\r\n", 2, 0},
		{invalidation, 0, 1},
		{"+OK\r\n" + invalidation + "+OK\r\n", 2, 1},
		{">2\r\n$10\r\ninvalidate\r\n_\r\n", 0, 1},
		{">2\r\n$10\r\ninvalidate\r\n*-1\r\n", 0, 1},
		{">2\r\n$10\r\ninvalidate\r\n$-1\r\n", 0, 1},
		{">2\r\n$10\r\ninvalidate\r\n*0\r\n", 0, 1},
		{">2\r\n$10\r\ninvalidate\r\n*3\r\n$0\r\n\r\n$1\r\na\r\n$2\r\nbc\r\n", 0, 1},

		// Pushes of other kinds, such as maintenance notices.
		{">0\r\n>1\r\n$4\r\npong\r\n+OK\r\n", 1, 2},
		{">4\r\n$6\r\nMOVING\r\n:1\r\n:30\r\n$9\r\n10.0.0.1:\r\n", 0, 1},
		{">3\r\n+MIGRATING\r\n:1\r\n*2\r\n:1\r\n%1\r\n+a\r\n_\r\n", 0, 1},
		{">2\r\n$21\r\ntracking-redir-broken\r\n:5\r\n+OK\r\n", 1, 1},
		{">2\r\n$10\r\nInvalidate\r\n_\r\n", 0, 1},
		{">2\r\n:1\r\n#t\r\n>2\r\n_\r\n,1\r\n>1\r\n$-1\r\n>1\r\n$0\r\n\r\n>1\r\n*1\r\n*1\r\n:1\r\n", 0, 5},
		{">1\r\n=13\r\ntxt:subscribe\r\n>1\r\n|1\r\n+a\r\n+b\r\n:1\r\n", 0, 2},

		// Attributes.
		{"|1\r\n+a\r\n+b\r\n+c\r\n", 1, 0},
		{"|0\r\n+c\r\n|1\r\n+a\r\n*1\r\n:1\r\n$1\r\nx\r\n", 2, 0},
		{"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n|1\r\n+a\r\n+b\r\n:2\r\n+OK\r\n", 2, 0},
		{"*2\r\n|0\r\n:1\r\n|1\r\n|1\r\n+a\r\n+b\r\n+a\r\n+b\r\n*1\r\n:2\r\n+OK\r\n", 2, 0},
		{"|1\r\n+a\r\n+b\r\n" + invalidation, 0, 1},

		// Redis before 7.0.5, when tracked keys expire during a command.
		{"*1\r\n" + invalidation + "$1\r\nb\r\n", 1, 1},
		{"*1\r\n" + invalidation + invalidation + "$1\r\nb\r\n%1\r\n+a\r\n" + invalidation + ":1\r\n+OK\r\n", 3, 3},
	} {
		t.Run(fmt.Sprintf("%.40q", c.in), func(t *testing.T) {
			everyCut(t, func() *Framer { return NewFramer(testLimits) }, c.in,
				verdict{replies: c.replies, pushes: c.pushes, offset: -1})
		})
	}
	for _, in := range []string{helloReply, commandReply, "$104857600\r\n"} {
		f := NewFramer(Limits{})
		if err := f.Feed([]byte(in)); err != nil {
			t.Errorf("the default limits reject %q: %v", in, err)
		}
	}
}

func TestAFrameCutOffIsNotComplete(t *testing.T) {
	for _, s := range []string{helloReply, commandReply, invalidation, "#t\r\n", "_\r\n", "$3\r\nabc\r\n", ":1\r\n"} {
		for n := 1; n < len(s); n++ {
			everyCut(t, func() *Framer { return NewFramer(Limits{}) }, s[:n], verdict{midFrame: true, offset: -1})
		}
	}
}

func TestWhatRedisDoesNotSendIsAViolation(t *testing.T) {
	long := strings.Repeat("x", 41)
	for _, c := range []struct {
		in      string
		offset  int64
		reason  string
		replies int64
	}{
		// Types.
		{"H", 0, "not the type", 0},
		{"+OK\r\n\x00", 5, "not the type", 1},
		{"*1\r\nx", 4, "not the type", 0},
		{"\r\n", 0, "not the type", 0},
		{".\r\n", 0, "streamed", 0},
		{";4\r\nabcd\r\n", 0, "streamed", 0},
		{"$?\r\n", 1, "streamed", 0},
		{"*?\r\n", 1, "streamed", 0},
		{"%?\r\n", 1, "streamed", 0},

		// Numbers.
		{"$-5\r\n", 3, "negative length", 0},
		{"$-0\r\n", 3, "negative length", 0},
		{"$-01\r\n", 4, "negative length", 0},
		{"*-7\r\n", 3, "negative length", 0},
		{"%-1\r\n", 3, "negative length", 0},
		{"|-1\r\n", 3, "negative length", 0},
		{"~-1\r\n", 3, "negative length", 0},
		{">-1\r\n", 3, "negative length", 0},
		{"=-1\r\n", 3, "negative length", 0},
		{"!-1\r\n", 3, "negative length", 0},
		{"$-\r\n", 2, "expected a digit", 0},
		{"$\r\n", 1, "expected a digit", 0},
		{":\r\n", 1, "expected a digit", 0},
		{":--1\r\n", 2, "expected a digit", 0},
		{":1-\r\n", 2, "expected a digit", 0},
		{":+1\r\n", 1, "expected a digit", 0},
		{"$1a\r\n", 2, "expected a digit", 0},
		{"$ 1\r\n", 1, "expected a digit", 0},
		{"$1\n", 2, "expected a digit", 0},
		{":12345678901234567890\r\n", 20, "19 digits", 0},
		{":00000000000000000000\r\n", 20, "19 digits", 0},
		{":9223372036854775808\r\n", 20, "out of range", 0},
		{":-9223372036854775809\r\n", 21, "out of range", 0},
		{"$18446744073709551611\r\n", 20, "19 digits", 0},

		// CRLF.
		{":1\rx", 3, "expected LF", 0},
		{"$1\r\na\n\r", 5, "expected CR", 0},
		{"$1\r\nab", 5, "expected CR", 0},
		{"$0\r\na", 4, "expected CR", 0},
		{"$1\r\na\ra", 6, "expected LF", 0},
		{"+OK\n", 3, "CR before LF", 0},
		{"-\n", 1, "CR before LF", 0},
		{"_x", 1, "expected CR", 0},
		{"_\rx", 2, "expected LF", 0},
		{"#x", 1, "t or f", 0},
		{"#tt", 2, "expected CR", 0},
		{"#\r\n", 1, "t or f", 0},

		// Limits.
		{"$65\r\n", 3, "bulk string longer", 0},
		{"=65\r\n", 3, "bulk string longer", 0},
		{"!65\r\n", 3, "bulk string longer", 0},
		{"$9999999999999\r\n", 14, "bulk string longer", 0},
		{"*33\r\n", 3, "more elements", 0},
		{"~33\r\n", 3, "more elements", 0},
		{"%17\r\n", 3, "more elements", 0},
		{"|17\r\n", 3, "more elements", 0},
		{"|16\r\n" + strings.Repeat("+a\r\n", 32) + "*1\r\n", 135, "more elements", 0},
		{"*1\r\n*1\r\n|1\r\n*1\r\n", 14, "nested deeper", 0},
		{"%9223372036854775807\r\n", 20, "more elements", 0},
		{"*2\r\n*30\r\n" + strings.Repeat(":1\r\n", 30) + "*1\r\n", 131, "more elements", 0},
		{"*1\r\n*1\r\n*1\r\n*1\r\n", 14, "nested deeper", 0},
		{"+" + long + "\r\n", 42, "line longer", 0},
		{"+" + long + long, 42, "line longer", 0},
		{"*4\r\n" + strings.Repeat("$64\r\n"+strings.Repeat("x", 64)+"\r\n", 4), 220, "frame larger", 0},
		{"*7\r\n" + strings.Repeat("+"+long[:40]+"\r\n", 7), 262, "frame larger", 0},

		// Pushes.
		{">2\r\n" + invalidation, 4, "push inside a push", 0},
		{">2\r\n+invalidate\r\n_\r\n", 16, "unknown form", 0},
		{">2\r\n=10\r\ninvalidate\r\n_\r\n", 18, "unknown form", 0},
		{">3\r\n$10\r\ninvalidate\r\n_\r\n_\r\n", 18, "unknown form", 0},
		{">2\r\n$9\r\nsubscribe\r\n", 16, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n:1\r\n", 23, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n+a\r\n", 21, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n$1\r\n", 23, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n~1\r\n", 23, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n*1\r\n:1\r\n", 27, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n*1\r\n_\r\n", 25, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n*1\r\n$-1\r\n", 28, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n*1\r\n*0\r\n", 27, "unknown form", 0},
		{">2\r\n$10\r\ninvalidate\r\n|1\r\n", 23, "unknown form", 0},
		{">3\r\n$9\r\nsubscribe\r\n", 16, "nobody asked for", 0},
		{">3\r\n$6\r\nMOVING\r\n:1\r\n" + invalidation, 20, "push inside a push", 0},
	} {
		t.Run(fmt.Sprintf("%.40q", c.in), func(t *testing.T) {
			want := feed(NewFramer(testLimits), c.in, cuts["whole"])
			if want.offset != c.offset || want.replies != c.replies || !strings.Contains(want.reason, c.reason) {
				t.Fatalf("got %+v, want a violation %q at %d after %d replies", want, c.reason, c.offset, c.replies)
			}
			everyCut(t, func() *Framer { return NewFramer(testLimits) }, c.in, want)
		})
	}
}

func TestPubSubPushesAreAViolationUnlessAllowed(t *testing.T) {
	bad := []string{
		">2\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n",
		">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n$1\r\n1\r\n",
		">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:-1\r\n",
		">3\r\n$9\r\nsubscribe\r\n:1\r\n:1\r\n",
		">3\r\n$9\r\nsubscribe\r\n*-1\r\n:1\r\n",
		">4\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n$1\r\nz\r\n",
		">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n_\r\n",
		">3\r\n$7\r\nmessage\r\n$-1\r\n$1\r\ny\r\n",
		">3\r\n$8\r\npmessage\r\n$1\r\nx\r\n$1\r\ny\r\n",
		">3\r\n$10\r\ninvalidate\r\n_\r\n_\r\n",
		">5\r\n$7\r\nmessage\r\n",
	}
	good := []string{
		invalidation,
		">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n",
		">3\r\n$8\r\nsmessage\r\n$1\r\nx\r\n$0\r\n\r\n",
		">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nx\r\n$1\r\ny\r\n",
		">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
		">3\r\n$10\r\npsubscribe\r\n$1\r\nx\r\n:1\r\n",
		">3\r\n$10\r\nssubscribe\r\n$1\r\nx\r\n:1\r\n",
		">3\r\n$11\r\nunsubscribe\r\n$1\r\nx\r\n:0\r\n",
		">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n",
		">3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n",
		">3\r\n$12\r\nsunsubscribe\r\n$1\r\nx\r\n:0\r\n",
	}
	allowing := func() *Framer {
		f := NewFramer(testLimits)
		f.AllowPubSub = true
		return f
	}
	for _, s := range good {
		everyCut(t, allowing, s, verdict{pushes: 1, offset: -1})
		if s == invalidation {
			continue
		}
		if v := feed(NewFramer(testLimits), s, cuts["whole"]); v.reason == "" {
			t.Errorf("%q was accepted on a connection that does not subscribe", s)
		}
	}
	for _, s := range bad {
		v := feed(allowing(), s, cuts["whole"])
		if v.reason == "" {
			t.Errorf("%q was accepted", s)
		}
		everyCut(t, allowing, s, v)
	}
}

func TestAViolationTellsWhatThePeerMayBe(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"HTTP/1.1 400 Bad Request\r\n", "looks like an HTTP server"},
		{"\x15\x03\x01\x00\x02\x02\x46", "looks like a TLS port; use rediss://"},
		{"\x16\x03\x01", "looks like a TLS port; use rediss://"},
		{"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13\r\n", `it said "SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ub"`},
		{"\xff\xfe", "(0xff): not the type of a RESP element"},
		{"220 smtp.example.com ESMTP\r\n", `server broke the protocol at byte 0 ('2')`},
	} {
		err := NewFramer(Limits{}).Feed([]byte(c.in))
		var violation *ProtocolError
		if !errors.As(err, &violation) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want it to contain %q", c.in, err, c.want)
		}
	}
}

func TestARequestIsAnArrayOfBulkStrings(t *testing.T) {
	fresh := func() *Framer { f := newRequestFramer(); return &f }
	everyCut(t, fresh, "*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n", verdict{replies: 2, offset: -1})
	if v := feed(fresh(), "*2\r\n$3\r\nSET\r\n$9999999999\r\n", cuts["whole"]); v.reason != "" {
		t.Errorf("the size of a request is none of our business: %+v", v)
	}
	for _, s := range []string{
		"PING\r\n", "+OK\r\n", "*0\r\n", "*-1\r\n", "*1\r\n$-1\r\n", "*1\r\n:1\r\n", "*1\r\n*1\r\n", "$1\r\na\r\n",
		">2\r\n", "*2\r\n$1\r\na\r\n+b\r\n", "*1\r\n$1\r\nab\r\n", "*1\r\n$1\r\na\rb", "*1\r\n$\r\n\r\n", "*\r\n", "*1\r$",
	} {
		v := feed(fresh(), s, cuts["whole"])
		if v.reason == "" {
			t.Errorf("%q was taken for a request", s)
		}
		everyCut(t, fresh, s, v)
	}
}

func TestUsualFramesCountHoweverTheyAreCut(t *testing.T) {
	fresh := func() *Framer { f := newRequestFramer(); return &f }
	everyCut(t, fresh, strings.Repeat("*2\r\n$4\r\nPTTL\r\n$1\r\nk\r\n", 9)+"*1\r\n$4\r\nPI", verdict{replies: 9, midFrame: true, offset: -1})
	short := strings.Repeat("+OK\r\n:0\r\n:123456789\r\n:1234567890\r\n:-2\r\n", 3)
	everyCut(t, func() *Framer { return NewFramer(testLimits) }, short, verdict{replies: 15, offset: -1})
	everyCut(t, func() *Framer {
		f := NewFramer(testLimits)
		f.allowed = 2
		return f
	}, short, verdict{replies: 2, offset: int64(len("+OK\r\n:0\r\n")), reason: "a reply nobody asked for"})
}

func TestFeedingAStreamOfRepliesAllocatesNothing(t *testing.T) {
	f := NewFramer(Limits{})
	chunk := []byte(strings.Repeat("$100\r\n"+strings.Repeat("x", 100)+"\r\n"+invalidation, 20) +
		"*2\r\n$1\r\na\r\n*1\r\n:1\r\n")
	if n := testing.AllocsPerRun(100, func() {
		if f.Feed(chunk[:777]) != nil || f.Feed(chunk[777:]) != nil {
			t.Fatal(f.err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per chunk", n)
	}
}

func BenchmarkFramerOfBulkReplies(b *testing.B) {
	const replies = 500
	chunk := []byte(strings.Repeat("$100\r\n"+strings.Repeat("x", 100)+"\r\n", replies))
	benchmarkFramer(b, chunk, replies)
}

func BenchmarkFramerOfInvalidations(b *testing.B) {
	const pushes = 500
	chunk := []byte(strings.Repeat(">2\r\n$10\r\ninvalidate\r\n*1\r\n$20\r\n01234567890123456789\r\n", pushes))
	benchmarkFramer(b, chunk, pushes)
}

func benchmarkFramer(b *testing.B, chunk []byte, frames int) {
	f := NewFramer(Limits{})
	b.SetBytes(int64(len(chunk) / frames))
	b.ReportAllocs()
	for n := 0; n < b.N; n += frames {
		if err := f.Feed(chunk); err != nil {
			b.Fatal(err)
		}
	}
}

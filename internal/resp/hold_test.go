package resp

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"
)

// announced reads a stream as rueidis does, as far as it goes, and adds up what it
// allocates for the last top-level frame.
func announced(stream []byte) (cost int64) {
	i := 0
	line := func() (string, bool) {
		n := bytes.Index(stream[i:], crlf)
		if n < 0 {
			return "", false
		}
		s := string(stream[i : i+n])
		i += n + 2
		return s, true
	}
	var element func() bool
	element = func() bool {
		s, ok := line()
		if !ok {
			return false
		}
		n := 0
		_, _ = fmt.Sscan(s[1:], &n)
		switch s[0] {
		case '$', '=', '!':
			cost += int64(n)
			if len(stream)-i < n+2 {
				return false
			}
			i += n + 2
		case '%', '|':
			n *= 2
			fallthrough
		case '*', '~', '>':
			cost += int64(n) * elementBytes
			for range n {
				if !element() {
					return false
				}
			}
			if s[0] == '|' {
				return element()
			}
		}
		return true
	}
	for i < len(stream) {
		cost = 0
		if !element() {
			break
		}
	}
	return cost
}

func TestAHeaderIsNotDeliveredBeforeWhatItAnnounces(t *testing.T) {
	for _, header := range []string{
		"$536870911\r\n", "=536870911\r\n", "!536870911\r\n", "*1048576\r\n", "~1048576\r\n", "%524288\r\n",
		"|524288\r\n", "*1\r\n|524288\r\n", ">1048576\r\n", ">2\r\n$10\r\ninvalidate\r\n*1048000\r\n",
		">3\r\n$6\r\nMOVING\r\n$536870911\r\n", "*2\r\n+OK\r\n$536870911\r\n", strings.Repeat("*6000\r\n", 100),
		strings.Repeat("%3000\r\n+a\r\n", 100), "+OK\r\n$3\r\nabc\r\n*1048576\r\n:1\r\n",
		"*1000\r\n" + strings.Repeat("*1000\r\n", 1000), "*16777216\r\n", strings.Repeat("*8000\r\n:1\r\n", 120),
	} {
		for _, cut := range []int{0, 1, 7} {
			c := Guard(&script{chunks: pieces(header, cut)}, Limits{}, nil)
			send(t, c, ping+ping+ping+ping)
			got, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("%.40q: %v", header, err)
			}
			if n := announced(got); n > freeBytes+2*int64(len(header)) {
				t.Errorf("%.40q: what came of it makes rueidis allocate %d bytes", header, n)
			}
		}
	}
}

// All bytes that arrive are delivered unchanged, and rueidis never allocates much more than has
// arrived.
func TestWhatIsHeldBackIsDeliveredOnceItsPayloadIsThere(t *testing.T) {
	bulk := func(n int) string { return fmt.Sprintf("$%d\r\n%s\r\n", n, strings.Repeat("x", n)) }
	ints := func(n int) string { return fmt.Sprintf("*%d\r\n%s", n, strings.Repeat(":1\r\n", n)) }
	for i, stream := range []string{
		bulk(300_000), bulk(3_000_000), "+OK\r\n" + bulk(1_000_000) + "+OK\r\n" + bulk(2_000_000) + "$1\r\na\r\n",
		ints(6000), ints(200_000), "*3\r\n" + ints(50_000) + bulk(600_000) + "*2\r\n" + ints(20_000) + bulk(400_000) + "+OK\r\n",
		"*20000\r\n" + strings.Repeat(bulk(100), 20_000), strings.Repeat(bulk(270_000), 20),
		"|1\r\n+a\r\n" + bulk(800_000) + bulk(500_000) + ">3\r\n$6\r\nMOVING\r\n" + bulk(700_000) + ints(9000) + ints(100_000),
	} {
		for _, size := range []int{1000, 64 << 10, 512 << 10, len(stream)} {
			var chunks []string
			for s := stream; len(s) > 0; {
				n := min(len(s), 1+rand.IntN(size))
				chunks, s = append(chunks, s[:n]), s[n:]
			}
			peer := &script{chunks: chunks}
			c := Guard(peer, Limits{}, nil)
			send(t, c, strings.Repeat(ping, 30))
			left := func() (n int) {
				for _, s := range peer.chunks {
					n += len(s)
				}
				return n
			}
			var got []byte
			p := make([]byte, 512<<10)
			for n := 0; ; n++ {
				k, err := c.Read(p)
				got = append(got, p[:k]...)
				if n%16 == 0 && i < 5 { // it is slow
					arrived := int64(len(stream) - left())
					if cost := announced(got); cost > freeBytes+14*arrived {
						t.Fatalf("stream %d: rueidis allocates %d bytes, and %d have come", i, cost, arrived)
					}
				}
				if c.backlog.size > 3<<20 {
					t.Fatalf("stream %d: %d bytes are held", i, c.backlog.size)
				}
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if string(got) != stream {
				t.Errorf("stream %d, chunks of %d: %d bytes of %d, or others", i, size, len(got), len(stream))
			}
			if c.backlog.size != 0 || c.backlog.chunks != nil {
				t.Errorf("stream %d: %d bytes are left", i, c.backlog.size)
			}
		}
	}
}

func TestWhatIsReadInPiecesIsNotHeldBack(t *testing.T) {
	c := Guard(&script{chunks: []string{"$1000000\r\nabc"}}, Limits{}, nil)
	c.Streams()
	send(t, c, ping)
	if got, err := io.ReadAll(c); string(got) != "$1000000\r\nabc" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	c = Guard(&script{chunks: []string{"*1\r\n$1000000\r\nabc"}}, Limits{}, nil)
	c.Streams()
	send(t, c, ping)
	if got, err := io.ReadAll(c); string(got) != "*1\r\n$1000000\r" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Redis before 7.0.5 says within a reply that a key of it has expired.
func TestAPushInsideAReplyIsDeliveredBehindIt(t *testing.T) {
	in := "*2\r\n" + invalidation + "$1\r\na\r\n" + invalidation + "$1\r\nb\r\n+OK\r\n"
	want := "*2\r\n$1\r\na\r\n$1\r\nb\r\n" + invalidation + invalidation + "+OK\r\n"
	for _, cut := range []int{0, 1, 3, 7} {
		c := Guard(&script{chunks: pieces(in, cut)}, Limits{}, nil)
		send(t, c, ping+ping)
		if got, err := io.ReadAll(c); string(got) != want || err != nil {
			t.Errorf("cut %d: %q, %v", cut, got, err)
		}
	}
}

func TestTheFirstErrorsAndTheLastAreKept(t *testing.T) {
	c := Guard(&script{chunks: []string{"+OK\r\n-ERR max num", "ber of clients reached\r\n"}}, Limits{}, nil)
	send(t, c, ping+ping)
	if c.Said() != nil {
		t.Error("before anything came")
	}
	_, _ = io.ReadAll(c)
	if s := c.Said(); len(s) != 1 || s[0] != (Said{2, "ERR max number of clients reached"}) {
		t.Errorf("%+v", s)
	}
	c = Guard(&script{chunks: []string{"-ERR " + strings.Repeat("x", 1000) + "\r\n"}}, Limits{}, nil)
	send(t, c, ping)
	_, _ = io.ReadAll(c)
	if s := c.Said(); len(s) != 1 || len(s[0].Text) != maxSaid {
		t.Errorf("%+v", s)
	}
	c = Guard(&script{chunks: []string{"-a\r\n+OK\r\n" + strings.Repeat("-b\r\n", 50) + "-c\r\n", "-d\r\n", "-e\r\n"}}, Limits{}, nil)
	send(t, c, strings.Repeat(ping, 60))
	p := make([]byte, 1000)
	_, _ = c.Read(p)
	_, _ = c.Read(p)
	c.Settled()
	_, _ = c.Read(p)
	if s := c.Said(); len(s) != mostSaid || s[0] != (Said{1, "a"}) || s[1] != (Said{3, "b"}) || s[mostSaid-1] != (Said{54, "d"}) {
		t.Errorf("%+v", s)
	}
}

// BenchmarkLargeValue reads a value of 1 MB and of 100 MB as rueidis does.
func BenchmarkLargeValue(b *testing.B) {
	for _, size := range []int{1_000_000, 100_000_000} {
		payload := []byte(fmt.Sprintf("$%d\r\n%s\r\n", size, strings.Repeat("x", size)))
		for _, guarded := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/guarded=%v", size, guarded), func(b *testing.B) {
				b.SetBytes(int64(size))
				benchmarkLarge(b, payload, guarded)
			})
		}
	}
}

func benchmarkLarge(b *testing.B, payload []byte, guarded bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, len(ping))
		for {
			if _, err := io.ReadFull(c, p); err != nil {
				return
			}
			if _, err := c.Write(payload); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	if guarded {
		c = Guard(c, Limits{}, nil)
	}
	defer c.Close()
	in := bufio.NewReaderSize(c, 512<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write([]byte(ping)); err != nil {
			b.Fatal(err)
		}
		header, err := in.ReadSlice('\n')
		if err != nil {
			b.Fatal(err)
		}
		n, _ := strconv.Atoi(string(header[1 : len(header)-2]))
		if _, err := io.ReadFull(in, make([]byte, n+2)); err != nil {
			b.Fatal(err)
		}
	}
}

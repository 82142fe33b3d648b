package resp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// streams are seeds: what real servers sent, and what they must not.
var streams = []string{
	helloReply, commandReply, invalidation,
	"+OK\r\n", "-ERR unknown command\r\n", ":-1\r\n", "$-1\r\n", "*-1\r\n", "_\r\n", "#t\r\n", ",inf\r\n", "(12\r\n",
	"=7\r\ntxt:abc\r\n", "!3\r\nERR\r\n", "~2\r\n:1\r\n:2\r\n", "%1\r\n+a\r\n*2\r\n$1\r\nb\r\n$0\r\n\r\n",
	">2\r\n$10\r\ninvalidate\r\n_\r\n", "+OK\r\n" + invalidation + "$3\r\nabc\r\n",
	">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n", ">3\r\n$12\r\nsunsubscribe\r\n$1\r\nx\r\n:0\r\n",
	">2\r\n$10\r\ninvalidate\r\n:1\r\n", ">0\r\n", ">1\r\n$4\r\npong\r\n",
	"$-5\r\n", "*-7\r\n", "%-1\r\n", "$9999999999999\r\n", "*9999999999\r\n", "%9223372036854775807\r\n",
	"$18446744073709551611\r\n", "$?\r\n;4\r\nabcd\r\n;0\r\n", "*?\r\n:1\r\n.\r\n", "|1\r\n+a\r\n+b\r\n+c\r\n", "%1\r\n>0\r\n0000",
	"*2\r\n" + invalidation + "$1\r\na\r\n$1\r\nb\r\n", "*1\r\n|1\r\n+a\r\n*1\r\n:1\r\n" + invalidation + "$-1\r\n+OK\r\n",
	">3\r\n$6\r\nMOVING\r\n:1\r\n*1\r\n%1\r\n+a\r\n_\r\n", ">2\r\n+pong\r\n|0\r\n$-1\r\n+OK\r\n", ">2\r\n+message\r\n+a\r\n", strings.Repeat("*1\r\n", 100),
	"HTTP/1.1 400 Bad Request\r\n\r\n", "\x15\x03\x01\x00\x02\x02F", "+QUEUED\r\n", "+PONG\r\n+PONG\r\n",
	"$1\nab\r\n", "$12\n\r\n", "+\n", "#\r\n\r\n", "_\r\n\n", ":1\r\r\n", "*1\r\n\r\n",
}

// A reference reads a stream as rueidis does (resp.go), with its tolerance for
// malformed ends of lines, but reports what would make rueidis panic, and adds
// up what it would allocate.
type reference struct {
	r        *bufio.Reader
	elements int64
	depth    int
	bulk     int64
}

var errPanic = errors.New("rueidis would panic")

func (r *reference) number() (n int64, err error) {
	s, err := r.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(s) < 3 || s[0] == '?' {
		return 0, errors.New("not a number")
	}
	sign := int64(1)
	if s[0] == '-' {
		sign, s = -1, s[1:]
	}
	for _, c := range s[:len(s)-2] {
		if c < '0' || c > '9' {
			return 0, errors.New("not a number")
		}
		n = n*10 + int64(c-'0')
	}
	return n * sign, nil
}

// next returns the type of the next message.
func (r *reference) next(depth int) (typ byte, err error) {
	if typ, err = r.r.ReadByte(); err != nil {
		return typ, err
	}
	switch typ {
	case '+', '-', ',', '(':
		var line []byte
		if line, err = r.r.ReadBytes('\n'); err == nil && len(line) < 2 {
			err = errors.New("no CRLF")
		}
		return typ, err
	case ':':
		_, err = r.number()
		return typ, err
	case '_':
		_, err = r.r.Discard(2)
		return typ, err
	case '#':
		_, err = r.r.Discard(3)
		return typ, err
	case '$', '=', '!':
		n, err := r.number()
		if err != nil || n == -1 {
			return typ, err
		}
		if n < 0 {
			return typ, errPanic
		}
		r.bulk = max(r.bulk, n)
		if _, err = io.CopyN(io.Discard, r.r, n); err == nil {
			_, err = r.r.Discard(2)
		}
		return typ, err
	case '*', '~', '>', '%', '|':
		n, err := r.number()
		if err != nil || n == -1 && typ != '%' && typ != '|' {
			return typ, err
		}
		if typ == '%' || typ == '|' {
			n *= 2
		}
		if n < 0 {
			return typ, errPanic
		}
		r.elements += n
		if n > 0 {
			r.depth = max(r.depth, depth+1)
		}
		for ; n > 0; n-- {
			if _, err := r.next(depth + 1); err != nil {
				return typ, err
			}
		}
		if typ == '|' { // of what comes next
			return r.next(depth)
		}
		return typ, nil
	}
	return typ, errors.New("unknown type")
}

// FuzzFramer checks that the verdict on a stream does not depend on how it is
// cut, that rueidis finds the same frames in what was accepted, and that it
// finds none beyond the limits.
func FuzzFramer(f *testing.F) {
	for i, s := range streams {
		f.Add([]byte(s), []byte{1, byte(i), 3}, i%2 == 1)
	}
	f.Fuzz(func(t *testing.T, stream, sizes []byte, pubsub bool) {
		limits := Limits{MaxBulk: 100, MaxElements: 50, MaxDepth: 4, MaxLine: 50, MaxFrame: 500}
		fresh := func() *Framer {
			fr := NewFramer(limits)
			fr.AllowPubSub = pubsub
			return fr
		}
		whole := feed(fresh(), string(stream), cuts["whole"])
		if got := feed(fresh(), string(stream), cuts["byte by byte"]); got != whole {
			t.Fatalf("byte by byte %+v, whole %+v", got, whole)
		}
		k := 0
		if got := feed(fresh(), string(stream), func(n int) int {
			if k++; k > 2*len(sizes) {
				return n
			}
			return min(n, int(sizes[k%len(sizes)]))
		}); got != whole {
			t.Fatalf("cut at %v %+v, whole %+v", sizes, got, whole)
		}

		accepted := stream
		if whole.offset >= 0 {
			accepted = stream[:whole.offset] // rueidis may have seen this much of it, or less
		}
		f := fresh()
		if err := f.Feed(accepted); err != nil {
			t.Fatalf("what was accepted is not: %v", err)
		}
		accepted, _ = f.apply(accepted)
		r := &reference{r: bufio.NewReader(bytes.NewReader(accepted))}
		var replies, pushes int64
		for {
			r.elements, r.depth, r.bulk = 0, 0, 0
			typ, err := r.next(0)
			if r.elements > limits.MaxElements || r.depth > limits.MaxDepth || r.bulk > limits.MaxBulk {
				t.Fatalf("%d elements, depth %d and %d bytes were accepted", r.elements, r.depth, r.bulk)
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				t.Fatalf("accepted, but rueidis says: %v", err)
			}
			if typ == '>' {
				pushes++
			} else {
				replies++
			}
		}
		// Those that were cut out of a reply which has not ended are yet to come.
		for r := (&reference{r: bufio.NewReader(bytes.NewReader(f.later))}); ; pushes++ {
			if _, err := r.next(0); err != nil {
				break
			}
		}
		if replies != whole.replies || pushes != whole.pushes {
			t.Fatalf("rueidis finds %d replies and %d pushes in %+v", replies, pushes, whole)
		}
	})
}

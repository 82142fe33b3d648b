package resp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// A hostile server answers some requests as Redis does, and then sends bytes.
type hostile struct {
	polite int // how many requests are answered correctly
	late   int // how many more are read before the bytes are sent
	bytes  []byte
	cut    int // the bytes are sent in chunks of this size, if positive
	pubsub bool
}

func (h hostile) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for range h.polite {
		request, err := readRequest(in)
		if err != nil {
			return
		}
		answer := "+OK\r\n"
		switch strings.ToUpper(request[0]) {
		case "HELLO":
			answer = helloReply
		case "GET":
			answer = "$3\r\nabc\r\n"
		case "PING":
			answer = "+PONG\r\n"
		case "SUBSCRIBE", "UNSUBSCRIBE", "SUNSUBSCRIBE", "SSUBSCRIBE":
			answer = ""
			for _, channel := range request[1:] {
				answer += confirmation(strings.ToLower(request[0]), channel)
			}
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
	// Some of the calls may have gone to another connection, so those that do
	// not come soon are not waited for.
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
	for range h.late {
		if _, err := readRequest(in); err != nil {
			break
		}
	}
	_ = c.SetReadDeadline(time.Time{})
	go func() { _, _ = io.Copy(io.Discard, in) }() // so that the client is never stuck writing
	for b := h.bytes; len(b) > 0; {
		n := len(b)
		if h.cut > 0 {
			n = min(n, h.cut)
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

func readRequest(in *bufio.Reader) (request []string, err error) {
	length := func(typ byte) int {
		line, e := in.ReadString('\n')
		if e == nil && (len(line) < 4 || line[0] != typ) {
			e = fmt.Errorf("not a request: %q", line)
		}
		if e != nil {
			err = e
			return 0
		}
		n, _ := strconv.Atoi(line[1 : len(line)-2])
		return n
	}
	for n := length('*'); n > 0 && err == nil; n-- {
		p := make([]byte, length('$')+2)
		if err == nil {
			_, err = io.ReadFull(in, p)
			request = append(request, string(p[:len(p)-2]))
		}
	}
	return request, err
}

// clientOf connects a client to h. Only two connections are served, so that a
// client that dials again after every call does not do so for ever.
func (h hostile) clientOf(tracking bool) rueidis.ClientOption {
	var mu sync.Mutex
	dials := 0
	o := rueidis.ClientOption{
		InitAddress:        []string{"hostile:6379"},
		ForceSingleClient:  true,
		DisableRetry:       true,
		AlwaysPipelining:   true,
		DisableCache:       true,
		RingScaleEachConn:  4,
		ReadBufferEachConn: 4096,
		ConnWriteTimeout:   200 * time.Millisecond,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if dials++; dials > 2 {
				return nil, errors.New("no more connections")
			}
			ours, theirs := net.Pipe()
			go h.serve(theirs)
			limits := Limits{MaxBulk: 1 << 16, MaxElements: 1 << 10}
			if h.pubsub {
				return GuardPubSub(ours, limits, nil), nil
			}
			return Guard(ours, limits, nil), nil
		},
	}
	if tracking {
		o.DisableCache = false
		o.ClientTrackingOptions = []string{"NOLOOP"}
		o.OnInvalidations = func(keys []rueidis.RedisMessage) {
			for i := range keys {
				if _, err := keys[i].ToString(); err != nil {
					panic("a key that is no string: " + err.Error())
				}
			}
		}
	}
	return o
}

// calls is how many requests run makes after the handshake.
const calls = 4

// run drives a client against h. A panic on a goroutine of rueidis ends the
// process; one on ours is returned, for whoever uses rueidis can recover it.
func (h hostile) run(tracking bool) (panicked any) {
	var mu sync.Mutex
	recovered := func() {
		if r := recover(); r != nil {
			mu.Lock()
			defer mu.Unlock()
			panicked = r
		}
	}
	var client rueidis.Client
	func() {
		defer recovered()
		client, _ = rueidis.NewClient(h.clientOf(tracking))
	}()
	if client == nil {
		return panicked
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			defer recovered()
			if i == 2 {
				client.DoMulti(ctx, client.B().Get().Key("a").Build(), client.B().Get().Key("b").Build())
				return
			}
			r := client.Do(ctx, client.B().Get().Key("key").Build())
			_, _ = r.ToString()
			_, _ = r.AsBytes()
			_, _ = r.ToAny()
		})
	}
	if h.pubsub {
		all.Go(func() {
			defer recovered()
			d, release := client.Dedicate()
			defer release()
			b := client.B()
			d.Do(ctx, b.Subscribe().Channel("a", "b").Build())
			d.DoMulti(ctx, b.Unsubscribe().Channel("a").Build(), b.Sunsubscribe().Channel("a").Build())
			d.DoMulti(ctx, b.Ping().Build(), b.Ssubscribe().Channel("a").Build())
		})
	}
	all.Wait()
	func() {
		defer recovered()
		client.Close()
	}()
	return panicked
}

// handshakes is how many requests rueidis makes before NewClient returns:
// HELLO, CLIENT TRACKING if on, CLIENT SETINFO twice.
func handshakes(tracking bool) int {
	if tracking {
		return 4
	}
	return 3
}

func TestAGuardedClientSurvivesEveryHostileStream(t *testing.T) {
	for _, tracking := range []bool{false, true} {
		for polite := range handshakes(tracking) + 2 {
			for late := range 2 {
				for _, s := range streams {
					h := hostile{polite: polite, late: late, bytes: []byte(s)}
					if p := h.run(tracking); p != nil {
						t.Errorf("panic on the goroutine of the caller: %v, by %+v sending %q", p, h, s)
					}
				}
			}
		}
	}
}

func TestAGuardedClientWorks(t *testing.T) {
	for _, tracking := range []bool{false, true} {
		h := hostile{polite: 1000}
		client, err := rueidis.NewClient(h.clientOf(tracking))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			got, err := client.Do(context.Background(), client.B().Get().Key("key").Build()).ToString()
			if got != "abc" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		client.Close()
	}
}

// FuzzGuardedClient lets a server send anything, during the handshake and
// after it, to a real client. What ends the fuzzing process is a panic on a
// goroutine of rueidis.
func FuzzGuardedClient(f *testing.F) {
	for i, s := range streams {
		f.Add([]byte(s), uint8(i%6), uint8(i%4), uint8(i%3), i%2 == 0)
		f.Add([]byte(s), uint8(4), uint8(1), uint8(0), i%2 == 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, polite, late, cut uint8, tracking bool) {
		h := hostile{
			polite: int(polite) % (handshakes(tracking) + calls),
			late:   int(late) % (calls + 1),
			bytes:  b,
			cut:    int(cut),
		}
		if p := h.run(tracking); p != nil {
			t.Errorf("panic on the goroutine of the caller: %v", p)
		}
	})
}

// FuzzGuardedSubscriber is FuzzGuardedClient for a client that also subscribes.
func FuzzGuardedSubscriber(f *testing.F) {
	gone := confirmation("unsubscribe", "a")
	seeds := append([]string{
		"-BUSY\r\n-BUSY\r\n+PONG\r\n", gone + "-MISCONF\r\n", gone + "+PONG\r\n" + gone + "-MOVED 1 a:1\r\n+PONG\r\n", message + gone + gone,
		confirmation("subscribe", "a") + confirmation("subscribe", "b"), "!4\r\nPONG\r\n", "-PONG\r\n+PONG\r\n", "+QUEUED\r\n",
		">1\r\n$11\r\nunsubscribe\r\n", "|1\r\n+a\r\n+b\r\n-BUSY\r\n+PONG\r\n", "*1\r\n" + gone + ":1\r\n",
	}, streams...)
	for i, s := range seeds {
		f.Add([]byte(s), uint8(3+i%6), uint8(i%4), uint8(i%3))
		f.Add([]byte(s), uint8(4), uint8(2), uint8(0)) // behind the subscription
	}
	f.Fuzz(func(t *testing.T, b []byte, polite, late, cut uint8) {
		h := hostile{polite: int(polite) % 12, late: int(late) % 8, bytes: b, cut: int(cut), pubsub: true}
		if p := h.run(false); p != nil {
			t.Errorf("panic on the goroutine of the caller: %v", p)
		}
	})
}

package holdfast_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// fakeSentinel is a sentinel that says what it is told to.
type fakeSentinel struct {
	*redistest.Listener
	reply atomic.Pointer[string]
	asked atomic.Int64 // for the master
}

// sentinelFor is a sentinel that names this master.
func sentinelFor(t *testing.T, master string) *fakeSentinel {
	t.Helper()
	f := &fakeSentinel{}
	f.names(t, master)
	f.Listener = redistest.Respond(t, func(_ int, command []string) (string, bool) {
		switch name := strings.ToUpper(command[0]); {
		case name == "HELLO":
			return respMap("server", "redis", "version", "7.0.15", "mode", "sentinel"), true
		case name == "INFO":
			return bulk("# Server\r\nredis_version:7.0.15\r\nredis_mode:sentinel\r\nrun_id:5e471e1\r\n"), true
		case name == "PING":
			return "+PONG\r\n", true
		case name == "CLIENT", name == "AUTH":
			return "+OK\r\n", true
		case name == "ROLE":
			return "*2\r\n" + bulk("sentinel") + bulks(redistest.MasterSet), true
		case name == "SENTINEL" && len(command) == 3 && strings.EqualFold(command[1], "get-master-addr-by-name"):
			f.asked.Add(1)
			return *f.reply.Load(), true
		case name == "SENTINEL" && len(command) == 3 && strings.EqualFold(command[1], "sentinels"):
			return "*0\r\n", true
		}
		return "-ERR unknown command '" + command[0] + "'\r\n", true
	})
	return f
}

// names makes it name this master.
func (f *fakeSentinel) names(t testing.TB, master string) {
	t.Helper()
	host, port, err := net.SplitHostPort(master)
	must(t, err)
	f.says(bulks(host, port))
}

// says makes this its reply to who asks for the master.
func (f *fakeSentinel) says(reply string) { f.reply.Store(&reply) }

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

func bulks(s ...string) string {
	all := fmt.Sprintf("*%d\r\n", len(s))
	for _, b := range s {
		all += bulk(b)
	}
	return all
}

func respMap(s ...string) string {
	all := fmt.Sprintf("%%%d\r\n", len(s)/2)
	for _, b := range s {
		all += bulk(b)
	}
	return all
}

// waitError waits until the last error has one of the words.
func waitError(t *testing.T, c *holdfast.Cache, words ...string) {
	t.Helper()
	var last error
	ok := func() bool {
		last = c.Health().LastError
		return last != nil && contains(last.Error(), words...)
	}
	for over := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(over) {
			t.Fatalf("the last error names none of %q: %v; %+v", words, last, c.Health())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestSentinelsAndServersHavePasswordsOfTheirOwn(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinelWith(t, redistest.SentinelOptions{Password: "servers", SentinelPassword: "sentinels"})
	right := watched(r.Addrs()...)
	right.Redis.Password, right.Redis.Sentinel.Password = "servers", "sentinels"
	for _, tt := range []struct {
		name string
		o    func(o *holdfast.Options)
		want []string
	}{
		{"both right", func(*holdfast.Options) {}, nil},
		{"with a user and a name", func(o *holdfast.Options) {
			o.Redis.Username, o.Redis.Sentinel.Username = "default", "default"
			o.Redis.ClientName, o.Redis.Sentinel.ClientName = "ours", "ours-too"
		}, nil},
		{"wrong password of the sentinel", func(o *holdfast.Options) { o.Redis.Sentinel.Password = "servers" }, []string{"WRONGPASS"}},
		{"no password of the sentinel", func(o *holdfast.Options) { o.Redis.Sentinel.Password = "" }, []string{"NOAUTH"}},
		{"wrong password of the server", func(o *holdfast.Options) { o.Redis.Password = "sentinels" }, []string{"WRONGPASS"}},
		{"no password of the server", func(o *holdfast.Options) { o.Redis.Password = "" }, []string{"NOAUTH"}},
		{"no such master", func(o *holdfast.Options) { o.Redis.Sentinel.MasterSet = "nobody" }, []string{"nobody"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := right
			tt.o(&o)
			c := open(t, o)
			must(t, c.Set(ctx, tt.name, []byte("v"), 0))
			if tt.want == nil {
				ready(t, c)
				drain(t, c)
				if got := r.Master().MustDo("GET", tt.name); got != "v" {
					t.Errorf("the master holds %s", got)
				}
				return
			}
			waitError(t, c, tt.want...)
			h := c.Health()
			if h.State != holdfast.Connecting || h.Writable {
				t.Errorf("%+v", h)
			}
			if text := h.LastError.Error(); strings.Contains(text, `"servers"`) || strings.Contains(text, `"sentinels"`) {
				t.Errorf("a password is in the error: %v", text)
			}
			sentinelsFault := o.Redis.Password == "servers"
			if sentinelsFault && !contains(h.LastError.Error(), "sentinel") {
				t.Errorf("the error does not say that it is the sentinels': %v", h.LastError)
			}
			wantGet(t, c, tt.name, "v")
		})
	}
}

func TestASentinelByURL(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinel(t, 0)
	dead := redistest.FreeAddr(t)
	for _, url := range []string{
		"redis://" + r.Addrs()[0] + "/3?master_set=" + redistest.MasterSet + "&addr=" + r.Addrs()[1] + "&addr=" + r.Addrs()[2],
		"redis://" + dead + "?master_set=" + redistest.MasterSet + "&addr=" + r.Addrs()[2] + "&db=3",
	} {
		c, err := holdfast.Open(url)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		ready(t, c)
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		closedEmpty(t, c)
		if got := r.Master().MustDo("INFO", "keyspace"); !strings.Contains(got, "db3:") || strings.Contains(got, "db0:") {
			t.Errorf("%s: it did not write to database 3: %q", url, got)
		}
		r.Master().MustDo("FLUSHALL")
	}
}

// Options for the servers do not apply to the sentinels, nor the other way round; but a dial is
// bounded either way.
func TestSentinelsAreDialledTheirOwnWay(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	plain := sentinelFor(t, s.Addr())
	cert := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(cert.Close)
	secret := overTLS(t, plain.Addr(), cert.TLS)

	type dial struct {
		timeout time.Duration
		tls     bool
		bounded bool
	}
	var mu sync.Mutex
	seen := map[string]dial{}
	record := func(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
		_, bounded := ctx.Deadline()
		mu.Lock()
		seen[addr] = dial{d.Timeout, cfg != nil, bounded}
		mu.Unlock()
		if cfg != nil {
			return (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, "tcp", addr)
		}
		return d.DialContext(ctx, "tcp", addr)
	}
	for _, tt := range []struct {
		name     string
		sentinel string
		set      func(o *rueidis.ClientOption)
		want     dial
	}{
		{"left as it is", plain.Addr(), func(*rueidis.ClientOption) {}, dial{}},
		{"a dialer of its own", plain.Addr(), func(o *rueidis.ClientOption) {
			o.Sentinel.Dialer.Timeout = 321 * time.Millisecond
		}, dial{timeout: 321 * time.Millisecond}},
		{"tls of its own", secret, func(o *rueidis.ClientOption) {
			o.Sentinel.TLSConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
		}, dial{tls: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, own := range []bool{true, false} { // the user's dial function, and ours
				o := watched(tt.sentinel)
				if own {
					o.Redis.DialCtxFn = record
				}
				o.Redis.Dialer.Timeout = 1234 * time.Millisecond
				tt.set(&o.Redis)
				c := open(t, o)
				ready(t, c)
				must(t, c.Set(ctx, "k", []byte("v"), 0))
				closedEmpty(t, c)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := seen[s.Addr()]; got.timeout != 1234*time.Millisecond || got.tls {
				t.Errorf("the server was dialled with %+v", got)
			}
			got := seen[tt.sentinel]
			if got.tls != tt.want.tls || tt.want.timeout != 0 && got.timeout != tt.want.timeout {
				t.Errorf("the sentinel was dialled with %+v, want %+v", got, tt.want)
			}
			if got.timeout == 0 && !got.bounded {
				t.Error("a dial to a sentinel has no end")
			}
		})
	}
}

// overTLS is a TLS front of a plain listener.
func overTLS(t *testing.T, backend string, cfg *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				to, err := net.Dial("tcp", backend)
				if err != nil {
					return
				}
				defer to.Close()
				wg.Go(func() {
					io.Copy(to, c)
					to.Close()
				})
				io.Copy(c, to)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func TestASentinelThatTellsAHostnameIsBelieved(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinelWith(t, redistest.SentinelOptions{Hostnames: true})
	var dials redistest.DialCounter
	o := watched(r.Addrs()...)
	o.Redis.DialCtxFn = dials.Dial
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	if got := r.Master().MustDo("GET", "k"); got != "v" {
		t.Errorf("the master holds %s", got)
	}
	// And still is when it is asked again: the name is no other master.
	passes(t, "some polls", 1500*time.Millisecond)
	name := net.JoinHostPort("localhost", fmt.Sprint(r.Master().Port()))
	if n := len(dials.TimesTo(name)); n != 1 || c.Health().State != holdfast.Up {
		t.Errorf("%d dials to %s; %+v", n, name, c.Health())
	}
}

package holdfast_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// stranger is a server that takes any login and keeps what it was sent.
type stranger struct {
	*redistest.Listener
	logins atomic.Int64
}

func newStranger(t *testing.T) *stranger {
	s := &stranger{}
	s.Listener = redistest.Respond(t, func(_ int, args []string) (string, bool) {
		if strings.Contains(strings.Join(args, " "), "secret") {
			s.logins.Add(1)
		}
		return "-ERR nobody here\r\n", true
	})
	return s
}

// Each address that a server named was dialled, and the password went there.
func TestAnAddressThatAServerNamesGetsThePasswordOnlyIfItIsAllowed(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name  string
		allow func(string) bool
	}{
		{"refused", func(string) bool { return false }},
		{"refused by a panic", func(addr string) bool { panic("what is " + addr) }},
		{"allowed", func(string) bool { return true }},
		{"not asked", nil},
	} {
		refused := strings.HasPrefix(tt.name, "refused")
		t.Run("the map of a cluster, "+tt.name, func(t *testing.T) {
			ctx := begin(t)
			f, other := newFakeNode(t), newStranger(t)
			ours, theirs := slotsHost(f.Addr()), slotsHost(other.Addr())
			topology := func(string) string {
				return "*2\r\n*3\r\n:0\r\n:8191\r\n" + ours + "*3\r\n:8192\r\n:16383\r\n" + theirs
			}
			f.topology.Store(&topology)
			o := inCluster(f.Addr())
			o.Redis.Password, o.AllowAddress = "secret", tt.allow
			c := open(t, o)
			redistest.WaitFor(t, patience, "what became of the other shard", func() bool {
				h := c.Health()
				return len(h.Shards) == 2 && (h.Shards[0].LastError != nil || h.Shards[1].LastError != nil)
			})
			if !refused {
				redistest.WaitFor(t, patience, "a login", func() bool { return other.logins.Load() > 0 })
				return
			}
			for _, sh := range c.Health().Shards {
				if sh.Addr == f.Addr() {
					continue
				}
				if !contains(fmt.Sprint(sh.LastError), "AllowAddress") || !contains(fmt.Sprint(sh.LastError), other.Addr()) {
					t.Errorf("the other shard: %+v", sh)
				}
			}
			if n := other.Accepted(); n != 0 {
				t.Errorf("it was dialled %d times", n)
			}
			// Ours serves, and theirs is as one that is down.
			low, high := keyIn(t, 0, 8191), keyIn(t, 8192, 16383)
			redistest.WaitFor(t, patience, "our shard", func() bool {
				v, err := c.Get(ctx, low)
				return err == nil && string(v) == low
			})
			wantGet(t, c, high, "")
			must(t, c.Set(ctx, high, []byte("v"), 0))
			wantGet(t, c, high, "v")
			if n := c.Health().JournalKeys; n != 1 {
				t.Errorf("%d keys in the journal", n)
			}
		})
		for _, kind := range []string{"MOVED", "ASK"} {
			t.Run(kind+", "+tt.name, func(t *testing.T) {
				ctx := begin(t)
				f, other := newFakeNode(t), newStranger(t)
				o := inCluster(f.Addr())
				o.Redis.Password, o.AllowAddress = "secret", tt.allow
				c := open(t, o)
				ready(t, c)
				key := fmt.Sprintf("say:-%s 5 %s", kind, other.Addr())
				wantGet(t, c, key, "")
				if !refused {
					redistest.WaitFor(t, patience, "a login", func() bool {
						c.Get(ctx, key)
						return other.logins.Load() > 0
					})
					return
				}
				for range 50 {
					wantGet(t, c, key, "")
				}
				wantGet(t, c, "fine", "fine")
				if n := other.Accepted(); n != 0 {
					t.Errorf("it was dialled %d times", n)
				}
				if err := c.Health().LastError; !contains(fmt.Sprint(err), "AllowAddress") || !contains(fmt.Sprint(err), other.Addr()) {
					t.Errorf("last error: %v", err)
				}
			})
		}
		t.Run("a sentinel's master, "+tt.name, func(t *testing.T) {
			begin(t)
			other := newStranger(t)
			o := at(sentinelFor(t, other.Addr()).Addr())
			o.Redis.Sentinel.MasterSet = redistest.MasterSet
			o.Redis.Password, o.AllowAddress = "secret", tt.allow
			c := open(t, o)
			redistest.WaitFor(t, patience, "a failed attempt", func() bool { return c.Health().LastError != nil })
			if !refused {
				redistest.WaitFor(t, patience, "a login", func() bool { return other.logins.Load() > 0 })
				return
			}
			if err := c.Health().LastError; !contains(err.Error(), "AllowAddress") || !contains(err.Error(), other.Addr()) {
				t.Errorf("last error: %v", err)
			}
			if n := other.Accepted(); n != 0 {
				t.Errorf("it was dialled %d times", n)
			}
		})
	}
}

// slotsHost is a node in the reply of CLUSTER SLOTS.
func slotsHost(addr string) string {
	host, port, _ := strings.Cut(addr, ":")
	return fmt.Sprintf("*3\r\n%s:%s\r\n%s", bulk(host), port, bulk(strings.Repeat("b", 40)))
}

// keyIn is a key whose slot is in the range.
func keyIn(t *testing.T, from, to int) string {
	t.Helper()
	for i := range 1000 {
		key := fmt.Sprint("key", i)
		if slot := redistest.Slot(key); from <= slot && slot <= to {
			return key
		}
	}
	t.Fatal("no such key")
	return ""
}

// New refused a database in a cluster, which Valkey 9 has; the server says whether
// there is one.
func TestTheServerSaysWhetherAClusterHasTheDatabase(t *testing.T) {
	begin(t)
	f := newFakeNode(t) // it takes SELECT
	o := inCluster(f.Addr())
	o.Mode, o.Redis.SelectDB = holdfast.ModeCluster, 3
	c := open(t, o)
	ready(t, c)
	wantGet(t, c, "k", "k")
}

// authority signs the certificates of a test.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	a.pool.AddCert(a.cert)
	return a
}

// serve listens with TLS and a certificate for this host alone, on a port whose
// connections go on to backend. It returns the port.
func (a *authority) serve(host, backend string) (port string) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(a.t, err)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	must(a.t, err)
	var all sync.WaitGroup
	a.t.Cleanup(func() { ln.Close(); all.Wait() })
	all.Go(func() {
		for {
			front, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer front.Close()
				back, err := net.Dial("tcp", backend)
				if err != nil {
					return
				}
				defer back.Close()
				all.Go(func() { io.Copy(back, front); back.Close() })
				io.Copy(front, back)
			})
		}
	})
	_, port, err = net.SplitHostPort(ln.Addr().String())
	must(a.t, err)
	return port
}

// The URL's host was what the certificates of all nodes had to be for.
func TestEachNodeOfATLSURLMayHaveACertificateOfItsOwn(t *testing.T) {
	beside(t)
	options := func(t *testing.T, a *authority, url string) holdfast.Options {
		r, err := rueidis.ParseURL(url)
		must(t, err)
		r.TLSConfig.RootCAs = a.pool
		return holdfast.Options{Redis: r}
	}
	t.Run("several addresses", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		f := newFakeNode(t)
		gone := redistest.FreeAddr(t)
		_, gonePort, _ := net.SplitHostPort(gone)
		port := a.serve("127.0.0.1", f.Addr())
		topology := func(string) string { return slotsReply(0, 16383, "127.0.0.1", port) }
		f.topology.Store(&topology)
		o := options(t, a, "rediss://localhost:"+gonePort+"?addr=127.0.0.1:"+port)
		c := open(t, o)
		ready(t, c)
	})
	t.Run("a cluster found by one address", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		f := newFakeNode(t)
		first, node := a.serve("localhost", f.Addr()), a.serve("127.0.0.1", f.Addr())
		topology := func(string) string { return slotsReply(0, 16383, "127.0.0.1", node) }
		f.topology.Store(&topology)
		ready(t, open(t, options(t, a, "rediss://localhost:"+first)))
	})
	t.Run("a cluster that names its nodes by number and has one name", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		f := newFakeNode(t)
		first, node := a.serve("localhost", f.Addr()), a.serve("localhost", f.Addr())
		topology := func(string) string { return slotsReply(0, 16383, "127.0.0.1", node) }
		f.topology.Store(&topology)
		ready(t, open(t, options(t, a, "rediss://localhost:"+first)))
	})
	t.Run("the master that a sentinel knows", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		s := redistest.Start(t)
		_, sentinel, _ := net.SplitHostPort(sentinelFor(t, "127.0.0.1:"+a.serve("127.0.0.1", s.Addr())).Addr())
		ready(t, open(t, options(t, a, "rediss://localhost:"+sentinel+"?master_set="+redistest.MasterSet)))
	})
	t.Run("a name that the user gave holds for all", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		f := newFakeNode(t)
		right, wrong := a.serve("redis.test", f.Addr()), a.serve("127.0.0.1", f.Addr())
		var port atomic.Pointer[string]
		port.Store(&wrong)
		topology := func(string) string { return slotsReply(0, 16383, "127.0.0.1", *port.Load()) }
		f.topology.Store(&topology)
		o := options(t, a, "rediss://localhost:"+right)
		o.Redis.TLSConfig.ServerName = "redis.test"
		c := open(t, o)
		redistest.WaitFor(t, patience, "a certificate of another name to be refused", func() bool {
			h := c.Health()
			return len(h.Shards) > 0 && contains(fmt.Sprint(h.Shards[0].LastError), "certificate")
		})
		port.Store(&right)
		ready(t, c)
	})
	t.Run("a certificate for neither name is refused", func(t *testing.T) {
		begin(t)
		a := newAuthority(t)
		f := newFakeNode(t)
		first, node := a.serve("localhost", f.Addr()), a.serve("elsewhere.test", f.Addr())
		topology := func(string) string { return slotsReply(0, 16383, "127.0.0.1", node) }
		f.topology.Store(&topology)
		c := open(t, options(t, a, "rediss://localhost:"+first))
		redistest.WaitFor(t, patience, "the refusal", func() bool {
			h := c.Health()
			return len(h.Shards) > 0 && contains(fmt.Sprint(h.Shards[0].LastError), "certificate")
		})
		// Nor is one that nobody whom we trust has signed.
		other := newAuthority(t)
		c = open(t, options(t, other, "rediss://127.0.0.1:"+first))
		redistest.WaitFor(t, patience, "the refusal", func() bool { return contains(fmt.Sprint(c.Health().LastError), "certificate") })
	})
	t.Run("a dial function is told the node's own name", func(t *testing.T) {
		begin(t)
		var names sync.Map
		o := options(t, newAuthority(t), "rediss://one.test:1?addr=two.test:2")
		o.Redis.DialCtxFn = func(_ context.Context, addr string, _ *net.Dialer, cfg *tls.Config) (net.Conn, error) {
			names.Store(addr, cfg.ServerName)
			return nil, io.ErrUnexpectedEOF
		}
		c := open(t, o)
		for addr, want := range map[string]string{"one.test:1": "one.test", "two.test:2": "two.test"} {
			redistest.WaitFor(t, patience, "a dial of "+addr, func() bool { _, ok := names.Load(addr); c.Get(context.Background(), "k"); return ok })
			if got, _ := names.Load(addr); got != want {
				t.Errorf("%s: server name %q", addr, got)
			}
		}
	})
}

// A cluster of servers that play others, in front of a real one.
func TestAClusterOfEachMakeServesItsKeys(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	r := redistest.StartCluster(t, 1, 0)
	node := r.Nodes()[0]
	for _, tt := range []struct {
		make  string
		db    int
		rules []redistest.Rule
		down  string // what LastError says; "" where it is used
	}{
		{make: "Redis 5.0"},
		{make: "Redis 6.0"},
		{make: "Redis 7.0"},
		{make: "Redis 7.0", db: 3, down: "SELECT"},
		{make: "Valkey 8"},
		{make: "Valkey 8", db: 3, down: "SELECT"},
		{make: "Valkey 9", db: 3},
		{make: "Redis 7.0", rules: turnAway(redistest.Unknown, []string{"INFO"})},
		{make: "Redis 7.0", rules: turnAway(redistest.Unknown, []string{"HELLO"})},
		{make: "Redis 7.0", rules: turnAway(redistest.Says, []string{"HELLO"})},
		{make: "Redis 7.0", rules: turnAway(redistest.Denied, []string{"CLUSTER"}), down: "NOPERM"},
	} {
		t.Run(fmt.Sprint(tt.make, " ", tt.db, tt.rules), func(t *testing.T) {
			f := redistest.NewFilter(t, node.Addr(), makeOf(t, tt.make), tt.rules...)
			o := inCluster(node.Addr())
			o.Redis.SelectDB = tt.db
			o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
				if addr != node.Addr() {
					t.Errorf("%s is dialled", addr)
				}
				return d.DialContext(ctx, "tcp", f.Addr())
			}
			c := open(t, o)
			if tt.down != "" {
				redistest.WaitFor(t, patience, "the refusal", func() bool { return contains(fmt.Sprint(c.Health().LastError), tt.down) })
				return
			}
			ready(t, c)
			key := fmt.Sprint(tt)
			must(t, c.Set(ctx, key, []byte("v"), time.Hour))
			wantGet(t, c, key, "v")
			if got := node.MustDo("GET", key); got != "v" {
				t.Errorf("redis has %q", got)
			}
			if len(c.Health().Shards) != 1 {
				t.Errorf("health %+v", c.Health())
			}
		})
	}
}

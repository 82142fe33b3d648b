package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// MasterSet is the name under which a Sentinel rig watches its master.
	MasterSet = "holdfast"

	sentinelCount  = 3
	sentinelQuorum = 2
	// topologyWithin bounds how long a sentinel group or cluster takes to form.
	topologyWithin = 60 * time.Second
)

// SentinelOptions configures a Sentinel rig. The zero value is a master without replicas
// and without passwords.
type SentinelOptions struct {
	// Replicas is the number of replicas at the start.
	Replicas int
	// Password is the password of the servers, for clients and for each other.
	Password string
	// SentinelPassword is the password of the sentinels.
	SentinelPassword string
	// MasterProxy puts a proxy in front of the first master: sentinels and replicas know
	// only the proxy's address.
	MasterProxy bool
	// ForSmoke is for the one test of sentinels that runs always.
	ForSmoke bool
	// Hostnames has the sentinels tell the master as localhost.
	Hostnames bool
}

// Sentinel is a master with replicas, watched by three sentinels.
type Sentinel struct {
	tb        testing.TB
	servers   []*Server
	sentinels []*Server
	proxy     *Proxy
}

// StartSentinel runs one master, the given number of replicas, and three
// sentinels that take a master for dead after 500 ms, fail over when two of
// them agree, and allow a failover 2 seconds. It returns when the replicas are
// in sync and every sentinel knows the others and the replicas, usually after a
// second; after a minute it fails the test. Everything ends with the test, which is a
// long one: see Long.
func StartSentinel(tb testing.TB, replicas int) *Sentinel {
	tb.Helper()
	return StartSentinelWith(tb, SentinelOptions{Replicas: replicas})
}

// StartSentinelWith is StartSentinel with options. It blocks for the same time.
func StartSentinelWith(tb testing.TB, o SentinelOptions) *Sentinel {
	tb.Helper()
	need(tb)
	if !o.ForSmoke {
		Long(tb)
	}
	r := &Sentinel{tb: tb}
	serverArgs := append([]string(nil), replicationArgs...)
	if o.Password != "" {
		serverArgs = append(serverArgs, "--requirepass", o.Password, "--masterauth", o.Password)
	}
	master := Start(tb, serverArgs...)
	r.servers = append(r.servers, master)
	masterAddr := master.Addr()
	if o.MasterProxy {
		r.proxy = NewProxy(tb, masterAddr)
		masterAddr = r.proxy.Addr()
	}
	host, port, err := net.SplitHostPort(masterAddr)
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	for range o.Replicas {
		args := append([]string{"--replicaof", host + " " + port}, serverArgs...)
		r.servers = append(r.servers, Start(tb, args...))
	}
	// Sentinels ask a new master for its replicas at once and then only every ten
	// seconds, so the replicas come first.
	r.await("the replicas to be in sync", func() error { return inSync(master, r.servers[1:]) })
	if o.Hostnames {
		host = "localhost"
	}
	var args []string
	if o.SentinelPassword != "" {
		args = []string{"--requirepass", o.SentinelPassword}
	}
	for range sentinelCount {
		s := start(tb, sentinelBase(host, port, o), args)
		r.sentinels = append(r.sentinels, s)
		// The group forms by messages that are two seconds apart by default. A sentinel
		// that was not scheduled for two seconds, as happens on a loaded machine, would
		// do nothing for the next thirty. And it first pings a new master one period
		// after it has heard of it: if that period were as long as its timeout, it would
		// consider each new master dead.
		if pace, err := since7("pace"); err != nil || len(pace) == 0 {
			continue // older ones have fixed periods
		}
		s.MustDo("SENTINEL", "DEBUG", "PUBLISH-PERIOD", "200", "INFO-PERIOD", "500", "PING-PERIOD", "100", "TILT-PERIOD", "1000")
	}
	r.await("the sentinels to know each other", func() error {
		for _, s := range r.sentinels {
			if err := sentinelComplete(s, o.Replicas); err != nil {
				return err
			}
		}
		return nil
	})
	return r
}

// sentinelBase writes the configuration file. A sentinel requires one and keeps its state
// in it over a restart.
func sentinelBase(masterHost, masterPort string, o SentinelOptions) func(dir string, port int) ([]string, error) {
	return func(dir string, port int) ([]string, error) {
		file := filepath.Join(dir, "sentinel.conf")
		var conf strings.Builder
		fmt.Fprintf(&conf, "port %d\nbind 127.0.0.1\ndir %q\n", port, dir)
		if o.Hostnames { // must come before the first name
			conf.WriteString("sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n")
		}
		fmt.Fprintf(&conf, `sentinel monitor %[1]s %[2]s %[3]s %[4]d
sentinel down-after-milliseconds %[1]s 500
sentinel failover-timeout %[1]s 2000
sentinel parallel-syncs %[1]s 1
`, MasterSet, masterHost, masterPort, sentinelQuorum)
		if o.Password != "" {
			fmt.Fprintf(&conf, "sentinel auth-pass %s %s\n", MasterSet, o.Password)
		}
		return []string{file, "--sentinel"}, os.WriteFile(file, []byte(conf.String()), 0o600)
	}
}

func (r *Sentinel) await(what string, check func() error) {
	r.tb.Helper()
	await(r.tb, what, append(append([]*Server(nil), r.servers...), r.sentinels...), check)
}

// await polls check. If check fails for topologyWithin, it fails the test with the logs
// of all servers.
func await(tb testing.TB, what string, servers []*Server, check func() error) {
	tb.Helper()
	var last error
	if poll(topologyWithin, func() bool { last = check(); return last == nil }) {
		return
	}
	var logs strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&logs, "%s: %s\n", s.Addr(), s.log())
	}
	tb.Fatalf("redistest: waited %v for %s: %v\n%s", topologyWithin, what, last, &logs)
}

// sentinelComplete returns nil if a sentinel knows all other sentinels and the replicas.
func sentinelComplete(s *Server, replicas int) error {
	out, err := s.call("SENTINEL", "MASTER", MasterSet)
	if err != nil {
		return err
	}
	want := map[string]string{
		"flags":               "master",
		"num-other-sentinels": strconv.Itoa(sentinelCount - 1),
		"num-slaves":          strconv.Itoa(replicas),
	}
	fields := out.strings()
	for i := 0; i+1 < len(fields); i += 2 {
		if w, ok := want[fields[i]]; ok && w != fields[i+1] {
			return fmt.Errorf("sentinel %s: %s is %s, want %s", s.Addr(), fields[i], fields[i+1], w)
		}
	}
	_, err = s.call("SENTINEL", "CKQUORUM", MasterSet)
	return err
}

// Addrs returns the addresses of the sentinels. It does not block.
func (r *Sentinel) Addrs() []string { return addrs(r.sentinels) }

func addrs(servers []*Server) []string {
	out := make([]string, len(servers))
	for i, s := range servers {
		out[i] = s.Addr()
	}
	return out
}

// Sentinels returns the three sentinels. A restarted sentinel sends messages at the
// default, slower pace from then on. It does not block.
func (r *Sentinel) Sentinels() []*Server { return append([]*Server(nil), r.sentinels...) }

// Servers returns the first master and then the replicas, in the order they were started,
// regardless of their present roles. It does not block.
func (r *Sentinel) Servers() []*Server { return append([]*Server(nil), r.servers...) }

// MasterProxy returns the proxy in front of the first master, if there is one.
// It does not block.
func (r *Sentinel) MasterProxy() *Proxy { return r.proxy }

// at returns the server that the sentinels know by this address, or nil.
func (r *Sentinel) at(host, port string) *Server {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr := net.JoinHostPort(host, port)
	if r.proxy != nil && addr == r.proxy.Addr() {
		return r.servers[0]
	}
	for _, s := range r.servers {
		if s.Addr() == addr {
			return s
		}
	}
	return nil
}

// Master returns the present master according to the first sentinel that runs and
// answers; during a failover that is the old one. It blocks for at most 5 seconds per
// sentinel.
func (r *Sentinel) Master() *Server {
	r.tb.Helper()
	last := fmt.Errorf("no sentinel is running")
	for _, s := range r.sentinels {
		if !s.responsive() {
			continue
		}
		var out respReply
		if out, last = s.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MasterSet); last != nil {
			continue
		}
		hostPort := out.strings()
		if len(hostPort) != 2 {
			last = fmt.Errorf("sentinel %s knows no master: %s", s.Addr(), out)
			continue
		}
		if m := r.at(hostPort[0], hostPort[1]); m != nil {
			return m
		}
		last = fmt.Errorf("sentinel %s says master is %q, which is none of this rig", s.Addr(), hostPort)
	}
	r.tb.Fatalf("redistest: asking for the master: %v", last)
	return nil
}

//go:build unix

package holdfast_test

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A process was stopped (SIGSTOP, a debugger, a laptop's lid) for five seconds, and the
// path fell silent meanwhile. The supervisor noticed once it ran again: until then, for
// 350 to 450 ms, what others had written in the gap was served as fresh.
func TestAProcessThatStoodStillServesNothingAsFreshThatItCouldNotHearAbout(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for _, tt := range []struct {
		name string
		mode redistest.Mode // of the path, from when the process stands still

		prefixes []string
		cluster  bool
	}{
		{name: "the path is silent", mode: redistest.Hang},
		{name: "the path is well", mode: redistest.Pass},
		{name: "the path is silent, and prefixes are tracked", mode: redistest.Hang, prefixes: []string{"k"}},
		{name: "the path to a cluster is silent", mode: redistest.Hang, cluster: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin(t)
			var s *redistest.Server
			var p *redistest.Proxy
			if tt.cluster {
				r := redistest.StartCluster(t, 1, 0)
				s = r.Nodes()[0]
				p = redistest.NewProxy(t, s.Addr())
				_, port, _ := net.SplitHostPort(p.Addr())
				r.Configure("cluster-announce-port", port)
			} else {
				s, p = behind(t)
			}
			v := startVictim(t, victimOptions{Addr: p.Addr(), Defaults: true, Prefixes: tt.prefixes})
			v.restored()
			s.MustDo("SET", "k", "one")
			redistest.WaitFor(t, patience, "the victim to be up", func() bool {
				return contains(v.do("health"), "up") && v.do("get", "k") == "value one"
			})
			v.do("watch", "k", "one")
			redistest.WaitFor(t, patience, "hits", func() bool { return v.do("gap") != "false 0" })

			must(t, v.cmd.Process.Signal(syscall.SIGSTOP))
			stopped := time.Now()
			p.SetMode(tt.mode)
			s.MustDo("SET", "k", "two")
			elapsed(t, "the victim stands still", stopped, 5*time.Second)
			must(t, v.cmd.Process.Signal(syscall.SIGCONT))
			elapsed(t, "reads afterwards", time.Now(), time.Second)

			var gap bool
			var stale time.Duration // in nanoseconds
			if _, err := fmt.Sscanf(v.do("gap"), "%t %d", &gap, &stale); err != nil || !gap {
				t.Fatalf("the victim did not stand still: %v", err)
			}
			t.Logf("stale for %v after the process went on", stale)
			if stale > 100*time.Millisecond+lateness() {
				t.Errorf("what was replaced while the process stood still was served as fresh for %v", stale)
			}
		})
	}
}

package holdfast

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Redis was lost while one process loaded. The server could not announce the end of the lease to
// the other processes any more, and they waited for all of it: three seconds by default.
func TestAProcessThatWaitsForALeaseLoadsAtOnceWhenRedisIsLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*redistest.Server){
		"killed": (*redistest.Server).Kill,
		"hung":   (*redistest.Server).Pause,
		"flushed": func(s *redistest.Server) {
			s.MustDo("FLUSHALL")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			o := fleetOptions(s)
			o.Load.Lease = 10 * time.Minute
			if name == "hung" {
				// A question that is not answered within the budget leads to a load without a lease,
				// for which nobody waits. So the budget is large, and one probe opens the circuit.
				o.Breaker.Failures = 1
			}
			cs := fleet(t, 3, o)
			began, let := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				cs[0].GetOrLoad(context.Background(), "k", time.Hour, func(context.Context) ([]byte, error) {
					close(began)
					<-let
					return []byte("v"), nil
				})
			})
			<-began
			// A minute is what a busy machine may need, and far from the lease's ten.
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var others sync.WaitGroup
			for _, c := range cs[1:] {
				others.Go(func() {
					v, err := c.GetOrLoad(ctx, "k", time.Hour, func(context.Context) ([]byte, error) {
						return []byte("v"), nil
					})
					if err != nil || string(v) != "v" {
						t.Errorf("%q, %v", v, err)
					}
				})
			}
			for _, c := range cs[1:] {
				redistest.WaitFor(t, time.Minute, "the others to wait", func() bool { return c.Stats().LeaseWaits > 0 })
			}
			lose(s)
			others.Wait()
			close(let)
			wg.Wait()
		})
	}
}

package holdfast_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/holdfast-cache/holdfast"
)

// A server that nobody uses refuses writes for a moment, as in a failover, and Health said
// so for up to a minute after: a readiness check kept the process out for as long. It is
// looked for again by a back-off that only grows to a minute, as where it was lost.
func TestHealthOfAServerThatNobodyUsesSaysSoonThatItTakesWritesAgain(t *testing.T) {
	for name, refusal := range map[string]string{
		"READONLY": "READONLY You can't write against a read only replica.",
		"MISCONF":  "MISCONF Errors writing to the disk",
		"OOM":      "OOM command not allowed when used memory > 'maxmemory'.",
		"words":    "ERR writes are off for maintenance",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVirtual(t)
				c := open(t, v.options())
				ready(t, c)
				var refuses atomic.Bool
				v.redis.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
					if refuses.Load() && cmd == "SET" {
						p.WriteError(refusal)
						return true
					}
					return false
				})
				for _, hold := range []time.Duration{0, time.Minute} { // in use yet, and long unused
					time.Sleep(hold)
					refuses.Store(true)
					began := time.Now()
					for c.Health().State == holdfast.Up {
						if time.Since(began) > time.Minute+time.Second {
							t.Fatal("not noticed within a minute")
						}
						time.Sleep(10 * time.Millisecond)
					}
					time.Sleep(5 * time.Second)
					refuses.Store(false)
					began = time.Now()
					for c.Health().State != holdfast.Up {
						time.Sleep(10 * time.Millisecond)
						if time.Since(began) > 10*time.Second {
							t.Fatalf("after %v unused: %+v", hold, c.Health())
						}
					}
				}
				// And a lasting refusal is looked at once a minute.
				refuses.Store(true)
				time.Sleep(20 * time.Minute)
				before := len(v.times())
				time.Sleep(time.Hour)
				if n := len(v.times()) - before; n > 75 {
					t.Errorf("%d dials in an hour", n)
				}
				refuses.Store(false)
				time.Sleep(time.Minute + time.Second)
				if h := c.Health(); h.State != holdfast.Up {
					t.Errorf("%+v", h)
				}
			})
		})
	}
}

package holdfast

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/flight"
)

// A flight that a Refresh shares may be of a GetOrLoad, and end with a value of the tiers.
func TestARefreshIsNotAnsweredByTheTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h := c.local.Hash("k")
		board := func() *flight.Flight[Entry] {
			f, role, err := c.flights.Join(h, flight.NewRun[Entry](), nil)
			if err != nil || role != flight.Leader {
				t.Fatalf("%v, %v", role, err)
			}
			return f
		}
		older := board()
		asked := 0
		done := make(chan string, 1)
		go func() {
			v, err := c.Refresh(context.Background(), "k", time.Hour, func(context.Context) ([]byte, error) {
				asked++
				return []byte("loaded"), nil
			})
			if err != nil {
				t.Error(err)
			}
			done <- string(v)
		}()
		synctest.Wait() // for the load that began before it
		c.flights.Supersede(h)
		younger := board()
		c.flights.End(older, Entry{Value: []byte("older"), Tier: Loader}, nil, 0)
		synctest.Wait() // for the one that began after it
		if asked != 0 {
			t.Error("two loads at once")
		}
		c.flights.End(younger, Entry{Value: []byte("found"), Tier: Local}, nil, 0)
		if v := <-done; v != "loaded" || asked != 1 {
			t.Errorf("%q, and the loader was asked %d times", v, asked)
		}
	})
}

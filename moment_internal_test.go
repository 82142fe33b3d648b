package holdfast

import (
	"context"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// A call looks at the gate, finds it closed, and asks for the window. If the attempt was
// decided between the two, there is nothing to wait for, and a session to use: TTL right
// after New got ErrUnavailable, once in some hundred runs.
func TestACallThatFoundNoSessionLooksAgainWhereThereIsOneByNow(t *testing.T) {
	m := miniredis.RunT(t)
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{m.Addr()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, first := range []bool{true, false} {
		if !c.remote.AwaitKey(ctx, c.clock.Now(), first, "k") {
			t.Error("it does not look again")
		}
	}
}

package holdfast_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A SET by itself does not become a pipeline; its replies and errors are those of one.
func TestASetOfTheDropInIsAnsweredAsInABatch(t *testing.T) {
	ctx := begin(t)
	s := redistest.NewInjector(t, redistest.Start(t).Addr())
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	for _, args := range [][]string{
		{"SET", "k", "v"}, {"set", "k", "v", "px", "100000"}, {"SETEX", "k", "100", "v"}, {"PSETEX", "k", "100000", "v"},
	} {
		cmd := func() rueidis.Completed { return cl.B().Arbitrary(args...).Build() }
		both := func(ctx context.Context, what string, same func(single, batch error) bool) {
			t.Helper()
			single, batch := cl.Do(ctx, cmd()), cl.DoMulti(ctx, cmd(), cl.B().Get().Key("other").Build())[0]
			said, _ := single.ToString()
			if want, _ := batch.ToString(); said != want || !same(single.Error(), batch.Error()) {
				t.Errorf("%q, %s: %q, %v; in a batch %q, %v", args, what, said, single.Error(), want, batch.Error())
			}
		}
		equal := func(single, batch error) bool { return single == batch }
		both(ctx, "stored", equal)
		if v, err := c.Get(ctx, "k"); string(v) != "v" || err != nil {
			t.Errorf("%q: %q, %v", args, v, err)
		}
		s.Answer(func(cmd []string) string {
			if len(cmd) > 1 && cmd[1] == "k" {
				return "ERR value is not an integer or out of range"
			}
			return ""
		})
		both(ctx, "refused", func(single, batch error) bool {
			var said *rueidis.RedisError
			return errors.As(single, &said) && single.Error() == batch.Error()
		})
		s.Answer(nil)
		over, cancel := context.WithCancel(ctx)
		cancel()
		both(over, "of a context that has ended", equal)
		both(nil, "without a context", equal) //nolint:staticcheck // a caller's mistake
	}
	ended := c.Client()
	ended.Close()
	if err := ended.Do(ctx, ended.B().Set().Key("k").Value("w").Build()).Error(); err != rueidis.ErrClosing {
		t.Errorf("a view that is closed: %v", err)
	}
	must(t, c.Close())
	if err := cl.Do(ctx, cl.B().Set().Key("k").Value("w").Build()).Error(); err != holdfast.ErrClosed {
		t.Errorf("a Cache that is closed: %v", err)
	}
}

// The key and the value of a command may lie in memory that the caller uses again.
func TestASetOfTheDropInKeepsNothingOfItsCommand(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	cl := c.Client()
	key, value := []byte("k"), []byte("v")
	must(t, cl.Do(ctx, cl.B().Set().Key(rueidis.BinaryString(key)).Value(rueidis.BinaryString(value)).Ex(time.Hour).Build()).Error())
	key[0], value[0] = 'x', 'x'
	if v, err := c.Get(ctx, "k"); string(v) != "v" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}

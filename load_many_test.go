package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
)

func TestABatchLoadsWhatIsMissingInOneCall(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		must(t, c.Set(ctx, "local", []byte("l"), 0))
		b.set("remote", "r")
		var calls [][]string
		load := func(_ context.Context, keys []string) (map[string][]byte, error) {
			calls = append(calls, keys)
			m := map[string][]byte{"unasked": []byte("u"), "nil": nil}
			for _, k := range keys {
				if strings.HasPrefix(k, "m") {
					m[k] = []byte("v" + k)
				}
			}
			return m, nil
		}
		keys := []string{"m1", "local", "m2", "remote", "m1", "none", "nil", "m2"}
		for range 3 {
			got, err := c.GetOrLoadMany(ctx, keys, time.Hour, load)
			if err != nil || len(got) != 5 || string(got["m1"]) != "vm1" || string(got["local"]) != "l" || string(got["remote"]) != "r" || got["nil"] == nil {
				t.Errorf("%q, %v", got, err)
			}
		}
		if fmt.Sprint(calls) != "[[m1 m2 none nil]]" {
			t.Errorf("calls for %v", calls)
		}
		wantGet(t, c, "unasked", "")
		wantGet(t, c, "m2", "vm2")
		if got, _ := b.get("m1"); got != "vm1" {
			t.Errorf("redis holds %q", got)
		}
		if got, err := c.GetOrLoadMany(ctx, nil, 0, load); err != nil || len(got) != 0 {
			t.Errorf("no keys: %v, %v", got, err)
		}
	})
}

func TestBatchesAndSingleLoadsShareTheirKeys(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		var mu sync.Mutex
		asked := map[string]int{}
		many := func(_ context.Context, keys []string) (map[string][]byte, error) {
			mu.Lock()
			for _, k := range keys {
				asked[k]++
			}
			mu.Unlock()
			time.Sleep(time.Second)
			m := map[string][]byte{}
			for _, k := range keys {
				m[k] = []byte(k)
			}
			return m, nil
		}
		one := func(key string) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				m, err := many(ctx, []string{key})
				return m[key], err
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { c.GetOrLoad(ctx, "b", 0, one("b")) })
		synctest.Wait()
		for _, keys := range [][]string{{"a", "b"}, {"b", "c", "a"}, {"c", "d"}} {
			wg.Go(func() {
				got, err := c.GetOrLoadMany(ctx, keys, 0, many)
				if err != nil || len(got) != len(keys) {
					t.Errorf("%v: %q, %v", keys, got, err)
				}
				for k, v := range got {
					if string(v) != k {
						t.Errorf("%s is %q", k, v)
					}
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			if got, err := c.GetOrLoad(ctx, "d", 0, one("d")); err != nil || string(got) != "d" {
				t.Errorf("d: %q, %v", got, err)
			}
		})
		wg.Wait()
		for k, n := range asked {
			if n != 1 {
				t.Errorf("%s was asked for %d times", k, n)
			}
		}
		if st := c.Stats(); len(asked) != 4 || st.LoadsShared == 0 {
			t.Errorf("asked %v, shared %d", asked, st.LoadsShared)
		}
	})
}

func TestABatchThatFailsReturnsWhatWasFound(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{StaleIfError: time.Hour}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		boom := errors.New("boom")
		must(t, c.Set(ctx, "there", []byte("t"), 0))
		must(t, c.Set(ctx, "stale", []byte("s"), time.Second))
		time.Sleep(2 * time.Second)
		fail := func(context.Context, []string) (map[string][]byte, error) {
			return map[string][]byte{"half": []byte("h")}, boom
		}
		got, err := c.GetOrLoadMany(ctx, []string{"there", "stale", "half", "x", "y"}, 0, fail)
		if !errors.Is(err, boom) || fmt.Sprintf("%s", got) != "map[half:h stale:s there:t]" || strings.Count(err.Error(), "boom") != 1 {
			t.Errorf("%s, %v", got, err)
		}
		got, err = c.GetOrLoadMany(ctx, []string{"there", "p"}, 0, func(context.Context, []string) (map[string][]byte, error) { panic(boom) })
		if !errors.Is(err, boom) || len(got) != 1 {
			t.Errorf("%s, %v", got, err)
		}
		wantGet(t, c, "half", "h")
		// The caller leaves.
		few, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		got, err = c.GetOrLoadMany(few, []string{"there", "z"}, 0, func(ctx context.Context, _ []string) (map[string][]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if err != context.DeadlineExceeded || !bytes.Equal(got["there"], []byte("t")) {
			t.Errorf("%s, %v", got, err)
		}
		wantLoad(t, c, "z", 0, newSource("v"), "v")
	})
}

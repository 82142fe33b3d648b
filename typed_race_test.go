package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// stamped is a value that says under which key it was stored, as which version, and
// which codec made it.
type stamped struct {
	key     string
	version uint64
	by      string
}

// stamps is a Codec that reads only what it wrote itself.
func stamps(mark string) holdfast.Codec[stamped] {
	return holdfast.CodecFuncs(
		func(v stamped) ([]byte, error) { return fmt.Appendf(nil, "%s:%s:%d", mark, v.key, v.version), nil },
		func(b []byte) (v stamped, err error) {
			parts := strings.Split(string(b), ":")
			if len(parts) != 3 || parts[0] != mark {
				return v, errors.New("another's")
			}
			v.version, err = strconv.ParseUint(parts[2], 10, 64)
			v.key, v.by = parts[1], mark
			return v, err
		})
}

// Two Typed with codecs that cannot read each other share keys with plain Sets of a
// third. What one reads must have been stored under that key, by its own codec, and be
// no older than the last write that had returned: a decoded value that outlived its
// bytes would be.
func TestADecodedValueIsNeverServedForOtherBytes(t *testing.T) {
	beside(t)
	for name, options := range map[string]func(t *testing.T) holdfast.Options{
		"local only": func(*testing.T) holdfast.Options { return holdfast.Options{} },
		"tiny": func(*testing.T) holdfast.Options {
			return holdfast.Options{Local: holdfast.LocalOptions{MaxBytes: 64 << 10}}
		},
		"redis": func(t *testing.T) holdfast.Options {
			o := at(redistest.Start(t).Addr())
			o.Timeout = 10 * time.Second
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			c := open(t, options(t))
			if name == "redis" {
				ready(t, c)
			}
			stress(t, ctx, c, 2000*roundsFactor(t))
		})
	}
}

func stress(t *testing.T, ctx context.Context, c *holdfast.Cache, rounds int) {
	type slot struct {
		mu      sync.Mutex
		version uint64
		floor   atomic.Uint64 // the last write that returned
		issued  atomic.Uint64 // the last write that began
	}
	var slots [4]slot
	marks := []string{"a", "b"}
	typed := []*holdfast.Typed[stamped]{
		holdfast.NewTyped(c, stamps("a")),
		holdfast.NewTyped(c, stamps("b")).WithClone(func(v stamped) stamped { return v }),
	}
	var hits atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(g)))
			for range rounds {
				k, as := rnd.IntN(len(slots)), rnd.IntN(2)
				s, key := &slots[k], "key"+strconv.Itoa(k)
				check := func(op string, floor uint64, v stamped, err error) {
					switch {
					case err == nil && (v.key != key || v.by != marks[as] || v.version < floor || v.version > s.issued.Load()):
						t.Errorf("%s %s by %s: %+v; written are %d to %d", op, key, marks[as], v, floor, s.issued.Load())
					case err == nil:
						hits.Add(1)
					case !errors.Is(err, holdfast.ErrMiss):
						t.Errorf("%s: %v", op, err)
					}
				}
				floor := s.floor.Load()
				switch rnd.IntN(8) {
				case 0:
					s.mu.Lock()
					s.version++
					s.issued.Store(s.version)
					v := stamped{key: key, version: s.version}
					var err error
					switch rnd.IntN(4) {
					case 0:
						b, _ := stamps(marks[as]).Encode(v)
						err = c.Set(ctx, key, b, time.Hour)
					case 1:
						err = c.Set(ctx, key, []byte("neither's"), time.Hour)
					default:
						err = typed[as].Set(ctx, key, v, time.Hour)
					}
					if err != nil {
						t.Errorf("set: %v", err)
					}
					s.floor.Store(s.version)
					s.mu.Unlock()
				case 1:
					v, err := typed[as].GetOrLoad(ctx, key, time.Hour, func(context.Context) (stamped, error) {
						// As of a source of truth that is written before the cache.
						return stamped{key: key, version: s.issued.Load()}, nil
					})
					check("getorload", floor, v, err)
				case 2:
					many, err := typed[as].GetMany(ctx, key)
					if v, ok := many[key]; ok || err != nil {
						check("getmany", floor, v, err)
					}
				default:
					v, err := typed[as].Get(ctx, key)
					check("get", floor, v, err)
				}
			}
		})
	}
	wg.Wait()
	if hits.Load() < int64(rounds/10) {
		t.Errorf("only %d hits: nothing was tried", hits.Load())
	}
	if c.Stats().Undecodable == 0 {
		t.Error("nothing was undecodable: nothing was tried")
	}
}

package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// hostile is a codec of strings that does to some of them what its functions do.
type hostile struct {
	encode, decode func(s string)
}

func (h hostile) Encode(s string) ([]byte, error) {
	if h.encode != nil {
		h.encode(s)
	}
	return []byte(s), nil
}

func (h hostile) Decode(b []byte) (string, error) {
	if h.decode != nil {
		h.decode(string(b))
	}
	return string(b), nil
}

// A codec that ends the goroutine on which it runs, as FailNow of a test does: the callers that
// wait are released, the next one loads the key, and Close ends.
func TestACodecThatEndsItsGoroutineLeavesNothingBehind(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		for _, where := range []string{"local", "redis", "encode", "own", "stand in"} {
			for _, batch := range []bool{false, true} {
				t.Run(fmt.Sprint(where, " batch ", batch), func(t *testing.T) {
					o := at(b.addr)
					o.Load.StaleIfError = time.Hour
					c := open(t, o)
					ready(t, c)
					key := fmt.Sprint(where, batch)
					boom := errors.New("boom")
					var ends atomic.Bool
					ends.Store(true)
					end := func(when string) func(string) {
						return func(s string) {
							if s == when && ends.Load() {
								runtime.Goexit()
							}
						}
					}
					codec := hostile{decode: end("bad")}
					loaded := "good"
					switch where {
					case "local":
						must(t, c.Set(ctx, key, []byte("bad"), time.Hour))
						wantGet(t, c, key, "bad") // it is fresh now
					case "redis":
						b.set(key, "bad")
					case "encode":
						codec, loaded = hostile{encode: end("bad")}, "bad"
					case "own":
						loaded = "bad"
					case "stand in":
						must(t, c.Set(ctx, key, []byte("bad"), time.Millisecond))
						if b.lapse != nil {
							b.lapse(time.Millisecond)
						}
						redistest.WaitFor(t, patience, "its end", func() bool { _, err := c.Get(ctx, key); return err != nil })
					}
					typed := holdfast.NewTyped(c, codec)
					load := func(context.Context) (string, error) {
						if where == "stand in" && ends.Load() {
							return "", boom
						}
						return loaded, nil
					}
					ask := func() (v string, err error) {
						if !batch {
							return typed.GetOrLoad(ctx, key, time.Hour, load)
						}
						m, err := typed.GetOrLoadMany(ctx, []string{key, key + "2"}, time.Hour, func(ctx context.Context, keys []string) (map[string]string, error) {
							v, err := load(ctx)
							m := map[string]string{}
							for _, k := range keys {
								m[k] = v
							}
							return m, err
						})
						return m[key], err
					}
					// Each of them returns, or its goroutine ends.
					gone := make(chan struct{}, 8)
					for range cap(gone) {
						go func() {
							defer func() { gone <- struct{}{} }()
							ask()
						}()
					}
					for range cap(gone) {
						select {
						case <-gone:
						case <-time.After(patience):
							t.Fatal("somebody waits for a load that nobody carries out")
						}
					}
					ends.Store(false)
					if where == "local" || where == "redis" {
						loaded = "bad"
					}
					if v, err := ask(); err != nil || v != loaded && where != "stand in" {
						t.Errorf("afterwards: %q, %v", v, err)
					}
					closed(t, c)
				})
			}
		}
	})
}

// A codec that does not return, as one that asks a service for keys may not: it holds
// up its caller, and not Close.
func TestACodecThatHangsDoesNotHangClose(t *testing.T) {
	beside(t)
	for _, o := range []holdfast.Options{{}, at(unused())} {
		ctx := begin(t)
		for _, batch := range []bool{false, true} {
			c, err := holdfast.New(o)
			must(t, err)
			hangs, let := make(chan struct{}), make(chan struct{})
			typed := holdfast.NewTyped(c, hostile{decode: func(s string) {
				if s == "bad" {
					close(hangs)
					<-let
				}
			}})
			must(t, c.Set(ctx, "k", []byte("bad"), time.Hour))
			done := make(chan error, 1)
			go func() {
				if batch {
					_, err := typed.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string]string, error) { return nil, nil })
					done <- err
				} else {
					_, err := typed.GetOrLoad(ctx, "k", 0, func(context.Context) (string, error) { return "", nil })
					done <- err
				}
			}()
			<-hangs
			shut := make(chan error, 1)
			go func() { shut <- c.Close() }()
			select {
			case err := <-shut:
				var u *holdfast.UndeliveredError
				if err != nil && !asUndelivered(err, &u) {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("close waits for a codec")
			}
			close(let)
			if err := <-done; err != holdfast.ErrClosed {
				t.Errorf("its caller got %v", err)
			}
		}
	}
}

func TestWhatATypedSwitchesOffIsOff(t *testing.T) {
	boom := errors.New("boom")
	o := holdfast.Options{Load: holdfast.LoadOptions{StaleIfError: time.Hour, EarlyRefresh: 1e-9}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		off := holdfast.LoadOptions{StaleIfError: -1, EarlyRefresh: -1}
		fails := func(context.Context, *holdfast.TypedEntry[string]) (l holdfast.TypedLoaded[string], err error) {
			return l, boom
		}
		for name, call := range map[string]func() error{
			"by the call": func() error {
				return second(holdfast.NewTyped(c, holdfast.String()).GetOrLoadWith(ctx, "k", 0, off, fails))
			},
			"by the typed": func() error {
				return second(holdfast.NewTyped(c, holdfast.String(), holdfast.WithLoad(off)).GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, fails))
			},
			"by the typed, loading": func() error {
				return second(holdfast.NewTyped(c, holdfast.String(), holdfast.WithLoad(off)).GetOrLoad(ctx, "k", 0, func(context.Context) (string, error) { return "", boom }))
			},
		} {
			must(t, c.Set(ctx, "k", []byte("v"), 10*time.Second))
			time.Sleep(5 * time.Second)
			if err := call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			time.Sleep(6 * time.Second)
			if err := call(); !errors.Is(err, boom) {
				t.Errorf("%s: with stale-if-error off: %v", name, err)
			}
			if st := c.Stats(); st.EarlyRefreshes != 0 {
				t.Errorf("%s: with early refresh off there were %d", name, st.EarlyRefreshes)
			}
		}
	})
}

// A batch that waits for another codec's load gets bytes that it cannot read. The key is
// not missing: it is loaded anew.
func TestABatchThatWaitsForAnothersCodecLoadsForItself(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	a, b := holdfast.NewTyped(c, stamps("a")), holdfast.NewTyped(c, stamps("b"))
	first, began := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := a.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (stamped, error) {
			close(began)
			redistest.WaitFor(t, patience, "the other to wait", func() bool { return c.Stats().LoadsShared == 1 })
			return stamped{key: "k", version: 1}, nil
		})
		first <- err
	}()
	<-began
	m, err := b.GetOrLoadMany(ctx, []string{"k", "l"}, time.Hour, func(_ context.Context, keys []string) (map[string]stamped, error) {
		m := map[string]stamped{}
		for _, k := range keys {
			m[k] = stamped{key: k, version: 2}
		}
		return m, nil
	})
	if err != nil || len(m) != 2 || m["k"].by != "b" || m["k"].version != 2 {
		t.Errorf("%+v, %v", m, err)
	}
	must(t, <-first)
}

// A loader's own contexts, and its other Caches, are not the caller's.
func TestTheEndOfALoadersOwnContextIsNotTakenForTheCallers(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		for _, cause := range []error{context.DeadlineExceeded, context.Canceled, holdfast.ErrClosed} {
			_, err := c.GetOrLoad(ctx, "k", 0, func(context.Context) ([]byte, error) { return nil, cause })
			var e *holdfast.Error
			if !errors.As(err, &e) || e.Tier != holdfast.Loader || e.Key != "k" || !errors.Is(err, cause) {
				t.Errorf("%v: %T %v", cause, err, err)
			}
			_, err = c.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string][]byte, error) { return nil, cause })
			if !errors.As(err, &e) || e.Tier != holdfast.Loader || !errors.Is(err, cause) {
				t.Errorf("%v: %T %v", cause, err, err)
			}
		}
	})
}

package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// heard is what an OnInvalidations was called with.
type heard struct {
	mu    sync.Mutex
	keys  []string
	nones int
}

func (h *heard) listen(messages []rueidis.RedisMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if messages == nil {
		h.nones++
	}
	for _, m := range messages {
		key, err := m.ToString()
		if err != nil {
			key = err.Error()
		}
		h.keys = append(h.keys, key)
	}
}

func (h *heard) key(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Contains(h.keys, key)
}

func (h *heard) none() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nones
}

// listening makes a Cache that has reached the server, and a view of it.
func listening(t *testing.T, s *redistest.Server, o holdfast.Options, fn func([]rueidis.RedisMessage)) (*holdfast.Cache, rueidis.Client) {
	t.Helper()
	o.Redis = at(s.Addr()).Redis
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second // the server is there, and no call shall miss it on a busy machine
	}
	c := open(t, o)
	ready(t, c)
	cl, err := c.NewClient(rueidis.ClientOption{OnInvalidations: fn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, cl
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	redistest.WaitFor(t, patience, what, cond)
}

func TestAViewHearsWhatRedisTells(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	h := &heard{}
	c, cl := listening(t, s, holdfast.Options{}, h.listen)
	wantGet(t, c, "read", "")
	s.MustDo("SET", "read", "1")
	until(t, "a key that was read", func() bool { return h.key("read") })

	must(t, cl.Do(ctx, cl.B().Eval().Script(`return redis.call("SET", KEYS[1], "1") and redis.call("GET", KEYS[1])`).
		Numkeys(1).Key("in a script").Build()).Error())
	s.MustDo("DEL", "in a script")
	until(t, "a key that a script read", func() bool { return h.key("in a script") })

	wantGet(t, c, "own", "")
	must(t, c.Set(ctx, "own", nil, 0))
	until(t, "a key that this Cache wrote", func() bool { return h.key("own") })

	before := h.none()
	s.MustDo("FLUSHALL")
	until(t, "the flush", func() bool { return h.none() > before })
}

func TestAViewHearsOfAnOutageThoughNobodyCalls(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	h := &heard{}
	o := holdfast.Options{Breaker: holdfast.BreakerOptions{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}}
	c, _ := listening(t, s, o, h.listen)
	for range 3 { // by then a link that nobody uses sleeps
		before := c.Health().ProbedAt
		until(t, "ten probes' time", func() bool { return c.Health().ProbedAt.Sub(before) > 200*time.Millisecond })
	}
	before := h.none()
	s.Pause() // nothing but a probe finds out
	until(t, "the outage", func() bool { return h.none() > before })
	waitState(t, c, holdfast.Down)
	before = h.none()
	s.Resume()
	until(t, "the end of the outage", func() bool { return h.none() > before })
}

func TestAViewHearsNowAndThenWhereRedisDoesNotTell(t *testing.T) {
	beside(t)
	for name, o := range map[string]holdfast.TrackingOptions{
		"off":      {Mode: holdfast.TrackOff, UntrackedTTL: time.Millisecond},
		"prefixes": {Mode: holdfast.TrackPrefixes, Prefixes: []string{"p:"}, UntrackedTTL: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			h := &heard{}
			listening(t, redistest.Start(t), holdfast.Options{Tracking: o}, h.listen)
			until(t, "a few times", func() bool { return h.none() > 5 })
		})
	}
}

func TestAViewThatIsSlowToHearHearsOfEverythingAtOnce(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	stuck, free := make(chan struct{}), make(chan struct{})
	var once, released sync.Once
	release := func() { released.Do(func() { close(free) }) }
	h := &heard{}
	c, cl := listening(t, s, holdfast.Options{
		Timeout:  5 * time.Second,
		Tracking: holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"k"}, UntrackedTTL: time.Hour},
	}, func(m []rueidis.RedisMessage) {
		once.Do(func() { close(stuck) })
		<-free
		h.listen(m)
	})
	t.Cleanup(release) // before the Cache is closed
	s.MustDo("SET", "k", "1")
	<-stuck
	const many = 10_000
	s.MustDo("EVAL", "for i = 1, ARGV[1] do redis.call('SET', 'k' .. i, i) end", "0", fmt.Sprint(many))
	until(t, "all to be told", func() bool { return c.Stats().Invalidations > many })
	must(t, c.Set(ctx, "k1", nil, 0)) // nobody waits for who is stuck
	wantGet(t, c, "k2", "2")
	release()
	until(t, "all at once", func() bool { return h.none() == 1 })
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.keys) > many/2 {
		t.Errorf("%d keys had waited", len(h.keys))
	}
	cl.Close()
}

func TestAPanicInAViewsCallbackGoesNoFurther(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	h := &heard{}
	c, _ := listening(t, s, holdfast.Options{}, func(m []rueidis.RedisMessage) {
		h.listen(m)
		panic("mine")
	})
	for i := range 3 {
		key := fmt.Sprint(i)
		wantGet(t, c, key, "")
		s.MustDo("SET", key, "1")
		until(t, "the key", func() bool { return h.key(key) })
		wantGet(t, c, key, "1")
	}
}

func TestAViewHearsNothingOnceItIsClosed(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	first, second := &heard{}, &heard{}
	c, cl := listening(t, s, holdfast.Options{}, first.listen)
	other, err := c.NewClient(rueidis.ClientOption{OnInvalidations: second.listen})
	must(t, err)
	cl.Close()
	cl.Close()
	wantGet(t, c, "k", "")
	s.MustDo("SET", "k", "1")
	until(t, "the other view to hear", func() bool { return second.key("k") })
	if first.key("k") {
		t.Error("a view that was closed heard of a key")
	}
	if err := cl.Do(ctx, cl.B().Get().Key("k").Build()).Error(); !errors.Is(err, rueidis.ErrClosing) {
		t.Errorf("a view that was closed: %v", err)
	}
	before := second.none()
	closedEmpty(t, c)
	if second.none() == before {
		t.Error("the Cache was closed, and the view not told")
	}
	if err := other.Do(context.Background(), cl.B().Get().Key("k").Build()).Error(); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("a view of a Cache that was closed: %v", err)
	}
	if _, err := c.NewClient(rueidis.ClientOption{}); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("NewClient of a Cache that was closed: %v", err)
	}
}

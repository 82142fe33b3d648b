package holdfast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/local"
)

// TypedLoaded is the result of a loader of Typed.GetOrLoadWith; see Loaded.
type TypedLoaded[V any] struct {
	Value        V
	NotModified  bool
	TTL          time.Duration
	StaleIfError time.Duration
}

var (
	errOneWay = errors.New("holdfast: the codec cannot decode what it encoded")
)

// GetOrLoad is Get, and on a miss it calls load and returns the loaded value, encoded
// and decoded again; the value itself stays the loader's. See Cache.GetOrLoad, also for
// how long it waits. A stored value that cannot be decoded is a miss, and is written
// over.
//
// If the codec cannot encode the loaded value, or cannot decode the result, all callers
// that wait get the error, and nothing is stored.
func (t *Typed[V]) GetOrLoad(ctx context.Context, key string, ttl time.Duration, load func(context.Context) (V, error)) (V, error) {
	if load != nil && ttl >= 0 {
		if k, _ := t.hit(ctx, key, t.load.EarlyRefresh, t.life(ttl)); k != nil {
			return t.handOut("getorload", key, k)
		}
	}
	e, err := t.getOrLoad(ctx, key, ttl, load)
	return e.Value, err
}

// getOrLoad is a function of its own so that a hit allocates no closure.
func (t *Typed[V]) getOrLoad(ctx context.Context, key string, ttl time.Duration, load func(context.Context) (V, error)) (TypedEntry[V], error) {
	l := &typedLoad[V]{t: t, op: "getorload", load: typedPlainly(load)}
	return l.do(ctx, t.prefix+key, ttl, LoadOptions{})
}

// GetOrLoadWith is GetOrLoad with options of its own, a loader that is given the local
// copy, nil for none, and an answer with its origin; see Cache.GetOrLoadWith. A copy that
// cannot be decoded is none. Fields of o that are zero are the Typed's, and if those are
// zero too, the Cache's.
func (t *Typed[V]) GetOrLoadWith(ctx context.Context, key string, ttl time.Duration, o LoadOptions, load func(ctx context.Context, had *TypedEntry[V]) (TypedLoaded[V], error)) (TypedEntry[V], error) {
	l := &typedLoad[V]{t: t, op: "getorloadwith", load: load}
	return l.do(ctx, t.prefix+key, ttl, o)
}

// Refresh calls load now, whether or not the tiers have a value, and stores and returns
// the loaded value. See Cache.Refresh for how long it waits, for the loads that it
// shares, and for errors. Values are encoded and decoded as by GetOrLoad.
func (t *Typed[V]) Refresh(ctx context.Context, key string, ttl time.Duration, load func(context.Context) (V, error)) (V, error) {
	l := &typedLoad[V]{t: t, op: "refresh", load: typedPlainly(load), reload: true}
	e, err := l.do(ctx, t.prefix+key, ttl, LoadOptions{})
	return e.Value, err
}

// typedPlainly makes a loader of the form of GetOrLoadWith out of one of GetOrLoad; nil
// stays nil.
func typedPlainly[V any](load func(context.Context) (V, error)) func(context.Context, *TypedEntry[V]) (TypedLoaded[V], error) {
	if load == nil {
		return nil
	}
	return func(ctx context.Context, _ *TypedEntry[V]) (TypedLoaded[V], error) {
		v, err := load(ctx)
		return TypedLoaded[V]{Value: v}, err
	}
}

// typedLoad is one call that may load, for one key or several. It remembers the values
// that it decodes, so that no value is decoded twice. Some are decoded on the goroutine
// of a load that outlives the call, hence the lock.
type typedLoad[V any] struct {
	t    *Typed[V]
	op   string
	load func(ctx context.Context, had *TypedEntry[V]) (TypedLoaded[V], error)
	// reload: values of the tiers are no answer; see Refresh.
	reload bool

	seen struct {
		sync.Mutex
		values map[string]sight[V]
	}
}

// sight is a decoded value and its bytes; k is nil if they cannot be decoded.
type sight[V any] struct {
	of []byte
	k  *local.DecodedAs[V]
}

// do carries out the call for a whole key.
func (l *typedLoad[V]) do(ctx context.Context, key string, ttl time.Duration, o LoadOptions) (TypedEntry[V], error) {
	if l.load == nil {
		return TypedEntry[V]{}, &Error{Op: l.op, Key: key, Tier: Loader, Err: errNilLoader}
	}
	for try := 1; ; try++ {
		e, err := l.loadBytes(ctx, key, l.t.life(ttl), o.over(l.t.load), try > 1)
		if err != nil {
			return TypedEntry[V]{Tier: e.Tier, Degraded: e.Degraded}, err
		}
		v, err := l.decode(key, e.Value, e.Tier)
		switch {
		case err == nil:
			return TypedEntry[V]{Value: v, Tier: e.Tier, Stale: e.Stale, Degraded: e.Degraded, TTL: e.TTL}, nil
		case try == loadTries || !errors.Is(err, ErrMiss):
			return TypedEntry[V]{Tier: e.Tier, Degraded: e.Degraded}, err
		}
	}
}

// loadBytes calls the Cache with a loader of bytes.
// again: an earlier try of the same read was counted.
func (l *typedLoad[V]) loadBytes(ctx context.Context, key string, ttl time.Duration, o LoadOptions, again bool) (Entry, error) {
	load := func(ctx context.Context, had *Entry) (Loaded, error) { return l.run(ctx, key, had) }
	if l.reload {
		return l.t.c.reload(ctx, l.op, key, ttl, o, load)
	}
	return l.t.c.load(ctx, l.op, key, ttl, o, l.usable, load, again)
}

// loadTries bounds how often a call waits for a load of another caller whose codec
// encodes values that this call's codec cannot decode.
const loadTries = 3

// decode is Typed.decode, but uses a value that this call has decoded before.
func (l *typedLoad[V]) decode(key string, b []byte, from Tier) (V, error) {
	if l.t.known(key, b) == nil {
		if s := l.sightOf(key); s.k != nil && bytes.Equal(s.of, b) {
			return l.t.settle(l.op, key, b, s.k)
		}
	}
	return l.t.decode(l.op, key, b, from)
}

// run calls the loader.
func (l *typedLoad[V]) run(ctx context.Context, key string, had *Entry) (Loaded, error) {
	var decodedHad *TypedEntry[V]
	if had != nil {
		if e, err := l.t.entry(l.op, key, *had); err == nil {
			decodedHad = &e
		}
	}
	made, err := l.load(ctx, decodedHad)
	if err != nil {
		return Loaded{}, err
	}
	loaded := Loaded{NotModified: made.NotModified, TTL: made.TTL, StaleIfError: made.StaleIfError}
	if made.NotModified {
		if decodedHad == nil {
			return Loaded{}, errNotModified
		}
		return loaded, nil
	}
	loaded.Value, err = l.made(key, made.Value)
	return loaded, err
}

// made encodes a loaded value and makes sure that the result can be decoded. Otherwise
// every read of the key would be a miss, and the key would be stored again and again.
func (l *typedLoad[V]) made(key string, v V) ([]byte, error) {
	b, err := l.t.encodeNew(v)
	if err != nil {
		return nil, err
	}
	b = cloneBytes(b) // the decoded value may refer to it, and v is the loader's
	k, err := l.t.decodeNew(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOneWay, err)
	}
	l.note(key, sight[V]{b, k})
	return b, nil
}

// usable reports whether the bytes can be decoded. It is called more than once for the
// same bytes.
func (l *typedLoad[V]) usable(key string, b []byte) bool {
	if s := l.sightOf(key); s.of != nil && bytes.Equal(s.of, b) {
		return s.k != nil
	}
	k := l.t.known(key, b)
	if k == nil {
		var err error
		if k, err = l.t.decodeNew(b); err != nil {
			l.t.c.stats.undecodable.Add(1)
			k = nil
		}
	}
	l.note(key, sight[V]{b, k})
	return k != nil
}

func (l *typedLoad[V]) sightOf(key string) sight[V] {
	l.seen.Lock()
	defer l.seen.Unlock()
	return l.seen.values[key]
}

func (l *typedLoad[V]) note(key string, s sight[V]) {
	l.seen.Lock()
	defer l.seen.Unlock()
	if l.seen.values == nil {
		l.seen.values = make(map[string]sight[V], 1)
	}
	l.seen.values[key] = s
}

package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// Typed is a Cache whose values are of type V: the same two tiers and the same
// laws, with a Codec between V and the bytes. It stores the bytes that the Codec
// encodes and nothing else, so a Cache, another Typed and other clients can share
// its keys.
//
// A value that a read returns may be shared. A Typed keeps the decoded value beside
// its bytes for later reads, so a local hit decodes nothing. Do not modify the targets
// of pointers, slices and maps in a value. If you need to modify values, use
// Typed.WithClone to get a copy per call, or WithoutDecoded to decode per call.
// Values given to a Typed are encoded and not kept: they stay the caller's, and
// GetOrLoad returns the decoded form of the encoded value.
//
// A decoded value is dropped with its bytes, and counts against Local.MaxBytes with
// them. It costs the size of V and of the value that V points to; if that has pointers
// of its own, the estimate adds twice the encoded bytes. It belongs to the Typed that
// decoded it, so make one Typed for a kind of value, and keep it. Two calls of NewTyped
// for the same keys evict each other's decoded values; a Typed and its WithClone share
// them.
//
// A value that cannot be decoded is a miss: Get returns an error that is ErrMiss and
// has the cause, GetOrLoad loads, and Stats.Undecodable counts it. The bytes stay
// until they are written over, because another version of the program may be able to
// read them.
//
// A Typed is safe for concurrent use. It holds nothing that must be closed.
type Typed[V any] struct {
	c      *Cache
	codec  Codec[V]
	prefix string
	ttl    time.Duration
	load   LoadOptions // zero fields replaced by the Cache's
	clone  func(V) V
	keeps  bool
	owner  unsafe.Pointer // of the decoded values: the Typed that NewTyped made

	size    int64 // cost of a decoded value, without perByte
	perByte int64 // additional cost for each encoded byte
}

// TypedOption is an option of NewTyped.
type TypedOption func(*typedOptions)

type typedOptions struct {
	prefix    string
	ttl       time.Duration
	load      LoadOptions
	undecoded bool
}

// WithPrefix puts prefix before every key. The methods of the Typed take and return
// keys without it; an *Error has the whole key. Default: none.
func WithPrefix(prefix string) TypedOption {
	return func(o *typedOptions) { o.prefix = prefix }
}

// WithTTL is the time to live for calls of the Typed that pass a ttl of 0. Default 0:
// Options.DefaultTTL.
func WithTTL(ttl time.Duration) TypedOption {
	return func(o *typedOptions) { o.ttl = ttl }
}

// WithLoad sets the options of the Typed's loads. Fields that are zero are the
// Cache's.
func WithLoad(load LoadOptions) TypedOption {
	return func(o *typedOptions) { o.load = load }
}

// WithoutDecoded keeps no decoded values: each read decodes, and the local tier has the
// memory for more entries.
func WithoutDecoded() TypedOption {
	return func(o *typedOptions) { o.undecoded = true }
}

// NewTyped makes a Typed over c. It panics if c, codec or an option is nil, and if the
// value of an option is invalid, because these are faults of the program.
func NewTyped[V any](c *Cache, codec Codec[V], opts ...TypedOption) *Typed[V] {
	if c == nil {
		panic("holdfast: NewTyped: the Cache is nil")
	}
	if codec == nil {
		panic("holdfast: NewTyped: the Codec is nil")
	}
	var o typedOptions
	for _, opt := range opts {
		if opt == nil {
			panic("holdfast: NewTyped: an option is nil")
		}
		opt(&o)
	}
	if o.ttl < 0 {
		panic(fmt.Sprintf("holdfast: NewTyped: WithTTL(%v): it must be zero or positive", o.ttl))
	}
	t := &Typed[V]{c: c, codec: codec, prefix: o.prefix, ttl: o.ttl, keeps: !o.undecoded}
	t.load = o.load.over(c.opts.Load)
	if err := errors.Join(t.load.validateWithin(c.opts.Load)...); err != nil {
		panic("holdfast: NewTyped: WithLoad: " + err.Error())
	}
	t.owner = unsafe.Pointer(t)
	t.size, t.perByte = t.footprint()
	return t
}

// WithClone returns a Typed like t whose reads return a copy of the kept value, made by
// clone, so their callers may modify the result. The two share the decoded values, so code
// that only reads can go on with t. If clone is nil, reads return the kept value itself.
// A panic of clone is an error of the read.
func (t *Typed[V]) WithClone(clone func(V) V) *Typed[V] {
	cloning := *t
	cloning.clone = clone
	return &cloning
}

// footprint returns the cost of a decoded value in bytes, and the additional cost for
// each encoded byte.
func (t *Typed[V]) footprint() (size, perByte int64) {
	size, open := local.Footprint(reflect.TypeFor[V]())
	size += int64(unsafe.Sizeof(local.Decoded{}))
	switch any(t.codec).(type) {
	case bytesCodec: // the value is the entry's bytes
		return size, 0
	case stringCodec:
		return size, 1
	}
	if open {
		return size, 2
	}
	return size, 0
}

// TypedEntry is a value with its origin; see Entry.
type TypedEntry[V any] struct {
	// Value may be shared with other callers: do not modify it. See Typed.
	Value V
	// Tier is the tier that answered.
	Tier Tier
	// Stale: the value is past its TTL.
	Stale bool
	// Degraded: the answer was given without Redis.
	Degraded bool
	// TTL is the remaining time to live; 0 if the value has no expiry, and if it is
	// stale.
	TTL time.Duration
}

// Get returns the value of key, or ErrMiss. It waits as Cache.Get does.
func (t *Typed[V]) Get(ctx context.Context, key string) (V, error) {
	if k, _ := t.hit(ctx, key, 0, 0); k != nil {
		return t.handOut("get", key, k)
	}
	e, err := t.lookup(ctx, "get", t.prefix+key)
	return e.Value, err
}

// Lookup is Get with the origin of the value. It waits as Cache.Lookup does.
func (t *Typed[V]) Lookup(ctx context.Context, key string) (TypedEntry[V], error) {
	if k, e := t.hit(ctx, key, 0, 0); k != nil {
		ttl := clock.Left(t.c.clock.Now(), e.Expires.Load())
		v, err := t.handOut("lookup", key, k)
		return TypedEntry[V]{Value: v, Tier: Local, TTL: ttl}, err
	}
	return t.lookup(ctx, "lookup", t.prefix+key)
}

// hit returns the decoded value of a fresh local entry, and the entry. In every other case,
// errors included, it returns nil, and the caller takes the slow path: also if a refresh of the
// entry is due, by a caller whose part of its ttl is not 0.
func (t *Typed[V]) hit(ctx context.Context, key string, part float64, ttl time.Duration) (*local.DecodedAs[V], *local.Entry) {
	c := t.c
	// look needs the whole key only if the journal has keys.
	if !t.keeps || t.prefix != "" && c.journal.Keys.Load() != 0 {
		return nil, nil
	}
	if enterable(ctx, !c.inflight.Closed.Load()) != nil {
		return nil, nil
	}
	h := t.hash(key)
	if e, fresh := c.lookCoarse(h, key); fresh {
		if k := local.KeptBy[V](e, t.owner); k != nil && !c.refreshDue(e, ttl, part) {
			c.local.CountHit(h)
			return k, e
		}
	}
	return nil, nil
}

// hash returns the hash of the whole key, which is built on the stack.
func (t *Typed[V]) hash(key string) keyhash.Hash {
	if t.prefix == "" {
		return t.c.local.Hash(key)
	}
	var room [128]byte
	whole := append(append(room[:0], t.prefix...), key...)
	return t.c.local.Hash(unsafe.String(unsafe.SliceData(whole), len(whole)))
}

// lookup is the slow path of Lookup, for a whole key.
func (t *Typed[V]) lookup(ctx context.Context, op, key string) (TypedEntry[V], error) {
	e, err := t.c.lookup(ctx, op, key)
	if err != nil {
		return TypedEntry[V]{Tier: e.Tier, Degraded: e.Degraded}, err
	}
	return t.entry(op, key, e)
}

// entry decodes e.
func (t *Typed[V]) entry(op, key string, e Entry) (TypedEntry[V], error) {
	v, err := t.decode(op, key, e.Value, e.Tier)
	if err != nil {
		return TypedEntry[V]{Tier: e.Tier, Degraded: e.Degraded}, err
	}
	return TypedEntry[V]{Value: v, Tier: e.Tier, Stale: e.Stale, Degraded: e.Degraded, TTL: e.TTL}, nil
}

// decode returns the decoded value of the bytes of a whole key. An error is an ErrMiss,
// or one of the clone function.
func (t *Typed[V]) decode(op, key string, b []byte, from Tier) (v V, err error) {
	if k := t.known(key, b); k != nil {
		return t.handOut(op, key, k)
	}
	k, err := t.decodeNew(b)
	if err != nil {
		t.c.stats.undecodable.Add(1)
		return v, &Error{Op: op, Key: key, Tier: from, Err: undecodable{err}}
	}
	return t.settle(op, key, b, k)
}

// settle keeps the decoded value of the bytes of a whole key, and returns it.
func (t *Typed[V]) settle(op, key string, b []byte, k *local.DecodedAs[V]) (V, error) {
	if !t.keeps {
		return k.Value, nil // the caller's own
	}
	t.keep(key, b, k)
	return t.handOut(op, key, k)
}

// known returns the decoded value that is kept for these bytes, or nil.
func (t *Typed[V]) known(key string, b []byte) *local.DecodedAs[V] {
	sh, open := t.c.inflight.Enter()
	defer sh.Leave()
	if !open || !t.keeps {
		return nil
	}
	if e := t.c.local.Get(t.c.local.Hash(key)); e != nil && e.Holds(b) {
		return local.KeptBy[V](e, t.owner)
	}
	return nil
}

// keep keeps k with the key's entry, if that still holds these bytes.
func (t *Typed[V]) keep(key string, b []byte, k *local.DecodedAs[V]) {
	sh, open := t.c.inflight.Enter()
	defer sh.Leave()
	if open {
		t.c.local.Attach(t.c.local.Hash(key), b, &k.Decoded)
	}
}

// decodeNew and encode call the codec; handOut calls the clone function. A panic of
// either is an error. No lock is held during these calls, and the call is not counted
// in, so Close does not wait for them.
func (t *Typed[V]) decodeNew(b []byte) (k *local.DecodedAs[V], err error) {
	size := min(t.size+t.perByte*int64(len(b)), math.MaxInt32)
	k = &local.DecodedAs[V]{Decoded: local.Decoded{Owner: t.owner, Size: int32(size)}}
	defer caught(&err)
	k.Value, err = t.codec.Decode(b)
	return k, err
}

func (t *Typed[V]) encode(op, key string, v V) (b []byte, err error) {
	if b, err = t.encodeNew(v); err != nil {
		return nil, &Error{Op: op, Key: key, Err: err}
	}
	return b, nil
}

func (t *Typed[V]) encodeNew(v V) (b []byte, err error) {
	defer caught(&err)
	return t.codec.Encode(v)
}

func (t *Typed[V]) handOut(op, key string, k *local.DecodedAs[V]) (V, error) {
	if t.clone == nil {
		return k.Value, nil
	}
	v, err := t.cloned(k.Value)
	if err != nil {
		err = &Error{Op: op, Key: key, Err: err}
	}
	return v, err
}

func (t *Typed[V]) cloned(v V) (out V, err error) {
	defer caught(&err)
	return t.clone(v), nil
}

// caught turns a panic into an error.
func caught(err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{Value: v, Stack: debug.Stack()}
	}
}

// undecodable is ErrMiss with its cause.
type undecodable struct{ cause error }

func (u undecodable) Error() string {
	return "miss: the codec cannot decode what is stored: " + u.cause.Error()
}
func (u undecodable) Is(target error) bool { return target == ErrMiss }
func (u undecodable) Unwrap() error        { return u.cause }

// Set stores v under key for ttl; 0 means WithTTL. It waits as Cache.Set does. If the
// codec cannot encode v, it returns the codec's error and stores nothing.
func (t *Typed[V]) Set(ctx context.Context, key string, v V, ttl time.Duration) error {
	key = t.prefix + key
	b, err := t.encode("set", key, v)
	if err != nil {
		return err
	}
	return t.c.Set(ctx, key, b, t.life(ttl))
}

// Add stores v under key if the key is absent, and reports whether it did; see
// Cache.Add.
func (t *Typed[V]) Add(ctx context.Context, key string, v V, ttl time.Duration) (bool, error) {
	key = t.prefix + key
	b, err := t.encode("add", key, v)
	if err != nil {
		return false, err
	}
	return t.c.Add(ctx, key, b, t.life(ttl))
}

// Delete removes the keys; see Cache.Delete.
func (t *Typed[V]) Delete(ctx context.Context, keys ...string) error {
	return t.c.Delete(ctx, t.whole(keys)...)
}

// TTL returns the key's remaining time to live; see Cache.TTL.
func (t *Typed[V]) TTL(ctx context.Context, key string) (time.Duration, error) {
	return t.c.TTL(ctx, t.prefix+key)
}

// Touch sets the key's time to live to ttl; 0 means WithTTL. See Cache.Touch.
func (t *Typed[V]) Touch(ctx context.Context, key string, ttl time.Duration) error {
	return t.c.Touch(ctx, t.prefix+key, t.life(ttl))
}

// life replaces a ttl of 0 by the Typed's.
func (t *Typed[V]) life(ttl time.Duration) time.Duration {
	if ttl == 0 {
		return t.ttl
	}
	return ttl
}

// whole returns the keys with the prefix.
func (t *Typed[V]) whole(keys []string) []string {
	if t.prefix == "" {
		return keys
	}
	all := make([]string, len(keys))
	for i, key := range keys {
		all[i] = t.prefix + key
	}
	return all
}

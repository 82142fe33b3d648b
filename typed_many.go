package holdfast

import (
	"context"
	"errors"
	"time"
)

// GetMany returns the values of the keys that are found and can be decoded. See
// Cache.GetMany, also for how long it waits and for its errors.
func (t *Typed[V]) GetMany(ctx context.Context, keys ...string) (map[string]V, error) {
	values, missing, errs := t.hits(ctx, "getmany", keys)
	if len(missing) == 0 && len(keys) > 0 {
		return values, errs.join()
	}
	read, err := t.c.GetMany(ctx, missing...)
	if read == nil {
		return nil, err
	}
	errs.also(err)
	for key, b := range read {
		v, err := t.decode("getmany", key, b, Local)
		if !t.found(values, key, v, err) {
			errs.also(err)
		}
	}
	return values, errs.join()
}

// GetOrLoadMany is GetMany, and one call of load for the keys that are missing; see
// Cache.GetOrLoadMany. The codec is used for each key as in GetOrLoad. An error of one
// key does not keep the others from being stored and returned.
func (t *Typed[V]) GetOrLoadMany(ctx context.Context, keys []string, ttl time.Duration, load func(context.Context, []string) (map[string]V, error)) (map[string]V, error) {
	if load == nil {
		return nil, &Error{Op: "getorloadmany", Tier: Loader, Err: errNilLoader}
	}
	values, missing, errs := t.hits(ctx, "getorloadmany", keys)
	if len(missing) == 0 && len(keys) > 0 {
		return values, errs.join()
	}
	l := &typedLoad[V]{t: t, op: "getorloadmany"}
	for try := 1; ; try++ {
		read, err := t.c.loadMany(ctx, missing, t.life(ttl), t.load, l.usable, func(ctx context.Context, keys []string) (map[string][]byte, error) {
			return l.runMany(ctx, keys, load)
		}, try > 1)
		errs.also(err)
		missing = nil // values that another caller loaded with another codec are loaded again
		for key, b := range read {
			v, err := l.decode(key, b, Loader)
			if t.found(values, key, v, err) && err != nil && try < loadTries {
				missing = append(missing, key)
			} else {
				errs.also(err)
			}
		}
		if len(missing) == 0 || err != nil {
			return values, errs.join()
		}
	}
}

// hits returns the decoded values of fresh local entries, and the whole keys of the
// other keys.
func (t *Typed[V]) hits(ctx context.Context, op string, keys []string) (values map[string]V, missing []string, errs errorList) {
	values = make(map[string]V, len(keys))
	for _, key := range keys {
		k, _ := t.hit(ctx, key, 0, 0)
		if k == nil {
			missing = append(missing, t.prefix+key)
			continue
		}
		v, err := t.handOut(op, t.prefix+key, k)
		if err != nil {
			errs.also(err)
			continue
		}
		values[key] = v
	}
	return values, missing, errs
}

// found adds the decoded value of a whole key to values. It returns false if the caller
// must be told the error; a value that cannot be decoded is only missing.
func (t *Typed[V]) found(values map[string]V, key string, v V, err error) bool {
	if err == nil {
		values[key[len(t.prefix):]] = v
	}
	return err == nil || errors.Is(err, ErrMiss)
}

// runMany calls the loader of a batch, for whole keys.
func (l *typedLoad[V]) runMany(ctx context.Context, keys []string, load func(context.Context, []string) (map[string]V, error)) (map[string][]byte, error) {
	asked := make([]string, len(keys))
	for i, key := range keys {
		asked[i] = key[len(l.t.prefix):]
	}
	values, err := load(ctx, asked)
	var errs errorList
	errs.also(err)
	loaded := make(map[string][]byte, len(values))
	for i, key := range keys {
		v, ok := values[asked[i]]
		if !ok {
			continue
		}
		b, err := l.made(key, v)
		if err != nil {
			errs.add(l.op, key, err)
			continue
		}
		loaded[key] = b
	}
	return loaded, errs.join()
}

// SetMany is Set for each item; see Cache.SetMany. If the codec cannot encode an item,
// it returns that error and stores nothing.
func (t *Typed[V]) SetMany(ctx context.Context, items map[string]V, ttl time.Duration) error {
	encoded := make(map[string][]byte, len(items))
	for key, v := range items {
		key = t.prefix + key
		b, err := t.encode("setmany", key, v)
		if err != nil {
			return err
		}
		encoded[key] = b
	}
	return t.c.SetMany(ctx, encoded, t.life(ttl))
}

package programs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncpool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
)

// increase adds one to a counter with commands that the cache serves. It needs a lock, and
// the lock must cover them.
func increase(ctx context.Context, rdb *redis.Client, key string) error {
	n, err := rdb.Get(ctx, key).Int()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	return rdb.Set(ctx, key, n+1, 0).Err()
}

// contend has goroutines take turns, and returns the most that were inside at once.
func contend(contenders, turns int, turn func(contender int, inside func())) int64 {
	var all sync.WaitGroup
	var now, most atomic.Int64
	for c := range contenders {
		all.Go(func() {
			for range turns {
				turn(c, func() {
					if n := now.Add(1); n > most.Load() {
						most.Store(n)
					}
					now.Add(-1)
				})
			}
		})
	}
	all.Wait()
	return most.Load()
}

const (
	lockTTL   = time.Minute
	lockLease = 8 * time.Second // of a lock that an outage may leave behind
)

func redislockUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	locker := redislock.New(rdb)
	key := fmt.Sprint("lock:", run)
	held, err := locker.Obtain(ctx, key, lockTTL, &redislock.Options{Metadata: "of the first"})
	r.note("obtain", held != nil, err)
	must(t, err)
	r.note("its metadata", held.Metadata(), nil)
	ttl := func(what string, lock *redislock.Lock) {
		d, err := lock.TTL(ctx)
		r.note(what, about(d), err)
	}
	ttl("its ttl", held)
	value, err := rdb.Get(ctx, key).Result()
	r.note("its key", value == held.Token()+held.Metadata(), err)
	_, err = locker.Obtain(ctx, key, lockTTL, nil)
	r.note("obtain a lock that is held", errors.Is(err, redislock.ErrNotObtained), err)
	limited := redislock.LimitRetry(redislock.LinearBackoff(10*time.Millisecond), 3)
	_, err = locker.Obtain(ctx, key, lockTTL, &redislock.Options{RetryStrategy: limited})
	r.note("obtain it with retries", nil, err)
	again, err := locker.Obtain(ctx, key, 2*lockTTL, &redislock.Options{Token: held.Token(), Metadata: held.Metadata()})
	r.note("obtain it with its token", again != nil, err)
	ttl("its ttl", held)
	r.note("refresh", nil, held.Refresh(ctx, 3*lockTTL, nil))
	ttl("its ttl", held)
	r.note("pttl by the client", about(rdb.PTTL(ctx, key).Val()), rdb.PTTL(ctx, key).Err())
	r.note("release", nil, held.Release(ctx))
	r.note("release again", nil, held.Release(ctx))
	r.note("refresh a lock that was released", nil, held.Refresh(ctx, lockTTL, nil))
	ttl("the ttl of a lock that was released", held)
	r.note("its key", nil, rdb.Get(ctx, key).Err())

	short, err := locker.Obtain(ctx, key, 300*time.Millisecond, nil)
	r.note("obtain for a moment", short != nil, err)
	patiently := redislock.ExponentialBackoff(16*time.Millisecond, 64*time.Millisecond)
	waited, err := locker.Obtain(ctx, key, lockTTL, &redislock.Options{RetryStrategy: patiently})
	r.note("obtain after it has expired", waited != nil, err)
	r.note("release the expired one", nil, short.Release(ctx))
	r.note("delete by the client", rdb.Del(ctx, key).Val(), rdb.Del(ctx, key).Err())
	r.note("release the deleted one", nil, waited.Release(ctx))

	counter := fmt.Sprint("counter:", run)
	most := contend(4, 5, func(_ int, inside func()) {
		lock, err := locker.Obtain(ctx, key, lockTTL, &redislock.Options{RetryStrategy: redislock.LinearBackoff(2 * time.Millisecond)})
		if err == nil {
			inside()
			err = errors.Join(increase(ctx, rdb, counter), lock.Release(ctx))
		}
		if err != nil {
			t.Error(err)
		}
	})
	r.note("contenders inside at once", most, nil)
	n, err := rdb.Get(ctx, counter).Result()
	r.note("turns", n, err)
}

func redislockInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	locker := redislock.New(rdb)
	var held *redislock.Lock
	prepared(t, func() (err error) {
		held, err = locker.Obtain(within(t), "held", time.Hour, &redislock.Options{Token: "held"})
		return err
	})
	return []operation{
		{name: "Obtain and Release", alone: true, call: func(ctx context.Context) error {
			lock, err := locker.Obtain(ctx, "lock", lockLease, &redislock.Options{Token: "one"})
			if err != nil {
				return err
			}
			return lock.Release(ctx)
		}},
		{name: "Refresh", alone: true, call: func(ctx context.Context) error { return held.Refresh(ctx, time.Hour, nil) }},
	}
}

func redsyncUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	locks := redsync.New(redsyncpool.NewPool(rdb))
	key := fmt.Sprint("mutex:", run)
	first, second := locks.NewMutex(key, redsync.WithExpiry(lockTTL)), locks.NewMutex(key, redsync.WithExpiry(lockTTL))
	r.note("lock", nil, first.LockContext(ctx))
	r.note("until", about(time.Until(first.Until())), nil)
	value, err := rdb.Get(ctx, key).Result()
	r.note("its key", value == first.Value(), err)
	var taken *redsync.ErrTaken
	err = second.TryLockContext(ctx)
	r.note("try a mutex that is held", errors.As(err, &taken), err)
	few := locks.NewMutex(key, redsync.WithTries(3), redsync.WithRetryDelay(5*time.Millisecond))
	r.note("lock it with three tries", nil, few.LockContext(ctx))
	ok, err := first.ExtendContext(ctx)
	r.note("extend", ok, err)
	ok, err = first.ValidContext(ctx)
	r.note("valid", ok, err)
	ok, err = second.ExtendContext(ctx)
	r.note("extend one that is not held", ok, err)
	ok, err = second.UnlockContext(ctx)
	r.note("unlock one that is not held", ok, err)
	ok, err = first.UnlockContext(ctx)
	r.note("unlock", ok, err)
	ok, err = first.UnlockContext(ctx)
	r.note("unlock again", ok, err)
	ok, err = first.ValidContext(ctx)
	r.note("valid after that", ok, err)
	ok, err = first.ExtendContext(ctx)
	r.note("extend after that", ok, err)
	fresh := locks.NewMutex(key, redsync.WithExpiry(lockTTL), redsync.WithSetNXOnExtend(), redsync.WithValue("given"))
	ok, err = fresh.ExtendContext(ctx)
	r.note("extend with SETNX", ok, err)
	value, err = rdb.Get(ctx, key).Result()
	r.note("its key", value, err)
	ok, err = fresh.UnlockContext(ctx)
	r.note("unlock that", ok, err)

	short := locks.NewMutex(key, redsync.WithExpiry(time.Second))
	r.note("lock for a second", nil, short.LockContext(ctx))
	r.note("lock after it has expired", nil, second.LockContext(ctx))
	ok, err = short.UnlockContext(ctx)
	r.note("unlock the expired one", ok, err)
	ok, err = second.UnlockContext(ctx)
	r.note("unlock", ok, err)

	counter := fmt.Sprint("counter:", run)
	most := contend(4, 5, func(_ int, inside func()) {
		m := locks.NewMutex(key, redsync.WithExpiry(lockTTL), redsync.WithTries(10_000), redsync.WithRetryDelay(2*time.Millisecond))
		err := m.LockContext(ctx)
		if err == nil {
			inside()
			err = increase(ctx, rdb, counter)
			_, unlocked := m.UnlockContext(ctx)
			err = errors.Join(err, unlocked)
		}
		if err != nil {
			t.Error(err)
		}
	})
	r.note("contenders inside at once", most, nil)
	n, err := rdb.Get(ctx, counter).Result()
	r.note("turns", n, err)
}

func redsyncInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	locks := redsync.New(redsyncpool.NewPool(rdb))
	held := locks.NewMutex("held", redsync.WithExpiry(time.Hour))
	prepared(t, func() error { return held.LockContext(within(t)) })
	return []operation{
		{name: "TryLock and Unlock", alone: true, call: func(ctx context.Context) error {
			m := locks.NewMutex("mutex", redsync.WithExpiry(lockLease))
			if err := m.TryLockContext(ctx); err != nil {
				return err
			}
			_, err := m.UnlockContext(ctx)
			return err
		}},
		{name: "Extend", alone: true, call: func(ctx context.Context) error { _, err := held.ExtendContext(ctx); return err }},
	}
}

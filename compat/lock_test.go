package compat

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
)

// lockers are the ways to have a locker on a Cache.
var lockers = []struct {
	name string
	of   func(*holdfast.Cache) rueidislock.LockerOption
}{
	{"told", func(c *holdfast.Cache) rueidislock.LockerOption {
		return rueidislock.LockerOption{ClientBuilder: c.NewClient}
	}},
	// It polls, and need not be told.
	{"polling", func(c *holdfast.Cache) rueidislock.LockerOption {
		return rueidislock.LockerOption{
			ClientBuilder: func(rueidis.ClientOption) (rueidis.Client, error) { return c.Client(), nil },
			ClientOption:  rueidis.ClientOption{DisableCache: true},
		}
	}},
}

const validity = 2 * time.Second

func newLocker(t testing.TB, o rueidislock.LockerOption) rueidislock.Locker {
	t.Helper()
	o.KeyValidity = validity
	o.TryNextAfter = 500 * time.Millisecond // it is the time that a command has, too
	if o.ClientOption.DisableCache {
		o.TryNextAfter = 50 * time.Millisecond
	}
	l, err := rueidislock.NewLocker(o)
	must(t, err)
	t.Cleanup(l.Close)
	return l
}

// Whoever has the lock finds what those before him wrote: what Redis tells of the
// counter comes before the answer that the lock is his.
func TestTwoLockersOfTwoCachesExcludeEachOther(t *testing.T) {
	for _, kind := range lockers {
		t.Run(kind.name, func(t *testing.T) {
			redis := redistest.Start(t)
			var inside atomic.Int32
			var all sync.WaitGroup
			const goroutines, rounds = 8, 40
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			for range 2 {
				cache := open(t, redis, budget)
				locker := newLocker(t, kind.of(cache))
				for range goroutines / 2 {
					all.Go(func() {
						for range rounds {
							held, release, err := locker.WithContext(ctx, "counter")
							if err != nil {
								t.Errorf("lock: %v", err)
								return
							}
							if n := inside.Add(1); n != 1 {
								t.Errorf("%d have the lock", n)
							}
							err = increment(held, cache)
							inside.Add(-1)
							release()
							if err != nil {
								t.Errorf("increment: %v", err)
								return
							}
						}
					})
				}
			}
			bounded("the lock", all.Wait)
			equal(t, "the counter", redis.MustDo("GET", "n"), strconv.Itoa(goroutines*rounds))
		})
	}
}

// increment reads and writes, as what needs a lock.
func increment(ctx context.Context, cache *holdfast.Cache) error {
	b, err := cache.Get(ctx, "n")
	if errors.Is(err, holdfast.ErrMiss) {
		b = []byte("0")
	} else if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	return cache.Set(ctx, "n", []byte(strconv.Itoa(n+1)), 0)
}

func TestALockIsTriedAndTakenOver(t *testing.T) {
	redis := redistest.Start(t)
	ctx := context.Background()
	first := newLocker(t, lockers[0].of(open(t, redis, budget)))
	second := newLocker(t, lockers[0].of(open(t, redis, budget)))

	held, release, err := first.WithContext(ctx, "x")
	must(t, err)
	if _, _, err := second.TryWithContext(ctx, "x"); !errors.Is(err, rueidislock.ErrNotLocked) {
		t.Errorf("try of what another has: %v; want ErrNotLocked", err)
	}
	_, releaseOther, err := second.TryWithContext(ctx, "y")
	must(t, err)
	releaseOther()

	forced, releaseForced, err := second.ForceWithContext(ctx, "x")
	must(t, err)
	bounded("a lock that was taken over", func() { <-held.Done() })
	must(t, forced.Err())
	bounded("its release", release)
	must(t, forced.Err())
	releaseForced()
	held, release, err = first.TryWithContext(ctx, "x")
	must(t, err)
	must(t, held.Err())
	release()
}

// A lock is extended for as long as it is held.
func TestALockOutlivesItsValidityWhileItIsHeld(t *testing.T) {
	redis := redistest.Start(t)
	locker := newLocker(t, lockers[0].of(open(t, redis, budget)))
	held, release, err := locker.WithContext(context.Background(), "x")
	must(t, err)
	defer release()
	select {
	case <-held.Done():
		t.Error("the lock was lost")
	case <-time.After(validity + validity/2):
	}
	equal(t, "the lock's keys", redis.MustDo("EXISTS", "rueidislock:0:x", "rueidislock:1:x", "rueidislock:2:x"), "3")
}

func TestALockIsLostWithRedisAndCanBeHadAgain(t *testing.T) {
	for _, kind := range lockers {
		for _, o := range outages {
			t.Run(kind.name+", "+o.name, func(t *testing.T) {
				t.Parallel() // they mostly wait
				redis := redistest.Start(t)
				caches := []*holdfast.Cache{open(t, redis, 500*time.Millisecond), open(t, redis, 500*time.Millisecond)}
				first, second := newLocker(t, kind.of(caches[0])), newLocker(t, kind.of(caches[1]))
				held, release, err := first.WithContext(context.Background(), "x")
				must(t, err)

				o.begin(redis)
				lost := time.Now()
				bounded("who has the lock", func() { <-held.Done() })
				if d := time.Since(lost); d > 3*validity {
					t.Errorf("the lock was held for %v without Redis; it is valid for %v", d, validity)
				}
				bounded("the release", release)
				for _, c := range caches {
					down(t, c)
				}
				tried, cancel := context.WithTimeout(context.Background(), patience)
				bounded("a try", func() {
					_, _, err := second.TryWithContext(tried, "x")
					unavailable(t, "a try", err)
				})
				cancel()
				waits, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				if _, _, err := second.WithContext(waits, "x"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("who waits for a millisecond: %v", err)
				}
				cancel()

				// Who waits in an outage need not begin anew.
				got := make(chan error, 1)
				go func() {
					_, release, err := second.WithContext(context.Background(), "x")
					if err == nil {
						release()
					}
					got <- err
				}()
				o.end(redis)
				for _, c := range caches {
					up(t, c)
				}
				bounded("who waited", func() { must(t, <-got) })
				held, release, err = first.WithContext(context.Background(), "x")
				must(t, err)
				must(t, held.Err())
				release()
			})
		}
	}
}

func TestWhoWaitsForALockIsToldOfTheLockersEnd(t *testing.T) {
	redis := redistest.Start(t)
	ctx := context.Background()
	first := newLocker(t, lockers[0].of(open(t, redis, budget)))
	second := newLocker(t, lockers[0].of(open(t, redis, budget)))
	_, release, err := first.WithContext(ctx, "x")
	must(t, err)
	defer release()
	waits := make(chan error, 1)
	go func() {
		_, _, err := second.WithContext(ctx, "x")
		waits <- err
	}()
	second.Close()
	bounded("who waits", func() {
		if err := <-waits; !errors.Is(err, rueidislock.ErrLockerClosed) {
			t.Errorf("who waits: %v", err)
		}
	})
}

func (v venue) locker(o rueidislock.LockerOption) (rueidislock.Locker, error) {
	o.ClientBuilder, o.KeyValidity = v.build, validity
	return rueidislock.NewLocker(o)
}

// lockProgram has two lockers for one lock.
func lockProgram(ctx context.Context, s *story) {
	option := rueidislock.LockerOption{TryNextAfter: budget}
	first, err := s.locker(option)
	s.note("locker", nil, err)
	defer first.Close()
	second, err := s.locker(option)
	s.note("another", nil, err)

	held, release, err := first.WithContext(ctx, "x")
	s.note("lock", nil, err)
	_, _, err = second.TryWithContext(ctx, "x")
	s.note("try of another's lock", kindOf(err), nil)
	_, _, err = first.TryWithContext(ctx, "x")
	s.note("try of the own lock", kindOf(err), nil)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	_, _, err = second.WithContext(short, "x")
	s.note("wait for a while", kindOf(err), nil)
	cancel()
	waited := make(chan error, 1)
	go func() {
		_, release, err := second.WithContext(ctx, "x")
		if err == nil {
			release()
		}
		waited <- err
	}()
	release()
	s.note("wait for the release", nil, <-waited)
	s.note("after the release", held.Err(), nil)

	held, release, err = first.TryWithContext(ctx, "x")
	s.note("try", nil, err)
	forced, releaseForced, err := second.ForceWithContext(ctx, "x")
	s.note("take over", nil, err)
	<-held.Done()
	s.note("the holder lost it", held.Err(), forced.Err())
	release()
	s.note("the taker has it", nil, forced.Err())
	releaseForced()

	cancelled, cancel := context.WithCancel(ctx)
	held, _, err = first.WithContext(cancelled, "x")
	s.note("lock", nil, err)
	cancel()
	<-held.Done()
	_, release, err = second.WithContext(ctx, "x")
	s.note("lock after a holder whose context ended", nil, err)
	release()
	second.Close()
	_, _, err = second.TryWithContext(ctx, "x")
	s.note("try with a closed locker", kindOf(err), nil)
}

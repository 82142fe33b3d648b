package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
	"github.com/viccon/sturdyc"
)

// process is one process' sturdyc client, and what it asked of the source.
type process struct {
	*sturdyc.Client[string]
	asked counted
}

func (p *process) get(t testing.TB, key, want string) {
	t.Helper()
	got, err := p.GetOrFetch(context.Background(), key, func(context.Context) (string, error) {
		p.asked.ask()
		return "fetched", nil
	})
	must(t, err)
	equal(t, key, got, want)
}

func (p *process) getBatch(t testing.TB, ids []string) {
	t.Helper()
	got, err := p.GetOrFetchBatch(context.Background(), ids, p.BatchKeyFn("batch"), func(_ context.Context, missing []string) (map[string]string, error) {
		p.asked.ask()
		found := map[string]string{}
		for _, id := range missing {
			found[id] = "fetched"
		}
		return found, nil
	})
	must(t, err)
	for _, id := range ids {
		equal(t, id, got[id], "fetched")
	}
}

func TestSturdycRecordsOfOneProcessServeTheOthersAndAnOutage(t *testing.T) {
	for name, with := range map[string]func(*views.Sturdyc) sturdyc.Option{
		"plain": func(s *views.Sturdyc) sturdyc.Option { return sturdyc.WithDistributedStorage(s) },
		"early refreshes": func(s *views.Sturdyc) sturdyc.Option {
			return sturdyc.WithDistributedStorageEarlyRefreshes(s, time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			redis := redistest.Start(t)
			start := func(c *holdfast.Cache) *process {
				storage := views.NewSturdyc(c, "sturdy:", time.Hour)
				storage.OnError = func(err error) { t.Error(err) }
				return &process{Client: sturdyc.New[string](100, 1, time.Hour, 10, sturdyc.WithNoContinuousEvictions(), with(storage))}
			}
			c := open(t, redis)
			one := start(c)
			one.get(t, "key", "fetched")
			one.getBatch(t, []string{"a", "b"})
			equal(t, "requests", one.asked.n.Load(), 2)
			// sturdyc stores in the background.
			redistest.WaitFor(t, patience, "the records to be in Redis", func() bool {
				name := one.BatchKeyFn("batch")
				return redis.MustDo("EXISTS", "sturdy:key", "sturdy:"+name("a"), "sturdy:"+name("b")) == "3"
			})
			two := start(open(t, redis))
			two.get(t, "key", "fetched")
			two.getBatch(t, []string{"a", "b"})
			equal(t, "requests of the second process", two.asked.n.Load(), 0)

			again := start(c) // with nothing in sturdyc's own memory
			again.get(t, "key", "fetched")
			kill(t, redis, c)
			again = start(c)
			again.get(t, "key", "fetched")
			equal(t, "requests in the outage for what was read here", again.asked.n.Load(), 0)
			again.get(t, "other", "fetched")
			again.getBatch(t, []string{"c", "d"})
			equal(t, "requests in the outage", again.asked.n.Load(), 2)
			redistest.WaitFor(t, patience, "the records to be in the journal", func() bool { return c.Health().JournalKeys == 3 })

			restart(t, redis, c)
			third := start(open(t, redis))
			third.get(t, "other", "fetched")
			third.getBatch(t, []string{"c", "d"})
			equal(t, "requests of a process that comes afterwards", third.asked.n.Load(), 0)
		})
	}
}

func TestSturdycDeletesARecordThatTheSourceHasNoMore(t *testing.T) {
	redis := redistest.Start(t)
	storage := views.NewSturdyc(open(t, redis), "sturdy:", time.Hour)
	// Every record is due for a refresh at once.
	client := func() *sturdyc.Client[string] {
		return sturdyc.New[string](100, 1, time.Hour, 10, sturdyc.WithNoContinuousEvictions(),
			sturdyc.WithDistributedStorageEarlyRefreshes(storage, 0))
	}
	ctx := context.Background()
	_, err := client().GetOrFetch(ctx, "key", func(context.Context) (string, error) { return "value", nil })
	must(t, err)
	redistest.WaitFor(t, patience, "the record to be in Redis", func() bool { return redis.MustDo("EXISTS", "sturdy:key") == "1" })
	_, err = client().GetOrFetch(ctx, "key", func(context.Context) (string, error) { return "", sturdyc.ErrNotFound })
	if err == nil {
		t.Error("what the source has no more was found")
	}
	redistest.WaitFor(t, patience, "the record to be gone", func() bool { return redis.MustDo("EXISTS", "sturdy:key") == "0" })
}

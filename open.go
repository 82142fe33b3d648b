package holdfast

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// New returns a Cache. It does no network I/O and cannot fail for a network reason: a Redis
// that is not there is a normal start. The error names every option that is invalid or
// contradicts another. With Journal.Dir, New reads the files there, and fails if the
// directory cannot be used or another Cache uses it.
func New(opts Options) (*Cache, error) {
	// Nothing here waits for the network (law 1): connect only starts goroutines.
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		opts:    opts,
		clock:   clock.Start(),
		coarse:  clock.NewCoarse(),
		life:    ctx,
		cancel:  cancel,
		stop:    make(chan struct{}),
		local:   local.New(opts.Local.MaxBytes),
		journal: journal.New(opts.Journal.config()),
		closed:  make(chan struct{}),
	}
	c.opts.Redis = c.userCode.watch(opts.Redis, &c.workers)
	full := c.opts
	c.dialled, c.opts = &full, c.opts.withoutPasswords()
	c.flights, c.holder = flight.New[Entry](), rand.Text()
	if opts.Load.MaxConcurrent > 0 {
		c.loadSlots = make(chan struct{}, opts.Load.MaxConcurrent)
	}
	c.notify = newNotifier(opts, &c.stats)
	c.journal.Downgraded = c.downgraded
	c.journal.Retry = opts.backoff()
	if opts.Journal.Dir != "" && len(opts.Redis.InitAddress) > 0 {
		if err := c.restore(); err != nil {
			cancel()
			return nil, err
		}
	}
	c.feeder.Spawn("feeder", func() {
		c.local.Feed(c.stop)
		c.local.Close()
	})
	c.feeder.Spawn("clock", func() { c.coarse.Run(c.clock, c.stop) })
	c.notifier.Spawn("notifier", func() { c.notify.run(c.stop) })
	if len(opts.Redis.InitAddress) == 0 {
		return c, nil
	}
	c.connect()
	return c, nil
}

// Open is New with the Redis options of a URL, in the syntax of rueidis.ParseURL:
// redis://user:password@host:port/db, rediss:// for TLS, unix:///path/to/redis.sock. Further
// addresses are given as ?addr=host:port, the name of a master that sentinels watch as
// ?master_set=name. The error never shows the password.
func Open(url string) (*Cache, error) {
	redis, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, urlError(url, err)
	}
	return New(Options{Redis: redis})
}

// restore opens Journal.Dir and takes over the intents of an earlier process.
func (c *Cache) restore() error {
	r, err := c.journal.Open(c.opts.Journal.config(), c.opts.Timeout, c.clock, c.local.Hash, c.notify.journalFile)
	if err != nil {
		return fmt.Errorf("holdfast: options: Journal.Dir: %w", err)
	}
	c.stats.restored.Add(uint64(r.Keys))
	c.notify.restored(r)
	return nil
}

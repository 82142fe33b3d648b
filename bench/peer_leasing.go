package bench

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/redis/rueidis"
)

// leasing prevents a fleet from loading a key twice, in the way of rueidisaside. The
// loading process stores the name of a key of its own in place of the value, and renews
// that key as long as it lives. A process that finds such a name waits for an
// invalidation: the value was stored, or the loader's key has expired. rueidis caches
// reads in the process. Within the process one caller proceeds, and the others wait for
// it.
//
// It was written for this benchmark after the library's source, because no version of the
// library works with this rueidis. The last version that was part of rueidis' own module
// is measured beside it.
type leasing struct {
	client rueidis.Client
	ended  context.Context
	end    context.CancelFunc

	mu struct {
		sync.Mutex
		name  string                   // of this process; "" while it is not in Redis
		told  map[string]chan struct{} // closed on an invalidation of the key
		ahead map[string]chan struct{} // closed when the caller that proceeded is done
	}
}

const (
	nameBegins = "bench:loader:"
	nameLives  = 10 * time.Second
)

var (
	putValue = rueidis.NewLuaScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)
	dropName = rueidis.NewLuaScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`)
)

func openLeasing(s worker.Setup) (worker.Peer, error) { return newLeasing(s) }

func newLeasing(s worker.Setup) (*leasing, error) {
	p := &leasing{}
	p.mu.told, p.mu.ahead = map[string]chan struct{}{}, map[string]chan struct{}{}
	p.ended, p.end = context.WithCancel(context.Background())
	var err error
	p.client, err = rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.Addr}, PipelineMultiplex: -1, OnInvalidations: p.invalidated,
	})
	return p, err
}

func (p *leasing) Close() {
	p.end()
	p.client.Close()
}

// invalidated wakes the callers that wait for the keys; nil means all keys.
func (p *leasing) invalidated(keys []rueidis.RedisMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if keys == nil {
		p.mu.name = "" // the connection may be lost, or the server emptied
		for _, told := range p.mu.told {
			close(told)
		}
		clear(p.mu.told)
		return
	}
	for _, k := range keys {
		key, _ := k.ToString()
		if told := p.mu.told[key]; told != nil {
			close(told)
			delete(p.mu.told, key)
		}
	}
}

// listen must be called before the key is read, so that no invalidation is missed.
func (p *leasing) listen(key string) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.told[key] == nil {
		p.mu.told[key] = make(chan struct{})
	}
	return p.mu.told[key]
}

func (p *leasing) read(ctx context.Context, key string, life time.Duration) (string, error) {
	return p.client.DoCache(ctx, p.client.B().Get().Key(key).Cache(), life).ToString()
}

func (p *leasing) Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error) {
	v, err := p.get(ctx, key, load)
	return []byte(v), err
}

// get returns a string, as the library does.
func (p *leasing) get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) (string, error) {
	for {
		changed := p.listen(key)
		v, err := p.read(ctx, key, keptFor)
		if rueidis.IsRedisNil(err) {
			done, first := p.goAhead(key)
			if !first {
				if err := wait(ctx, done); err != nil {
					return "", err
				}
				continue
			}
			v, err = p.fill(ctx, key, load)
			p.doneWith(key)
		}
		if err != nil {
			return "", err
		}
		if !strings.HasPrefix(v, nameBegins) {
			return v, nil
		}
		gone := p.listen(v)
		switch _, err := p.read(ctx, v, nameLives); {
		case rueidis.IsRedisNil(err):
			dropName.Exec(ctx, p.client, []string{key}, []string{v})
			continue
		case err != nil:
			return "", err
		}
		if err := wait(ctx, changed, gone); err != nil {
			return "", err
		}
	}
}

// wait waits for any of the channels, one or two.
func wait(ctx context.Context, any ...<-chan struct{}) error {
	a, b := any[0], any[len(any)-1]
	select {
	case <-a:
	case <-b:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (p *leasing) goAhead(key string) (done <-chan struct{}, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ch := p.mu.ahead[key]; ch != nil {
		return ch, false
	}
	ch := make(chan struct{})
	p.mu.ahead[key] = ch
	return ch, true
}

func (p *leasing) doneWith(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.mu.ahead[key])
	delete(p.mu.ahead, key)
}

// fill loads the key. If another process is loading or has loaded it, fill returns the
// string found there.
func (p *leasing) fill(ctx context.Context, key string, load func(context.Context) ([]byte, error)) (string, error) {
	name, err := p.myName(ctx)
	if err != nil {
		return "", err
	}
	found, err := p.client.Do(ctx, p.client.B().Set().Key(key).Value(name).Nx().Get().Px(keptFor).Build()).ToString()
	if !rueidis.IsRedisNil(err) {
		return found, err
	}
	b, err := load(ctx)
	if err == nil {
		err = putValue.Exec(ctx, p.client, []string{key}, []string{name, string(b), strconv.FormatInt(keptFor.Milliseconds(), 10)}).Error()
	}
	if err != nil {
		dropName.Exec(context.WithoutCancel(ctx), p.client, []string{key}, []string{name})
	}
	return string(b), err
}

// myName returns the name of this process in Redis, and creates it if necessary.
func (p *leasing) myName(ctx context.Context) (string, error) {
	p.mu.Lock()
	name := p.mu.name
	p.mu.Unlock()
	if name != "" {
		return name, nil
	}
	name = nameBegins + rand.Text()
	if err := p.renew(ctx, name); err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.name == "" {
		p.mu.name = name
		go p.keepAlive(name)
	}
	return p.mu.name, nil
}

func (p *leasing) renew(ctx context.Context, name string) error {
	return p.client.Do(ctx, p.client.B().Set().Key(name).Value("").Px(nameLives).Build()).Error()
}

func (p *leasing) keepAlive(name string) {
	tick := time.NewTicker(nameLives / 2)
	defer tick.Stop()
	for {
		select {
		case <-p.ended.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		current := p.mu.name == name
		p.mu.Unlock()
		if !current {
			return
		}
		p.renew(p.ended, name)
	}
}

package compat

import (
	"context"
	"time"

	"github.com/eko/gocache/lib/v4/store"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidiscompat"
)

// rueidisStore stands in for gocache's store of that name, which is a module of its own:
// it sends the same commands in the same calls. Reads are cacheable, for ten seconds.
// Tags are sets of keys that live for thirty days, and whether they could be written
// nobody is told.
type rueidisStore struct {
	client   rueidis.Client
	defaults *store.Options
}

var _ store.StoreInterface = (*rueidisStore)(nil)

func newStore(client rueidis.Client, options ...store.Option) *rueidisStore {
	o := store.ApplyOptions(options...)
	if o.ClientSideCacheExpiration == 0 {
		o.ClientSideCacheExpiration = 10 * time.Second
	}
	return &rueidisStore{client, o}
}

func (s *rueidisStore) Get(ctx context.Context, key any) (any, error) {
	v, _, err := s.GetWithTTL(ctx, key)
	return v, err
}

func (s *rueidisStore) GetWithTTL(ctx context.Context, key any) (any, time.Duration, error) {
	get := s.client.B().Get().Key(key.(string)).Cache()
	reply := s.client.DoCache(ctx, get, s.defaults.ClientSideCacheExpiration)
	v, err := reply.ToString()
	if rueidis.IsRedisNil(err) {
		err = store.NotFoundWithCause(err)
	}
	return v, time.Duration(reply.CacheTTL()) * time.Second, err
}

func (s *rueidisStore) Set(ctx context.Context, key, value any, options ...store.Option) error {
	o := store.ApplyOptionsWithDefault(s.defaults, options...)
	b := s.client.B()
	set := b.Set().Key(key.(string)).Value(value.(string)).ExSeconds(int64(o.Expiration / time.Second)).Build()
	if err := s.client.Do(ctx, set).Error(); err != nil {
		return err
	}
	for _, tag := range o.Tags {
		s.client.DoMulti(ctx,
			b.Sadd().Key(tagged(tag)).Member(key.(string)).Build(),
			b.Expire().Key(tagged(tag)).Seconds(30*24*60*60).Build())
	}
	return nil
}

func tagged(tag string) string { return "gocache_tag_" + tag }

func (s *rueidisStore) Delete(ctx context.Context, key any) error {
	return s.client.Do(ctx, s.client.B().Del().Key(key.(string)).Build()).Error()
}

func (s *rueidisStore) Invalidate(ctx context.Context, options ...store.InvalidateOption) error {
	for _, tag := range store.ApplyInvalidateOptions(options...).Tags {
		keys, err := s.client.Do(ctx, s.client.B().Smembers().Key(tagged(tag)).Build()).AsStrSlice()
		if err != nil {
			continue
		}
		for _, key := range append(keys, tagged(tag)) {
			_ = s.Delete(ctx, key)
		}
	}
	return nil
}

func (s *rueidisStore) Clear(ctx context.Context) error {
	return rueidiscompat.NewAdapter(s.client).FlushAll(ctx).Err()
}

func (s *rueidisStore) GetType() string { return "rueidis" }

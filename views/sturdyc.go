package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Sturdyc is a DistributedStorage and a DistributedStorageWithDeletions of
// viccon/sturdyc.
//
// While Redis is away, records that this process has seen are still there; others are
// fetched from the source of truth, by each process separately. Records stored and
// deleted meanwhile are so in Redis afterwards.
type Sturdyc struct {
	// OnError, if not nil, gets the errors that the interface cannot return, on the
	// goroutine of the caller: a record could not be read, stored or removed. Neither a
	// miss nor an outage is an error. Set it before the first use.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewSturdyc returns a Sturdyc whose keys in the Cache begin with prefix. The interface
// has no TTL, so records are kept for ttl, which must be longer than the refresh delay of
// WithDistributedStorageEarlyRefreshes; 0 means Options.DefaultTTL.
func NewSturdyc(c *holdfast.Cache, prefix string, ttl time.Duration) *Sturdyc {
	return &Sturdyc{view: view{c, prefix}, ttl: ttl}
}

// Get returns a record, or false on a miss or an error.
func (s *Sturdyc) Get(ctx context.Context, key string) ([]byte, bool) {
	value, found, err := s.view.get(ctx, key)
	told(s.OnError, err)
	return value, found
}

// Set stores a record. An error goes to OnError.
func (s *Sturdyc) Set(ctx context.Context, key string, value []byte) {
	told(s.OnError, s.view.cache.Set(ctx, s.view.prefix+key, value, s.ttl))
}

// GetBatch returns the records that were found. An error goes to OnError.
func (s *Sturdyc) GetBatch(ctx context.Context, keys []string) map[string][]byte {
	found, err := s.view.cache.GetMany(ctx, s.prefixed(keys)...)
	told(s.OnError, err)
	records := make(map[string][]byte, len(found))
	for key, value := range found {
		records[key[len(s.view.prefix):]] = clone(value)
	}
	return records
}

// SetBatch stores records. An error goes to OnError.
func (s *Sturdyc) SetBatch(ctx context.Context, records map[string][]byte) {
	items := make(map[string][]byte, len(records))
	for key, value := range records {
		items[s.view.prefix+key] = value
	}
	told(s.OnError, s.view.cache.SetMany(ctx, items, s.ttl))
}

// Delete removes a record, which may be absent. An error goes to OnError.
func (s *Sturdyc) Delete(ctx context.Context, key string) {
	told(s.OnError, s.view.cache.Delete(ctx, s.view.prefix+key))
}

// DeleteBatch removes records, any of which may be absent. An error goes to OnError.
func (s *Sturdyc) DeleteBatch(ctx context.Context, keys []string) {
	told(s.OnError, s.view.cache.Delete(ctx, s.prefixed(keys)...))
}

func (s *Sturdyc) prefixed(keys []string) []string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = s.view.prefix + key
	}
	return names
}

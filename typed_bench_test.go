package holdfast

import (
	"context"
	"testing"
	"time"
)

type benchPoint struct {
	ID, Seen int64
	X, Y     float64
}

type benchUser struct {
	ID    int64
	Name  string
	Email string
	Tags  []string
}

// BenchmarkTypedHit is a local hit of a Typed beside one of its Cache, for a value
// without pointers, for a pointer, and with a prefix. Targets: ratio at most 1.3, 0
// allocs. The last is what a hit costs that decodes: a loss.
func BenchmarkTypedHit(b *testing.B) {
	ctx := context.Background()
	run := func(name string, value any, get func(c *Cache) func(key string) error) {
		b.Run(name, func(b *testing.B) {
			const n = 1 << 9
			keys := benchKeys(n)
			text, err := JSON[any]().Encode(value)
			if err != nil {
				b.Fatal(err)
			}
			c := freshCopies(b, keys, text)
			typed := get(c)
			for _, k := range keys {
				if err := typed(k); err != nil {
					b.Fatal(err)
				}
			}
			for c.local.Queued() > 0 {
				time.Sleep(time.Millisecond)
			}
			before := c.Stats()
			versus(b, 1,
				func(_, i int) { typed(keys[(i*7)&(n-1)]) },
				func(_, i int) { c.Get(ctx, keys[(i*7)&(n-1)]) })
			if after := c.Stats(); after.RemoteHits != before.RemoteHits || after.Misses != before.Misses {
				b.Errorf("not all were local hits: %+v", after)
			}
		})
	}
	point := benchPoint{1, 2, 3, 4}
	user := benchUser{7, "Ada", "ada@example.org", []string{"a", "b"}}
	run("struct", point, func(c *Cache) func(string) error {
		t := NewTyped(c, JSON[benchPoint]())
		return func(key string) error { _, err := t.Get(ctx, key); return err }
	})
	run("pointer", user, func(c *Cache) func(string) error {
		t := NewTyped(c, JSON[*benchUser]())
		return func(key string) error { _, err := t.Get(ctx, key); return err }
	})
	run("prefix", user, func(c *Cache) func(string) error {
		t := NewTyped(c, JSON[*benchUser](), WithPrefix("bench:"))
		return func(key string) error { _, err := t.Get(ctx, key[len("bench:"):]); return err }
	})
	run("undecoded", user, func(c *Cache) func(string) error {
		t := NewTyped(c, JSON[*benchUser](), WithoutDecoded())
		return func(key string) error { _, err := t.Get(ctx, key); return err }
	})
}

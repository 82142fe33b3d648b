// Package conformance compiles the views against the libraries that they are for, and
// runs those libraries' usual programs on them: on a Redis that is well, and on one
// that is killed midway.
package conformance

import (
	"context"
	"errors"
	"net/http"
	"net/http/cookiejar"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/alexedwards/scs/v2"
	gocache "github.com/go-redis/cache/v9"
	fiber2 "github.com/gofiber/fiber/v2"
	fiber3 "github.com/gofiber/fiber/v3"
	"github.com/gregjones/httpcache"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
	"github.com/redis/rueidis"
	"github.com/viccon/sturdyc"
	"golang.org/x/crypto/acme/autocert"
)

var (
	_ fiber2.Storage                          = (*views.Fiber)(nil)
	_ fiber3.Storage                          = (*views.Fiber)(nil)
	_ scs.Store                               = (*views.SCS)(nil)
	_ scs.CtxStore                            = (*views.SCS)(nil)
	_ httpcache.Cache                         = (*views.HTTPCache)(nil)
	_ autocert.Cache                          = (*views.Autocert)(nil)
	_ sturdyc.DistributedStorage              = (*views.Sturdyc)(nil)
	_ sturdyc.DistributedStorageWithDeletions = (*views.Sturdyc)(nil)
	_ gocache.LocalCache                      = (*views.LocalCache)(nil)
	_ middleware.ExpiringKeyRepository        = (*views.Watermill)(nil)
)

// Of these the interface alone is of interest here, and not all that comes with it.
var (
	// github.com/99designs/gqlgen: graphql.Cache[string]
	_ interface {
		Get(ctx context.Context, key string) (value string, ok bool)
		Add(ctx context.Context, key string, value string)
	} = (*views.GQLGen)(nil)

	// willnorris.com/go/imageproxy: Cache
	_ interface {
		Get(key string) (data []byte, ok bool)
		Set(key string, data []byte)
		Delete(key string)
	} = (*views.HTTPCache)(nil)

	// github.com/mgtv-tech/jetcache-go: local.Local
	_ interface {
		Set(key string, data []byte)
		Get(key string) ([]byte, bool)
		Del(key string)
	} = (*views.LocalCache)(nil)
)

const patience = time.Minute // for what must come in the end

// open makes a Cache that has reached the server.
func open(t testing.TB, s *redistest.Server) *holdfast.Cache {
	t.Helper()
	c, err := holdfast.New(holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{s.Addr()}},
		Timeout: 5 * time.Second, // so that a slow machine is no outage
	})
	must(t, err)
	t.Cleanup(func() {
		var u *holdfast.UndeliveredError // a test may end in an outage
		if err := c.Close(); err != nil && !errors.As(err, &u) {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, c.WaitReady(ctx))
	return c
}

// up waits until the Cache has a Redis that takes its writes.
func up(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the outage to end", func() bool { return c.Check(context.Background()) == nil })
}

// kill kills the server and waits until the Cache has noticed.
func kill(t testing.TB, s *redistest.Server, c *holdfast.Cache) {
	t.Helper()
	s.Kill()
	redistest.WaitFor(t, patience, "the outage to be noticed", func() bool { return c.Health().State == holdfast.Down })
}

// restart starts it again, without its data, and waits until it has what was written
// meanwhile.
func restart(t testing.TB, s *redistest.Server, c *holdfast.Cache) {
	t.Helper()
	s.RestartEmpty()
	up(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, c.Drain(ctx))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v; want %v", what, got, want)
	}
}

// browser is a client with cookies.
func browser(t testing.TB) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	must(t, err)
	client := &http.Client{Jar: jar, Timeout: patience}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// counted is a source of truth that counts how often it is asked.
type counted struct{ n atomic.Int64 }

func (c *counted) ask() int64 { return c.n.Add(1) }

package conformance

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gregjones/httpcache"
	"github.com/gregjones/httpcache/test"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

func TestHTTPCachePassesTheLibrarysOwnTest(t *testing.T) {
	redis := redistest.Start(t)
	test.Cache(t, views.NewHTTPCache(open(t, redis), "http:", time.Hour))
	away := open(t, redis)
	kill(t, redis, away)
	test.Cache(t, views.NewHTTPCache(away, "http:", time.Hour))
}

func TestHTTPResponsesThatAreKnownAreServedWithoutRedis(t *testing.T) {
	var asked counted
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.ask()
		if r.URL.Path == "/validated" {
			w.Header().Set("ETag", `"v1"`)
			if r.Header.Get("If-None-Match") == `"v1"` {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		} else {
			w.Header().Set("Cache-Control", "max-age=3600")
		}
		fmt.Fprintf(w, "answer %d", n)
	}))
	t.Cleanup(origin.Close)
	redis := redistest.Start(t)
	client := func(c *holdfast.Cache) *http.Client {
		cache := views.NewHTTPCache(c, "http:", time.Hour)
		cache.OnError = func(err error) { t.Error(err) }
		return httpcache.NewTransport(cache).Client()
	}
	c := open(t, redis)
	here, there := client(c), client(open(t, redis))
	get := func(client *http.Client, path, want, fromCache string) {
		t.Helper()
		resp, err := client.Get(origin.URL + path)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		equal(t, path, string(body), want)
		equal(t, path+": "+httpcache.XFromCache, resp.Header.Get(httpcache.XFromCache), fromCache)
	}
	get(here, "/fresh", "answer 1", "")
	get(here, "/fresh", "answer 1", "1")
	get(there, "/fresh", "answer 1", "1")
	get(here, "/validated", "answer 2", "")
	get(here, "/validated", "answer 2", "1") // the origin said 304
	equal(t, "requests", asked.n.Load(), 3)

	kill(t, redis, c)
	get(here, "/fresh", "answer 1", "1")
	get(here, "/validated", "answer 2", "1")
	get(here, "/new", "answer 5", "")
	get(here, "/new", "answer 5", "1")

	restart(t, redis, c)
	third := client(open(t, redis))
	get(third, "/new", "answer 5", "1")
}

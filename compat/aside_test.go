package compat

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
)

func (v venue) aside(lua bool) (rueidisaside.CacheAsideClient, error) {
	return rueidisaside.NewClient(rueidisaside.ClientOption{ClientBuilder: v.build, UseLuaLock: lua})
}

// asideProgram loads values by two clients, with the lock as a command and as a script.
func asideProgram(ctx context.Context, s *story) {
	for _, lua := range []bool{false, true} {
		first, err := s.aside(lua)
		s.note("client", nil, err)
		second, err := s.aside(lua)
		s.note("another", nil, err)
		asideLoads(ctx, s, first, second)
		asideWaits(ctx, s, first, second)
		first.Close()
		second.Close()
	}
}

func asideLoads(ctx context.Context, s *story, first, second rueidisaside.CacheAsideClient) {
	get := func(what string, c rueidisaside.CacheAsideClient, key string, load func(context.Context, string) (string, error)) {
		v, err := c.Get(ctx, time.Hour, key, load)
		s.note(what, v, err)
	}
	loader := func(v string, err error) func(context.Context, string) (string, error) {
		return func(context.Context, string) (string, error) { return v, err }
	}
	get("get without a loader", first, "a:1", nil)
	get("a loader that fails", first, "a:1", loader("", errors.New("no source")))
	get("get", first, "a:1", func(ctx context.Context, key string) (string, error) {
		do := func(args ...string) rueidis.RedisResult {
			c := second.Client()
			return c.Do(ctx, c.B().Arbitrary(args...).Build())
		}
		id, err := do("GET", key).ToString()
		s.note("the client's id is in the key", strings.HasPrefix(id, rueidisaside.PlaceholderPrefix), err)
		exists, err := do("EXISTS", id).AsInt64()
		s.note("the key of the id", exists, err)
		left, err := do("PTTL", id).AsInt64()
		s.note("it ends", left > 0 && left <= 10_000, err)
		rueidisaside.OverrideCacheTTL(ctx, 2*time.Hour)
		return "loaded", nil
	})
	about(s, "its ttl", s.c.PTTL(ctx, "a:1"))
	get("get again", first, "a:1", loader("no", nil))
	get("get by the other", second, "a:1", loader("no", nil))
	get("an empty value", first, "a:2", loader("", nil))
	get("an empty value again", second, "a:2", loader("no", nil))
	s.note("del", nil, first.Del(ctx, "a:1"))
	s.note("del of another client", nil, second.Del(ctx, "a:2"))
}

// asideWaits has one client wait for the value that the other loads.
func asideWaits(ctx context.Context, s *story, first, second rueidisaside.CacheAsideClient) {
	var loads atomic.Int32
	loading := make(chan struct{})
	load := func(context.Context, string) (string, error) {
		if loads.Add(1) == 1 {
			close(loading)
			time.Sleep(20 * time.Millisecond) // the loader's work
		}
		return "once", nil
	}
	var all sync.WaitGroup
	results := make(chan string, 9)
	get := func(c rueidisaside.CacheAsideClient) {
		all.Go(func() {
			v, err := c.Get(ctx, time.Hour, "a:shared", load)
			if err != nil {
				v = err.Error()
			}
			results <- v
		})
	}
	get(first)
	<-loading
	for range 4 {
		get(first)
		get(second)
	}
	all.Wait()
	close(results)
	for v := range results {
		s.note("get of nine", v, nil)
	}
	s.note("loads", loads.Load(), nil)
	s.note("del", nil, first.Del(ctx, "a:shared"))
}

// typedAsideProgram loads a struct as JSON.
func typedAsideProgram(ctx context.Context, s *story) {
	type user struct{ Name string }
	client, err := s.aside(false)
	s.note("client", nil, err)
	defer client.Close()
	users := rueidisaside.NewTypedCacheAsideClient(client,
		func(u *user) (string, error) { b, err := json.Marshal(u); return string(b), err },
		func(text string) (*user, error) { u := new(user); return u, json.Unmarshal([]byte(text), u) })
	get := func(what, name string) {
		u, err := users.Get(ctx, time.Hour, "at:1", func(context.Context, string) (*user, error) { return &user{name}, nil })
		if u != nil {
			name = u.Name
		}
		s.note(what, name, err)
	}
	get("get", "Ada")
	get("get again", "Bob")
	tell(s, "what Redis has", s.c.Get(ctx, "at:1"))
	s.note("del", nil, users.Del(ctx, "at:1"))
	tell(s, "set of another form", s.c.Set(ctx, "at:1", "no JSON", 0))
	_, err = users.Get(ctx, time.Hour, "at:1", nil)
	s.note("get of another form", nil, err)
	tell(s, "del", s.c.Del(ctx, "at:1"))
}

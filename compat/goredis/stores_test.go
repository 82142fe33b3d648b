package programs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	gocache "github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"
)

// visits is a site with sessions.
func visits(sessions *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/in", func(_ http.ResponseWriter, req *http.Request) {
		if err := sessions.RenewToken(req.Context()); err == nil {
			sessions.Put(req.Context(), "user", "ada")
		}
	})
	mux.HandleFunc("/visit", func(w http.ResponseWriter, req *http.Request) {
		n := sessions.GetInt(req.Context(), "visits") + 1
		sessions.Put(req.Context(), "visits", n)
		fmt.Fprintf(w, "visit %d of %q", n, sessions.GetString(req.Context(), "user"))
	})
	mux.HandleFunc("/out", func(_ http.ResponseWriter, req *http.Request) { _ = sessions.Destroy(req.Context()) })
	return sessions.LoadAndSave(mux)
}

// A browser keeps one cookie.
type browser struct {
	site   http.Handler
	cookie *http.Cookie
}

func (b *browser) get(path string) string {
	req := httptest.NewRequest(http.MethodGet, path, nil)
	if b.cookie != nil {
		req.AddCookie(b.cookie)
	}
	w := httptest.NewRecorder()
	b.site.ServeHTTP(w, req)
	for _, c := range w.Result().Cookies() {
		b.cookie = c
	}
	return fmt.Sprint(w.Code, " ", w.Body)
}

func scsUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	store := goredisstore.NewWithPrefix(rdb, fmt.Sprint("scs", run, ":"))
	sessions := scs.New()
	sessions.Store, sessions.Lifetime = store, time.Hour
	ada, bob := &browser{site: visits(sessions)}, &browser{site: visits(sessions)}
	for _, b := range []*browser{ada, ada, bob, ada} {
		r.note("visit", b.get("/visit"), nil)
	}
	r.note("in", ada.get("/in"), nil)
	r.note("visit", ada.get("/visit"), nil)
	r.note("visit", bob.get("/visit"), nil)
	all, err := store.AllCtx(ctx)
	r.note("sessions", len(all), err)
	r.note("in the store", all[ada.cookie.Value] != nil && all[bob.cookie.Value] != nil, nil)
	old := *ada.cookie
	r.note("out", ada.get("/out"), nil)
	stale := &browser{site: ada.site, cookie: &old}
	r.note("visit after that", stale.get("/visit"), nil)
	all, err = store.AllCtx(ctx)
	r.note("sessions", len(all), err)

	find := func(what, token string) {
		b, found, err := store.FindCtx(ctx, token)
		r.note(what, fmt.Sprintf("%q %v", b, found), err)
	}
	find("find nothing", "none")
	r.note("commit", nil, store.CommitCtx(ctx, "token", []byte("1"), time.Now().Add(time.Hour)))
	find("find", "token")
	find("find again", "token")
	r.note("commit", nil, store.CommitCtx(ctx, "token", []byte("2"), time.Now().Add(time.Hour)))
	find("find", "token")
	ttl, err := rdb.TTL(ctx, fmt.Sprint("scs", run, ":token")).Result()
	r.note("its ttl", about(ttl), err)
	r.note("delete", nil, store.DeleteCtx(ctx, "token"))
	r.note("delete again", nil, store.DeleteCtx(ctx, "token"))
	find("find the deleted one", "token")
	r.note("commit for 50ms", nil, store.CommitCtx(ctx, "short", []byte("1"), time.Now().Add(50*time.Millisecond)))
	time.Sleep(100 * time.Millisecond)
	find("find the expired one", "short")
}

func scsInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	sessions := scs.New()
	store := goredisstore.New(rdb)
	sessions.Store, sessions.Lifetime = store, time.Hour
	sessions.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	ada := &browser{site: visits(sessions)}
	n := 0
	return []operation{
		{name: "a request with a session", call: func(context.Context) error {
			n++
			if got, want := ada.get("/visit"), fmt.Sprintf("200 visit %d of %q", n, ""); got != want {
				n--
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		}},
		{name: "All", alone: true, call: func(ctx context.Context) error { _, err := store.AllCtx(ctx); return err }},
	}
}

type user struct {
	Name  string
	Roles []string
}

func goRedisCacheUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	cached := gocache.New(&gocache.Options{Redis: rdb, StatsEnabled: true})
	key := func(k string) string { return fmt.Sprint(k, ":", run) }
	set := func(what string, item gocache.Item) {
		item.Ctx, item.Key, item.TTL = ctx, key(item.Key), time.Hour
		r.note(what, nil, cached.Set(&item))
	}
	get := func(k string) {
		var u user
		err := cached.Get(ctx, key(k), &u)
		r.note("get "+k, fmt.Sprint(u, cached.Exists(ctx, key(k))), err)
	}
	ada, bob := user{"Ada", []string{"admin"}}, user{"Bob", slices.Repeat([]string{"guest"}, 40)}
	get("ada")
	set("set", gocache.Item{Key: "ada", Value: ada})
	get("ada")
	get("ada")
	set("set a large one", gocache.Item{Key: "ada", Value: bob})
	get("ada")
	set("set if absent", gocache.Item{Key: "ada", Value: ada, SetNX: true})
	get("ada")
	set("set if present", gocache.Item{Key: "ada", Value: ada, SetXX: true})
	get("ada")
	set("set what is absent, if present", gocache.Item{Key: "eve", Value: ada, SetXX: true})
	get("eve")
	set("set what is absent, if absent", gocache.Item{Key: "dan", Value: ada, SetNX: true})
	get("dan")
	loads := 0
	once := func(k string, failure error) {
		var u user
		err := cached.Once(&gocache.Item{Ctx: ctx, Key: key(k), Value: &u, TTL: time.Hour, Do: func(*gocache.Item) (any, error) {
			loads++
			return &bob, failure
		}})
		r.note("once "+k, fmt.Sprint(u, loads), err)
	}
	once("kim", errors.New("no rows"))
	once("kim", nil)
	once("kim", nil)
	once("ada", nil)
	ttl, err := rdb.TTL(ctx, key("kim")).Result()
	r.note("ttl", about(ttl), err)
	r.note("delete", nil, cached.Delete(ctx, key("kim")))
	r.note("delete again", nil, cached.Delete(ctx, key("kim")))
	get("kim")
	once("kim", nil)
	r.note("garbage by the client", rdb.Set(ctx, key("kim"), "garbage", time.Hour).Val(), nil)
	get("kim")
	once("kim", nil)
	get("kim")
	r.note("expire by the client", rdb.PExpire(ctx, key("kim"), 50*time.Millisecond).Val(), nil)
	time.Sleep(100 * time.Millisecond)
	get("kim")
	r.note("statistics", *cached.Stats(), nil)

	local := gocache.New(&gocache.Options{Redis: rdb, LocalCache: gocache.NewTinyLFU(100, time.Minute)})
	seen := map[string]bool{}
	for range 3 {
		var u user
		must(t, local.Once(&gocache.Item{Ctx: ctx, Key: key("ada"), Value: &u, TTL: time.Hour}))
		seen[u.Name] = true
	}
	r.note("with TinyLFU", slices.Sorted(maps.Keys(seen)), nil)
}

func goRedisCacheInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	cached := gocache.New(&gocache.Options{Redis: rdb})
	ada := user{Name: "Ada"}
	set := func(ctx context.Context, key string, absent bool) error {
		return cached.Set(&gocache.Item{Ctx: ctx, Key: key, Value: ada, TTL: time.Hour, SetNX: absent})
	}
	prepared(t, func() error { return set(within(t), "read", false) })
	n := 0
	return []operation{
		{name: "Get", call: func(ctx context.Context) error { var u user; return cached.Get(ctx, "read", &u) }},
		{name: "Set", call: func(ctx context.Context) error { return set(ctx, "written", false) }},
		{name: "Once of a cold key", call: func(ctx context.Context) error {
			n++
			var u user
			return cached.Once(&gocache.Item{Ctx: ctx, Key: fmt.Sprint("cold:", n), Value: &u, TTL: time.Hour,
				Do: func(*gocache.Item) (any, error) { return &ada, nil }})
		}},
		{name: "Delete", call: func(ctx context.Context) error { return cached.Delete(ctx, "deleted") }},
		{name: "Set with SetNX", alone: true, call: func(ctx context.Context) error { return set(ctx, "absent", true) }},
	}
}

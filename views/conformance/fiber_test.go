package conformance

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	fiber2 "github.com/gofiber/fiber/v2"
	cache2 "github.com/gofiber/fiber/v2/middleware/cache"
	idempotency2 "github.com/gofiber/fiber/v2/middleware/idempotency"
	limiter2 "github.com/gofiber/fiber/v2/middleware/limiter"
	session2 "github.com/gofiber/fiber/v2/middleware/session"
	fiber3 "github.com/gofiber/fiber/v3"
	cache3 "github.com/gofiber/fiber/v3/middleware/cache"
	idempotency3 "github.com/gofiber/fiber/v3/middleware/idempotency"
	limiter3 "github.com/gofiber/fiber/v3/middleware/limiter"
	session3 "github.com/gofiber/fiber/v3/middleware/session"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

// site is one process' web server, with all middleware that has a Storage.
type site struct {
	t       testing.TB
	serve   func(*http.Request) (*http.Response, error)
	made    counted // pages
	paid    counted
	cookies []*http.Cookie // of its one visitor
}

// visit returns the status and the body.
func (s *site) visit(method, path string, header ...string) (int, string) {
	s.t.Helper()
	req := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	for _, c := range s.cookies {
		req.AddCookie(c)
	}
	resp, err := s.serve(req)
	must(s.t, err)
	body, err := io.ReadAll(resp.Body)
	must(s.t, err)
	must(s.t, resp.Body.Close())
	if set := resp.Cookies(); len(set) > 0 {
		s.cookies = set
	}
	return resp.StatusCode, string(body)
}

func (s *site) wants(path, body string) {
	s.t.Helper()
	_, got := s.visit(http.MethodGet, path)
	equal(s.t, path, got, body)
}

func onFiber2(t testing.TB, c *holdfast.Cache) *site {
	s := &site{t: t}
	app := fiber2.New()
	store := session2.New(session2.Config{Storage: views.NewFiber(c, "session:")})
	app.Get("/login/:user", func(c *fiber2.Ctx) error {
		sess, err := store.Get(c)
		if err != nil {
			return err
		}
		sess.Set("user", c.Params("user"))
		return sess.Save()
	})
	app.Get("/me", func(c *fiber2.Ctx) error {
		sess, err := store.Get(c)
		if err != nil {
			return err
		}
		user, _ := sess.Get("user").(string)
		return c.SendString(user)
	})
	app.Get("/logout", func(c *fiber2.Ctx) error {
		sess, err := store.Get(c)
		if err != nil {
			return err
		}
		return sess.Destroy()
	})
	app.Get("/reset", func(*fiber2.Ctx) error { return store.Reset() })
	app.Get("/page/:n", cache2.New(cache2.Config{Storage: views.NewFiber(c, "page:"), Expiration: time.Hour}), func(c *fiber2.Ctx) error {
		return c.SendString(c.Params("n") + " made " + strconv.FormatInt(s.made.ask(), 10))
	})
	app.Get("/limited", limiter2.New(limiter2.Config{Storage: views.NewFiber(c, "limit:"), Max: 3, Expiration: time.Hour}), func(c *fiber2.Ctx) error {
		return c.SendString("welcome")
	})
	app.Post("/pay", idempotency2.New(idempotency2.Config{Storage: views.NewFiber(c, "idem:")}), func(c *fiber2.Ctx) error {
		return c.SendString(strconv.FormatInt(s.paid.ask(), 10))
	})
	s.serve = func(r *http.Request) (*http.Response, error) { return app.Test(r, int(patience.Milliseconds())) }
	return s
}

func onFiber3(t testing.TB, c *holdfast.Cache) *site {
	s := &site{t: t}
	app := fiber3.New()
	handler, store := session3.NewWithStore(session3.Config{Storage: views.NewFiber(c, "session:")})
	app.Get("/login/:user", handler, func(c fiber3.Ctx) error {
		session3.FromContext(c).Set("user", string([]byte(c.Params("user"))))
		return nil
	})
	app.Get("/me", handler, func(c fiber3.Ctx) error {
		user, _ := session3.FromContext(c).Get("user").(string)
		return c.SendString(user)
	})
	app.Get("/logout", handler, func(c fiber3.Ctx) error { return session3.FromContext(c).Destroy() })
	app.Get("/reset", func(c fiber3.Ctx) error { return store.Reset(c) })
	app.Get("/page/:n", cache3.New(cache3.Config{Storage: views.NewFiber(c, "page:"), Expiration: time.Hour}), func(c fiber3.Ctx) error {
		return c.SendString(c.Params("n") + " made " + strconv.FormatInt(s.made.ask(), 10))
	})
	app.Get("/limited", limiter3.New(limiter3.Config{Storage: views.NewFiber(c, "limit:"), Max: 3, Expiration: time.Hour}), func(c fiber3.Ctx) error {
		return c.SendString("welcome")
	})
	app.Post("/pay", idempotency3.New(idempotency3.Config{Storage: views.NewFiber(c, "idem:")}), func(c fiber3.Ctx) error {
		return c.SendString(strconv.FormatInt(s.paid.ask(), 10))
	})
	s.serve = func(r *http.Request) (*http.Response, error) {
		return app.Test(r, fiber3.TestConfig{Timeout: patience, FailOnTimeout: true})
	}
	return s
}

func eachFiber(t *testing.T, test func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site)) {
	t.Run("v2", func(t *testing.T) { test(t, onFiber2) })
	t.Run("v3", func(t *testing.T) { test(t, onFiber3) })
}

func TestFiberSessionsOutliveRedis(t *testing.T) {
	eachFiber(t, func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site) {
		redis := redistest.Start(t)
		c, otherCache := open(t, redis), open(t, redis)
		s, other := on(t, c), on(t, otherCache)
		s.wants("/login/ann", "")
		s.wants("/me", "ann")
		other.cookies = s.cookies
		other.wants("/me", "ann")

		kill(t, redis, c)
		s.wants("/me", "ann")
		s.wants("/login/bob", "") // the same session
		s.wants("/me", "bob")
		restart(t, redis, c)
		s.wants("/me", "bob")
		up(t, otherCache)
		other.cookies = s.cookies
		other.wants("/me", "bob") // its own copy is in doubt

		kill(t, redis, c)
		old := s.cookies
		s.wants("/logout", "")
		s.cookies = old
		s.wants("/me", "")
		restart(t, redis, c)
		s.cookies = old
		s.wants("/me", "")
	})
}

func TestFiberServesPagesThatItHasWithoutRedis(t *testing.T) {
	eachFiber(t, func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site) {
		redis := redistest.Start(t)
		c, otherCache := open(t, redis), open(t, redis)
		s, other := on(t, c), on(t, otherCache)
		s.wants("/page/a", "a made 1")
		s.wants("/page/a", "a made 1")
		other.wants("/page/a", "a made 1")
		kill(t, redis, c)
		s.wants("/page/a", "a made 1")
		s.wants("/page/b", "b made 2")
		s.wants("/page/b", "b made 2")
		restart(t, redis, c)
		s.wants("/page/b", "b made 2")
		third := on(t, open(t, redis))
		third.wants("/page/b", "b made 2")
	})
}

func TestFiberLimitsWithoutRedis(t *testing.T) {
	eachFiber(t, func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site) {
		redis := redistest.Start(t)
		c := open(t, redis)
		s := on(t, c)
		for i := range 5 {
			if i == 1 {
				kill(t, redis, c)
			}
			want := http.StatusOK
			if i >= 3 {
				want = http.StatusTooManyRequests
			}
			code, _ := s.visit(http.MethodGet, "/limited")
			equal(t, "visit "+strconv.Itoa(i+1), code, want)
		}
	})
}

func TestFiberDoesNotPayTwiceWithoutRedis(t *testing.T) {
	eachFiber(t, func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site) {
		redis := redistest.Start(t)
		c := open(t, redis)
		s := on(t, c)
		pays := func(key, want string) {
			t.Helper()
			code, body := s.visit(http.MethodPost, "/pay", "X-Idempotency-Key", key+"-0000-0000-0000-000000000000")
			equal(t, "status", code, http.StatusOK)
			equal(t, "payment", body, want)
		}
		pays("00000001", "1")
		pays("00000001", "1")
		kill(t, redis, c)
		pays("00000001", "1")
		pays("00000002", "2")
		pays("00000002", "2")
		restart(t, redis, c)
		pays("00000002", "2")
	})
}

func TestFiberHearsThatASessionStoreCannotBeReset(t *testing.T) {
	eachFiber(t, func(t *testing.T, on func(testing.TB, *holdfast.Cache) *site) {
		redis := redistest.Start(t)
		redis.MustDo("SET", "another's", "value")
		s := on(t, open(t, redis))
		s.wants("/login/ann", "")
		code, _ := s.visit(http.MethodGet, "/reset")
		equal(t, "status", code, http.StatusInternalServerError)
		s.wants("/me", "ann")
		equal(t, "another's key", redis.MustDo("GET", "another's"), "value")
	})
}

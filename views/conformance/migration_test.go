package conformance

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gocache "github.com/go-redis/cache/v9"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/viccon/sturdyc"
)

// The code that docs/MIGRATION.md shows.

type User struct{ Name string }

// users stands in for a database.
type users struct {
	rows  map[string]User
	asked counted
}

var errNoRows = errors.New("no rows")

func (u *users) user(_ context.Context, id string) (User, error) {
	u.asked.ask()
	row, ok := u.rows[id]
	if !ok {
		return User{}, errNoRows
	}
	return row, nil
}

func (u *users) usersIn(_ context.Context, ids []string) (map[string]User, error) {
	u.asked.ask()
	found := map[string]User{}
	for _, id := range ids {
		if row, ok := u.rows[id]; ok {
			found[id] = row
		}
	}
	return found, nil
}

func shutdown(cache *holdfast.Cache) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // less than the grace period
	defer cancel()
	if err := cache.Shutdown(ctx); err != nil {
		slog.Error("cache", "error", err) // says how many writes did not reach Redis
	}
}

func goRedisCacheBefore(ctx context.Context, addr string, db *users) (User, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	cached := gocache.New(&gocache.Options{
		Redis:      rdb,
		LocalCache: gocache.NewTinyLFU(10_000, time.Minute),
	})

	var user User
	err := cached.Once(&gocache.Item{
		Ctx: ctx, Key: "user:7", Value: &user, TTL: time.Hour,
		Do: func(*gocache.Item) (any, error) { return db.user(ctx, "7") },
	})
	return user, err
}

func goRedisCacheAfter(ctx context.Context, addr string, db *users) (User, error) {
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err // the options contradict each other; never the network
	}
	defer shutdown(cache)
	cached := gocache.New(&gocache.Options{
		LocalCache: views.NewLocalCache(cache, "", time.Hour), // and no Redis
	})

	var user User
	err = cached.Once(&gocache.Item{
		Ctx: ctx, Key: "user:7", Value: &user,
		Do: func(*gocache.Item) (any, error) { return db.user(ctx, "7") },
	})
	return user, err
}

func typedAfter(ctx context.Context, addr string, db *users) (User, error) {
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err
	}
	defer shutdown(cache)
	cached := holdfast.NewTyped(cache, holdfast.JSON[User](), holdfast.WithPrefix("user-json:"))

	user, err := cached.GetOrLoad(ctx, "7", time.Hour, func(ctx context.Context) (User, error) {
		return db.user(ctx, "7")
	})
	return user, err
}

// redisStorage is the kind of adapter that programs write for sturdyc.
type redisStorage struct{ rdb *redis.Client }

func (s redisStorage) Get(ctx context.Context, key string) ([]byte, bool) {
	b, err := s.rdb.Get(ctx, key).Bytes()
	return b, err == nil
}

func (s redisStorage) Set(ctx context.Context, key string, value []byte) {
	s.rdb.Set(ctx, key, value, 24*time.Hour)
}

func (s redisStorage) GetBatch(ctx context.Context, keys []string) map[string][]byte {
	found := map[string][]byte{}
	for _, key := range keys {
		if b, ok := s.Get(ctx, key); ok {
			found[key] = b
		}
	}
	return found
}

func (s redisStorage) SetBatch(ctx context.Context, records map[string][]byte) {
	for key, value := range records {
		s.Set(ctx, key, value)
	}
}

func sturdycBefore(ctx context.Context, addr string, db *users) (User, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	cached := sturdyc.New[User](10_000, 10, time.Hour, 10,
		sturdyc.WithEarlyRefreshes(10*time.Minute, 20*time.Minute, 30*time.Minute, time.Second),
		sturdyc.WithDistributedStorage(redisStorage{rdb}), // the program's own
	)

	user, err := cached.GetOrFetch(ctx, "user:7", func(ctx context.Context) (User, error) {
		return db.user(ctx, "7")
	})
	return user, err
}

func sturdycAfter(ctx context.Context, addr string, db *users) (User, error) {
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err
	}
	defer shutdown(cache)
	cached := sturdyc.New[User](10_000, 10, time.Hour, 10,
		sturdyc.WithEarlyRefreshes(10*time.Minute, 20*time.Minute, 30*time.Minute, time.Second),
		sturdyc.WithDistributedStorage(views.NewSturdyc(cache, "", 24*time.Hour)),
	)

	user, err := cached.GetOrFetch(ctx, "user:7", func(ctx context.Context) (User, error) {
		return db.user(ctx, "7")
	})
	return user, err
}

func sturdycTyped(ctx context.Context, addr string, db *users) (User, error) {
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err
	}
	defer shutdown(cache)
	cached := holdfast.NewTyped(cache, holdfast.JSON[User](),
		holdfast.WithPrefix("user-json:"), holdfast.WithTTL(time.Hour),
		holdfast.WithLoad(holdfast.LoadOptions{
			EarlyRefresh: 0.5,           // in the background, from half of the TTL on
			StaleIfError: 2 * time.Hour, // what is past its TTL, should the source fail
		}))

	user, err := cached.GetOrLoad(ctx, "7", 0, func(ctx context.Context) (User, error) {
		user, err := db.user(ctx, "7")
		if errors.Is(err, errNoRows) {
			err = holdfast.ErrNotFound // remembered for Load.NotFoundTTL
		}
		return user, err
	})
	if err != nil {
		return user, err
	}

	team, err := cached.GetOrLoadMany(ctx, []string{"7", "8"}, 0, db.usersIn) // asks for 8 alone
	return team["7"], err
}

type program = func(ctx context.Context, addr string, db *users) (User, error)

func TestWhatTheMigrationPageShowsWorks(t *testing.T) {
	for name, run := range map[string]program{
		"goRedisCacheBefore": goRedisCacheBefore,
		"goRedisCacheAfter":  goRedisCacheAfter,
		"typedAfter":         typedAfter,
		"sturdycBefore":      sturdycBefore,
		"sturdycAfter":       sturdycAfter,
		"sturdycTyped":       sturdycTyped,
	} {
		t.Run(name, func(t *testing.T) { worksAndGoesOn(t, run, strings.HasSuffix(name, "Before")) })
	}
}

// worksAndGoesOn runs a program with Redis, and, unless it is one from before, without.
func worksAndGoesOn(t *testing.T, run program, before bool) {
	t.Helper()
	redis := redistest.Start(t)
	db := &users{rows: map[string]User{"7": {"Ada"}, "8": {"Bob"}}}
	for range 2 {
		user, err := run(context.Background(), redis.Addr(), db)
		must(t, err)
		equal(t, "user", user, User{"Ada"})
	}
	if before {
		return
	}
	redis.Kill()
	user, err := run(context.Background(), redis.Addr(), db)
	must(t, err)
	equal(t, "user without Redis", user, User{"Ada"})
}

func TestTheMigrationPageShowsCodeThatIsHere(t *testing.T) {
	page, err := os.ReadFile("../../docs/MIGRATION.md")
	must(t, err)
	bodies := functionBodies(t)
	blocks := regexp.MustCompile("(?ms)^```go([^\n]*)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	if len(blocks) == 0 {
		t.Error("the page shows no code")
	}
	for _, b := range blocks {
		name, code := strings.TrimSpace(b[1]), b[2]
		body, ok := bodies[name]
		switch {
		case !ok:
			t.Errorf("the page shows code of %q, which is not a function here:\n%s", name, code)
		case !strings.Contains("\n"+body, "\n"+code):
			t.Errorf("the page shows code that %s does not have:\n%s", name, code)
		}
	}
}

// functionBodies returns the lines between the braces of each function of the
// migration tests, a tab to the left of where they are.
func functionBodies(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("migration*_test.go")
	must(t, err)
	bodies := map[string]string{}
	for _, path := range files {
		text, err := os.ReadFile(path)
		must(t, err)
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, path, text, 0)
		must(t, err)
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil {
				continue
			}
			from, to := fset.Position(f.Body.Lbrace).Offset+2, fset.Position(f.Body.Rbrace).Offset
			var body strings.Builder
			for line := range strings.Lines(string(text[from:max(from, to)])) {
				body.WriteString(strings.TrimPrefix(line, "\t"))
			}
			bodies[f.Name.Name] = body.String()
		}
	}
	return bodies
}

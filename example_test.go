package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/redis/rueidis"
)

// shutdown is how a program ends: Redis gets what is still kept, within a bound that is
// less than what the program is given to end.
func shutdown(cache *holdfast.Cache) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := cache.Shutdown(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err) // says how many writes did not reach Redis
	}
}

// unused returns an address where nothing listens.
func unused() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The README shows this from Open on.
func Example() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	addr := server.Addr()

	cache, err := holdfast.Open("redis://" + addr)
	if err != nil {
		panic(err) // the options contradict each other; never the network
	}
	defer cache.Close()

	ctx := context.Background()
	value, err := cache.Get(ctx, "user:7")
	if errors.Is(err, holdfast.ErrMiss) {
		// A miss, or Redis is away: the program goes on either way.
		value = []byte("Ada") // from the source of truth
		err = cache.Set(ctx, "user:7", value, time.Hour)
	}
	if err != nil {
		panic(err)
	}
	fmt.Println(string(value))

	again, err := cache.Lookup(ctx, "user:7")
	fmt.Println(string(again.Value), err)

	// Close delivers what was set before the connection was there.
	err = cache.Close()
	stored, _ := server.Get("user:7")
	fmt.Println(stored, err)
	// Output:
	// Ada
	// Ada <nil>
	// Ada <nil>
}

// Nothing listens at the address. Every call answers at once: with what this
// process wrote, or with a miss.
func ExampleCache_Lookup() {
	cache, err := holdfast.Open("redis://" + unused())
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()

	fmt.Println("set:", cache.Set(ctx, "written", []byte("during the outage"), time.Hour))

	entry, err := cache.Lookup(ctx, "written")
	fmt.Printf("%s, from the %v, degraded: %v, error: %v\n", entry.Value, entry.Tier, entry.Degraded, err)

	entry, err = cache.Lookup(ctx, "never written")
	fmt.Printf("a miss: %v, confirmed by redis: %v\n", errors.Is(err, holdfast.ErrMiss), !entry.Degraded)
	// Output:
	// set: <nil>
	// during the outage, from the journal, degraded: true, error: <nil>
	// a miss: true, confirmed by redis: false
}

func ExampleCache_Health() {
	cache, err := holdfast.Open("redis://" + unused())
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	if err := cache.Set(context.Background(), "k", []byte("v"), 0); err != nil {
		panic(err)
	}

	h := cache.Health()
	fmt.Println(h.State, "writable:", h.Writable, "waiting in the journal:", h.JournalKeys)

	// What only Redis can decide is refused at once.
	_, err = cache.Add(context.Background(), "lock", []byte("mine"), time.Minute)
	fmt.Println(errors.Is(err, holdfast.ErrUnavailable))
	// Output:
	// connecting writable: false waiting in the journal: 1
	// true
}

func ExampleOptions() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	addr := server.Addr()

	cache, err := holdfast.New(holdfast.Options{
		Redis:      rueidis.ClientOption{InitAddress: []string{addr}},
		Timeout:    20 * time.Millisecond,
		DefaultTTL: 10 * time.Minute,
		Local:      holdfast.LocalOptions{MaxBytes: 256 << 20},
		Outage: holdfast.OutageOptions{
			ServeFor:      time.Hour,
			ServeStaleFor: 5 * time.Minute,
		},
		Logger: slog.Default(), // one line for each change of state, none for a call
		Hooks: holdfast.Hooks{
			OnStateChange: func(c holdfast.StateChange) {
				if c.To == holdfast.Up {
					fmt.Println("redis was", c.From, "and is", c.To)
				}
			},
		},
	})
	if err != nil {
		panic(err)
	}

	ready, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cache.WaitReady(ready); err != nil {
		panic(err)
	}
	shutdown(cache)
	// Output:
	// redis was connecting and is up
}

// Every contradiction is reported at once, in the words of the fields.
func ExampleOptions_contradictions() {
	_, err := holdfast.New(holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{"localhost"}},
		Timeout: -time.Second,
		Outage:  holdfast.OutageOptions{ServeFor: -1},
	})
	fmt.Println(err)
	// Output:
	// holdfast: options: Timeout is -1s: it must be at least 1ms
	// holdfast: options: Outage.ServeFor is -1ns: it must be at least 0s
	// holdfast: options: Redis.InitAddress[0] is "localhost": it must be host:port
}

// Writes of an outage reach Redis when it comes up.
func ExampleCache_Drain() {
	addr := unused()
	cache, err := holdfast.Open("redis://" + addr)
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cache.Set(ctx, "k", []byte("v"), 0); err != nil {
		panic(err)
	}

	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(addr); err != nil {
		panic(err)
	}
	defer server.Close()

	fmt.Println(cache.Drain(ctx))
	fmt.Println(server.Get("k"))
	// Output:
	// <nil>
	// v <nil>
}

// A worker that takes a lock when it starts waits for a Redis that starts later, but not for
// ever.
func ExampleCache_Retry() {
	addr := unused()
	cache, err := holdfast.Open("redis://" + addr)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	server := miniredis.NewMiniRedis()
	defer server.Close()
	time.AfterFunc(300*time.Millisecond, func() {
		if err := server.StartAddr(addr); err != nil {
			panic(err)
		}
	})

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var mine bool
	err = cache.Retry(ctx, func(ctx context.Context) (err error) {
		mine, err = cache.Add(ctx, "lock", []byte("worker-1"), time.Minute)
		return err
	})
	fmt.Println(mine, err)
	// Output:
	// true <nil>
}

func ExampleCache_Shutdown() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	cache, err := holdfast.Open("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	if err := cache.Set(context.Background(), "k", []byte("v"), 0); err != nil {
		panic(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = cache.Shutdown(ctx)
	fmt.Println(err)
	fmt.Println(server.Get("k"))
	// Output:
	// <nil>
	// v <nil>
}

// Writes that Redis did not get are counted.
func ExampleUndeliveredError() {
	cache, err := holdfast.Open("redis://" + unused())
	if err != nil {
		panic(err)
	}
	if err := cache.Set(context.Background(), "k", []byte("v"), 0); err != nil {
		panic(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err = cache.Shutdown(ctx)
	var lost *holdfast.UndeliveredError
	if errors.As(err, &lost) {
		fmt.Println(lost.Keys, "not delivered:", lost.Err)
	}
	_, err = cache.Get(context.Background(), "k")
	fmt.Println(errors.Is(err, holdfast.ErrClosed))
	// Output:
	// 1 not delivered: context deadline exceeded
	// true
}

var errNoRows = errors.New("no rows")

// table stands for a database.
type table map[int]string

func (t table) name(_ context.Context, id int) (string, error) {
	fmt.Println("query for", id)
	if name, ok := t[id]; ok {
		return name, nil
	}
	return "", errNoRows
}

// A row of a database. Nothing listens at the address, and still each row is asked
// for once.
func ExampleCache_GetOrLoad() {
	cache, err := holdfast.Open("redis://" + unused())
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx, db := context.Background(), table{7: "Ada"}

	user, err := cache.GetOrLoad(ctx, "user:7", 10*time.Minute, func(ctx context.Context) ([]byte, error) {
		name, err := db.name(ctx, 7)
		if errors.Is(err, errNoRows) {
			return nil, holdfast.ErrNotFound // remembered for Load.NotFoundTTL
		}
		return []byte(name), err
	})
	fmt.Println(string(user), err)

	load := func(context.Context) ([]byte, error) { panic("it is there") }
	user, err = cache.GetOrLoad(ctx, "user:7", 10*time.Minute, load)
	fmt.Println(string(user), err)
	// Output:
	// query for 7
	// Ada <nil>
	// Ada <nil>
}

// An upstream that knows ETags: the copy is kept with its tag before it, and given a
// new life as long as the upstream says that it has not changed.
func ExampleCache_GetOrLoadWith() {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("asked with %q\n", r.Header.Get("If-None-Match"))
		w.Header().Set("ETag", `"v1"`)
		if r.Header.Get("If-None-Match") == `"v1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "hello")
	}))
	defer upstream.Close()
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()

	fetch := func(ctx context.Context, had *holdfast.Entry) (holdfast.Loaded, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", upstream.URL, nil)
		if err != nil {
			return holdfast.Loaded{}, err
		}
		if had != nil {
			tag, _, _ := bytes.Cut(had.Value, []byte("\n"))
			req.Header.Set("If-None-Match", string(tag))
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return holdfast.Loaded{}, err
		}
		defer res.Body.Close()
		switch res.StatusCode {
		case http.StatusNotModified:
			return holdfast.Loaded{NotModified: true}, nil
		case http.StatusNotFound:
			return holdfast.Loaded{}, holdfast.ErrNotFound
		case http.StatusOK:
			body, err := io.ReadAll(res.Body)
			return holdfast.Loaded{Value: append([]byte(res.Header.Get("ETag")+"\n"), body...)}, err
		}
		return holdfast.Loaded{}, errors.New(res.Status)
	}
	o := holdfast.LoadOptions{StaleIfError: time.Hour}
	for range 2 {
		page, err := cache.GetOrLoadWith(ctx, "page", 10*time.Millisecond, o, fetch)
		_, body, _ := bytes.Cut(page.Value, []byte("\n"))
		fmt.Println(string(body), err)
		for { // until it is past its end
			if _, err := cache.Get(ctx, "page"); err != nil {
				break
			}
		}
	}
	// Output:
	// asked with ""
	// hello <nil>
	// asked with "\"v1\""
	// hello <nil>
}

// A list of ids in one query.
func ExampleCache_GetOrLoadMany() {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()
	rows := map[string]string{"user:1": "Ada", "user:2": "Grace", "user:3": "Mary"}

	query := func(_ context.Context, keys []string) (map[string][]byte, error) {
		fmt.Println("select", keys)
		found := make(map[string][]byte)
		for _, key := range keys {
			if name, ok := rows[key]; ok {
				found[key] = []byte(name)
			}
		}
		return found, nil
	}
	for _, keys := range [][]string{{"user:1", "user:2"}, {"user:1", "user:3", "user:4"}, {"user:4"}} {
		users, err := cache.GetOrLoadMany(ctx, keys, time.Hour, query)
		fmt.Printf("%s %v\n", users, err)
	}
	// Output:
	// select [user:1 user:2]
	// map[user:1:Ada user:2:Grace] <nil>
	// select [user:3 user:4]
	// map[user:1:Ada user:3:Mary] <nil>
	// map[] <nil>
}

// A program that was written for rueidis keeps its commands.
func ExampleCache_Client() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	cache, err := holdfast.Open("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()

	var client rueidis.Client = cache.Client()
	set := client.B().Set().Key("user:7").Value("Ada").Ex(time.Hour).Build()
	if err := client.Do(ctx, set).Error(); err != nil {
		panic(err)
	}
	name, err := client.Do(ctx, client.B().Get().Key("user:7").Build()).ToString()
	fmt.Println(name, err)

	_, err = client.Do(ctx, client.B().Get().Key("user:8").Build()).ToString()
	fmt.Println(rueidis.IsRedisNil(err))
	// Output:
	// Ada <nil>
	// true
}

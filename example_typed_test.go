package holdfast_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// account is a row of a table.
type account struct {
	ID   int64
	Name string
}

// accountTable stands in for a *sql.DB.
type accountTable struct {
	rows    map[string]account
	queries int
}

func (t *accountTable) queryRow(_ context.Context, id string) (account, error) {
	t.queries++
	row, ok := t.rows[id]
	if !ok {
		return account{}, errNoRows
	}
	return row, nil
}

func (t *accountTable) queryIn(_ context.Context, ids []string) ([]account, error) {
	t.queries++
	fmt.Println("SELECT ... WHERE id IN", slices.Sorted(slices.Values(ids)))
	var rows []account
	for _, id := range ids {
		if row, ok := t.rows[id]; ok {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// A row of a database, by its id. However many ask for it at once, there is one
// query. A row that is not there is remembered as such for a moment.
func ExampleTyped_GetOrLoad() {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()
	db := &accountTable{rows: map[string]account{"7": {7, "Ada"}}}

	accounts := holdfast.NewTyped(cache, holdfast.JSON[account](), holdfast.WithPrefix("account:"))
	find := func(id string) (account, error) {
		return accounts.GetOrLoad(ctx, id, time.Hour, func(ctx context.Context) (account, error) {
			row, err := db.queryRow(ctx, id)
			if errors.Is(err, errNoRows) {
				return row, holdfast.ErrNotFound
			}
			return row, err
		})
	}

	for range 3 {
		fmt.Println(find("7"))
	}
	for range 3 {
		_, err := find("8")
		fmt.Println("not found:", errors.Is(err, holdfast.ErrNotFound))
	}
	fmt.Println(db.queries, "queries")
	// Output:
	// {7 Ada} <nil>
	// {7 Ada} <nil>
	// {7 Ada} <nil>
	// not found: true
	// not found: true
	// not found: true
	// 2 queries
}

// A page of an upstream that knows ETags. When the copy is past its end the upstream is
// asked whether it changed, and an answer of 304 gives the copy a new life.
func ExampleTyped_GetOrLoadWith() {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") == `"1"` {
			fmt.Println("304")
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Println("200")
		w.Header().Set("ETag", `"1"`)
		io.WriteString(w, "All is well.")
	}))
	defer upstream.Close()
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)

	type page struct{ ETag, Body string }
	pages := holdfast.NewTyped(cache, holdfast.JSON[page](), holdfast.WithPrefix("page:"))
	fetch := func(url string, life time.Duration) (holdfast.TypedEntry[page], error) {
		// Should the upstream fail, a copy of the last hour will do.
		o := holdfast.LoadOptions{StaleIfError: time.Hour}
		return pages.GetOrLoadWith(context.Background(), url, life, o, func(ctx context.Context, had *holdfast.TypedEntry[page]) (loaded holdfast.TypedLoaded[page], err error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return loaded, err
			}
			if had != nil {
				req.Header.Set("If-None-Match", had.Value.ETag)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return loaded, err
			}
			defer resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusOK:
				body, err := io.ReadAll(resp.Body)
				loaded.Value = page{resp.Header.Get("ETag"), string(body)}
				return loaded, err
			case http.StatusNotModified:
				loaded.NotModified = true
				return loaded, nil
			case http.StatusNotFound:
				return loaded, holdfast.ErrNotFound
			}
			return loaded, errors.New(resp.Status)
		})
	}

	got, err := fetch(upstream.URL, time.Millisecond)
	fmt.Println(got.Value.Body, got.Tier, err)
	for err = nil; !errors.Is(err, holdfast.ErrMiss); {
		_, err = pages.Get(context.Background(), upstream.URL) // until it is past its end
	}
	got, err = fetch(upstream.URL, time.Hour)
	fmt.Println(got.Value.Body, got.Tier, err)
	got, err = fetch(upstream.URL, time.Hour)
	fmt.Println(got.Value.Body, got.Tier, err)
	// Output:
	// 200
	// All is well. loader <nil>
	// 304
	// All is well. loader <nil>
	// All is well. local <nil>
}

// A list of ids: one query for those that are missing.
func ExampleTyped_GetOrLoadMany() {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()
	db := &accountTable{rows: map[string]account{"1": {1, "Ada"}, "2": {2, "Bob"}, "3": {3, "Eve"}}}

	accounts := holdfast.NewTyped(cache, holdfast.JSON[account](), holdfast.WithPrefix("account:"))
	find := func(ids ...string) (map[string]account, error) {
		return accounts.GetOrLoadMany(ctx, ids, time.Hour, func(ctx context.Context, ids []string) (map[string]account, error) {
			rows, err := db.queryIn(ctx, ids)
			found := make(map[string]account, len(rows))
			for _, row := range rows {
				found[fmt.Sprint(row.ID)] = row
			}
			return found, err // what is not in it is not found
		})
	}

	fmt.Println(find("1", "2"))
	fmt.Println(find("1", "2", "3", "4"))
	fmt.Println(find("3", "4"))
	// Output:
	// SELECT ... WHERE id IN [1 2]
	// map[1:{1 Ada} 2:{2 Bob}] <nil>
	// SELECT ... WHERE id IN [3 4]
	// map[1:{1 Ada} 2:{2 Bob} 3:{3 Eve}] <nil>
	// map[3:{3 Eve}] <nil>
}

// Any library of formats fits in two functions.
func ExampleCodecFuncs() {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer shutdown(cache)
	ctx := context.Background()

	// JSON that refuses fields which this version of the program does not know.
	strict := holdfast.CodecFuncs(
		func(v account) ([]byte, error) { return json.Marshal(v) },
		func(b []byte) (v account, err error) {
			d := json.NewDecoder(strings.NewReader(string(b)))
			d.DisallowUnknownFields()
			err = d.Decode(&v)
			return v, err
		})
	accounts := holdfast.NewTyped(cache, strict)
	if err := cache.Set(ctx, "7", []byte(`{"ID":7,"Name":"Ada","Email":"ada@example.org"}`), 0); err != nil {
		panic(err)
	}

	// What it cannot decode is a miss that says why. GetOrLoad would load it.
	_, err = accounts.Get(ctx, "7")
	fmt.Println(errors.Is(err, holdfast.ErrMiss), cache.Stats().Undecodable)
	fmt.Println(err)
	// Output:
	// true 1
	// holdfast: get 7: miss: the codec cannot decode what is stored: json: unknown field "Email"
}

package compress_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/compress"
)

// Pages of a kilobyte and more are stored compressed.
func ExampleS2() {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()

	type page struct{ Title, Body string }
	pages := holdfast.NewTyped(cache, compress.S2(holdfast.JSON[page](), 1024), holdfast.WithPrefix("page:"))

	home := page{"Home", strings.Repeat("All is well. ", 1000)}
	if err := pages.Set(ctx, "home", home, time.Hour); err != nil {
		panic(err)
	}
	got, err := pages.Get(ctx, "home")
	fmt.Println(got.Title, len(got.Body), err)

	stored, err := cache.Get(ctx, "page:home")
	fmt.Println(len(stored) < 1024, err)
	// Output:
	// Home 13000 <nil>
	// true <nil>
}

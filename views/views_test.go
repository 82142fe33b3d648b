package views_test

import (
	"errors"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestEachViewStoresFindsAndRemovesByItsOwnConventions(t *testing.T) {
	for _, where := range []string{"redis", "no redis", "a redis that is not there yet"} {
		t.Run(where, func(t *testing.T) {
			begin(t)
			var c *holdfast.Cache
			switch where {
			case "redis":
				c, _ = onServer(t, holdfast.Options{})
			case "no redis":
				c = open(t, "", holdfast.Options{})
			default:
				c = open(t, redistest.FreeAddr(t), holdfast.Options{})
			}
			for i, s := range stores(c, "") {
				key := "key" + strconv.Itoa(i)
				if where != "a redis that is not there yet" || s.name != "autocert" {
					s.misses(t, key)
				}
				must(t, s.set(key, []byte("value")))
				s.wants(t, key, "value")
				must(t, s.set(key, []byte("other")))
				s.wants(t, key, "other")
				if s.remove == nil {
					continue
				}
				must(t, s.remove(key))
				s.misses(t, key)
				must(t, s.remove(key))
			}
		})
	}
}

func TestAViewsKeysAreItsPrefixAndTheirNameAndTheValueIsPlain(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{})
	one, other := stores(c, "one:"), stores(c, "")
	for i, s := range one {
		key := "key" + strconv.Itoa(i)
		must(t, s.set(key, []byte("value")))
		if got, err := m.Get("one:" + key); err != nil || got != "value" {
			t.Errorf("%s: redis holds %q, %v", s.name, got, err)
		}
		other[i].misses(t, key)
		other[i].wants(t, "one:"+key, "value")
		if s.remove != nil {
			must(t, other[i].remove(key))
			s.wants(t, key, "value")
		}
	}
}

func TestBytesBelongToWhoeverHasThem(t *testing.T) {
	begin(t)
	c, _ := onServer(t, holdfast.Options{})
	for i, s := range stores(c, "") {
		key, given := "key"+strconv.Itoa(i), []byte("value")
		must(t, s.set(key, given))
		copy(given, "XXXXX")
		for range 3 { // from Redis, from the local tier
			got, _, err := s.get(key)
			if err != nil || string(got) != "value" {
				t.Fatalf("%s: %q, %v", s.name, got, err)
			}
			copy(got, "XXXXX")
		}
	}
}

func TestAnEmptyValueIsNoMiss(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{})
	for i, s := range stores(c, "") {
		key := "key" + strconv.Itoa(i)
		must(t, m.Set(key, "")) // Fiber's Set would ignore it
		for range 2 {
			if got, found, err := s.get(key); err != nil || !found || got == nil || len(got) != 0 {
				t.Fatalf("%s: %v, found %v, %v; want an empty value", s.name, got, found, err)
			}
		}
	}
}

func TestAnOutageLosesNothingThatWasWrittenAndIsNoError(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{})
	all := stores(c, "view:")
	key := func(name string, i int) string { return name + strconv.Itoa(i) }
	for i, s := range all {
		must(t, s.set(key("before", i), []byte("old")))
		must(t, s.set(key("doomed", i), []byte("old")))
		s.wants(t, key("before", i), "old")
	}
	away(t, c, m)
	for i, s := range all {
		s.wants(t, key("before", i), "old")
		must(t, s.set(key("before", i), []byte("new")))
		must(t, s.set(key("meanwhile", i), []byte("new")))
		s.wants(t, key("before", i), "new")
		s.wants(t, key("meanwhile", i), "new")
		if s.remove != nil {
			must(t, s.remove(key("doomed", i)))
			s.misses(t, key("doomed", i))
		}
		if s.name != "autocert" {
			s.misses(t, key("unknown", i))
		}
	}
	back(t, c, m)
	for i, s := range all {
		for _, name := range []string{"before", "meanwhile"} {
			if got, err := m.Get("view:" + key(name, i)); err != nil || got != "new" {
				t.Errorf("%s: redis holds %q, %v under %s", s.name, got, err, name)
			}
		}
		if s.remove != nil && m.Exists("view:"+key("doomed", i)) {
			t.Errorf("%s: redis has what was removed while it was away", s.name)
		}
	}
}

func TestWhatRedisSaysOfACommandIsTold(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{})
	for i, s := range stores(c, "") {
		key := "list" + strconv.Itoa(i)
		_, err := m.Push(key, "not a string")
		must(t, err)
		if value, found, err := s.get(key); err == nil || found || value != nil || !strings.Contains(err.Error(), "WRONGTYPE") {
			t.Errorf("%s: %q, found %v, %v; want WRONGTYPE", s.name, value, found, err)
		}
	}
}

func TestAViewOfAClosedCacheSaysSo(t *testing.T) {
	begin(t)
	c := open(t, "", holdfast.Options{})
	all := stores(c, "")
	must(t, c.Close())
	for _, s := range all {
		_, found, err := s.get("key")
		if found || !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%s: get: found %v, %v", s.name, found, err)
		}
		if err := s.set("key", []byte("value")); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%s: set: %v", s.name, err)
		}
		if s.remove == nil {
			continue
		}
		if err := s.remove("key"); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%s: remove: %v", s.name, err)
		}
	}
}

func TestViewsImportTheStandardLibraryAndHoldfastOnly(t *testing.T) {
	files, err := os.ReadDir(".")
	must(t, err)
	seen := 0
	for _, f := range files {
		if f.IsDir() || !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		seen++
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.ImportsOnly)
		must(t, err)
		for _, spec := range parsed.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			host, _, _ := strings.Cut(path, "/")
			if strings.Contains(host, ".") && path != "github.com/holdfast-cache/holdfast" {
				t.Errorf("%s imports %s", f.Name(), path)
			}
		}
	}
	if seen == 0 {
		t.Fatal("there are no files")
	}
}

func TestWhatTheJournalRefusesIsTold(t *testing.T) {
	begin(t)
	c := open(t, redistest.FreeAddr(t), holdfast.Options{Journal: holdfast.JournalOptions{MaxKeys: 1}})
	all := stores(c, "")
	must(t, all[0].set("first", []byte("value")))
	for _, s := range all {
		if err := s.set("second", []byte("value")); !errors.Is(err, holdfast.ErrJournalFull) {
			t.Errorf("%s: set: %v; want ErrJournalFull", s.name, err)
		}
		if s.remove == nil {
			continue
		}
		if err := s.remove("second"); !errors.Is(err, holdfast.ErrJournalFull) {
			t.Errorf("%s: remove: %v; want ErrJournalFull", s.name, err)
		}
	}
}

package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

type user struct {
	ID   int
	Name string
}

// marking is a Codec that counts what it is asked, and appends its mark to what it
// decodes, so that a value tells which codec made it.
type marking struct {
	mark             string
	encoded, decoded atomic.Int64
}

func (c *marking) Encode(v string) ([]byte, error) {
	c.encoded.Add(1)
	return []byte(v), nil
}

func (c *marking) Decode(b []byte) (string, error) {
	c.decoded.Add(1)
	return string(b) + c.mark, nil
}

// roundTrip stores v by one Typed, and returns what another, which decodes it itself,
// reads.
func roundTrip[V any](t *testing.T, codec holdfast.Codec[V], v V) V {
	t.Helper()
	ctx := context.Background()
	c := open(t, holdfast.Options{})
	must(t, holdfast.NewTyped(c, codec).Set(ctx, "k", v, 0))
	got, err := holdfast.NewTyped(c, codec).Get(ctx, "k")
	must(t, err)
	return got
}

func TestEachCodecGivesBackWhatItWasGiven(t *testing.T) {
	begin(t)
	check := func(name string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v became %#v", name, want, got)
		}
	}
	check("a struct", roundTrip(t, holdfast.JSON[user](), user{7, "Ada"}), user{7, "Ada"})
	check("a pointer", roundTrip(t, holdfast.JSON[*user](), &user{7, "Ada"}), &user{7, "Ada"})
	check("a nil pointer", roundTrip(t, holdfast.JSON[*user](), nil), (*user)(nil))
	check("a slice", roundTrip(t, holdfast.JSON[[]int](), []int{1, 2}), []int{1, 2})
	check("bytes", roundTrip(t, holdfast.Bytes(), []byte{0, 255}), []byte{0, 255})
	check("no bytes", roundTrip(t, holdfast.Bytes(), nil), []byte{})
	check("a string", roundTrip(t, holdfast.String(), "\xff\x00"), "\xff\x00")
	check("an empty string", roundTrip(t, holdfast.String(), ""), "")
	check("what marshals itself", roundTrip(t, holdfast.Binary[netip.Addr](), netip.MustParseAddr("::1")), netip.MustParseAddr("::1"))
	bigs := holdfast.CodecFuncs(
		func(n *big.Int) ([]byte, error) { return n.GobEncode() },
		func(b []byte) (*big.Int, error) {
			n := new(big.Int)
			return n, n.GobDecode(b)
		})
	check("two functions", roundTrip(t, bigs, big.NewInt(7)), big.NewInt(7))
}

func TestATypedStoresPlainValuesThatOthersReadAndWrite(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		users := holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithPrefix("user:"))
		must(t, users.Set(ctx, "7", user{7, "Ada"}, time.Hour))
		if v, ok := b.get("user:7"); !ok || v != `{"ID":7,"Name":"Ada"}` {
			t.Errorf("redis has %q, %v", v, ok)
		}
		b.set("user:8", `{"ID":8,"Name":"Bob"}`)
		if got, err := users.Get(ctx, "8"); err != nil || got != (user{8, "Bob"}) {
			t.Errorf("%+v, %v", got, err)
		}
		added, err := users.Add(ctx, "8", user{}, 0)
		if err != nil || added {
			t.Errorf("added over a key that is there: %v, %v", added, err)
		}
		many, err := users.GetMany(ctx, "7", "8", "9")
		if want := (map[string]user{"7": {7, "Ada"}, "8": {8, "Bob"}}); err != nil || !maps.Equal(many, want) {
			t.Errorf("%v, %v", many, err)
		}
		must(t, users.SetMany(ctx, map[string]user{"1": {1, "x"}, "2": {2, "y"}}, time.Hour))
		if v, _ := b.get("user:2"); v != `{"ID":2,"Name":"y"}` {
			t.Errorf("redis has %q", v)
		}
		must(t, users.Touch(ctx, "2", time.Minute))
		if ttl, err := users.TTL(ctx, "2"); err != nil || ttl <= 0 || ttl > time.Minute {
			t.Errorf("%v, %v", ttl, err)
		}
		must(t, users.Delete(ctx, "1", "2"))
		if _, ok := b.get("user:1"); ok {
			t.Error("a deleted key is there")
		}
		if _, err := users.Get(ctx, "2"); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("after the delete: %v", err)
		}
	})
}

func TestALocalHitDecodesNothing(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	a, b := &marking{mark: "a"}, &marking{mark: "b"}
	ta, tb := holdfast.NewTyped(c, a), holdfast.NewTyped(c, b)
	must(t, c.Set(ctx, "k", []byte("v1"), time.Hour))
	read := func(typed *holdfast.Typed[string], want string) {
		t.Helper()
		for range 10 {
			if got, err := typed.Get(ctx, "k"); err != nil || got != want {
				t.Fatalf("%q, %v; want %q", got, err, want)
			}
			if e, err := typed.Lookup(ctx, "k"); err != nil || e.Value != want || e.Tier != holdfast.Local || e.TTL <= 0 {
				t.Fatalf("%+v, %v; want %q", e, err, want)
			}
			if many, err := typed.GetMany(ctx, "k", "k"); err != nil || many["k"] != want {
				t.Fatalf("%v, %v; want %q", many, err, want)
			}
			if got, err := typed.GetOrLoad(ctx, "k", time.Hour, neverLoad[string](t)); err != nil || got != want {
				t.Fatalf("%q, %v; want %q", got, err, want)
			}
		}
	}
	read(ta, "v1a")
	if n := a.decoded.Load(); n != 1 {
		t.Errorf("40 reads decoded %d times", n)
	}
	// Another Typed has its own values, and takes the place of the first.
	read(tb, "v1b")
	read(ta, "v1a")
	if n, m := a.decoded.Load(), b.decoded.Load(); n != 2 || m != 1 {
		t.Errorf("decoded %d and %d times", n, m)
	}
	// Other bytes are other values, whoever writes them, also the same ones anew.
	must(t, c.Set(ctx, "k", []byte("v2"), time.Hour))
	read(ta, "v2a")
	must(t, tb.Set(ctx, "k", "v3", time.Hour))
	read(ta, "v3a")
	must(t, c.Delete(ctx, "k"))
	if got, err := ta.Get(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("after a delete: %q, %v", got, err)
	}
}

func neverLoad[V any](t *testing.T) func(context.Context) (V, error) {
	return func(context.Context) (v V, err error) {
		t.Error("the loader was asked")
		return v, err
	}
}

func TestACopyThatServesInAnOutageIsNotDecodedAgain(t *testing.T) {
	ctx := begin(t)
	m := miniredis.RunT(t)
	c := open(t, at(m.Addr()))
	ready(t, c)
	codec := &marking{}
	typed := holdfast.NewTyped(c, codec, holdfast.WithPrefix("p:"))
	must(t, typed.Set(ctx, "k", "v", time.Hour))
	if _, err := typed.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	m.Close()
	waitState(t, c, holdfast.Down)
	must(t, typed.Set(ctx, "other", "w", time.Hour)) // the journal is not empty
	before := codec.decoded.Load()
	for range 10 {
		if e, err := typed.Lookup(ctx, "k"); err != nil || e.Value != "v" || !e.Degraded {
			t.Fatalf("%+v, %v", e, err)
		}
		if e, err := typed.Lookup(ctx, "other"); err != nil || e.Value != "w" || e.Tier != holdfast.Journal {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if n := codec.decoded.Load() - before; n > 1 {
		t.Errorf("decoded %d times", n)
	}
}

func TestWhatCannotBeDecodedIsAMissAndIsLoadedAnew(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		users := holdfast.NewTyped(c, holdfast.JSON[user]())
		b.set("k", "no json")
		for range 3 {
			if got, err := users.Get(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) || got != (user{}) {
				t.Fatalf("%+v, %v", got, err)
			}
			if e, err := users.Lookup(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) || e.Value != (user{}) {
				t.Fatalf("%+v, %v", e, err)
			}
			if many, err := users.GetMany(ctx, "k"); err != nil || len(many) != 0 {
				t.Fatalf("%v, %v", many, err)
			}
		}
		if n := c.Stats().Undecodable; n != 9 {
			t.Errorf("%d of 9 are counted", n)
		}
		if v, _ := b.get("k"); v != "no json" {
			t.Errorf("redis has %q: who cannot read it must not take it away", v)
		}
		got, err := users.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (user, error) { return user{7, "Ada"}, nil })
		if err != nil || got != (user{7, "Ada"}) {
			t.Fatalf("loaded: %+v, %v", got, err)
		}
		if v, _ := b.get("k"); v != `{"ID":7,"Name":"Ada"}` {
			t.Errorf("redis has %q", v)
		}
		if got, err := users.Get(ctx, "k"); err != nil || got != (user{7, "Ada"}) {
			t.Errorf("%+v, %v", got, err)
		}

		b.set("m", "no json")
		b.set("n", `{"ID":8}`)
		many, err := users.GetOrLoadMany(ctx, []string{"m", "n", "o"}, time.Hour, func(_ context.Context, keys []string) (map[string]user, error) {
			if len(keys) != 2 {
				t.Errorf("asked for %v", keys)
			}
			return map[string]user{"m": {1, "m"}, "o": {2, "o"}}, nil
		})
		if want := (map[string]user{"m": {1, "m"}, "n": {8, ""}, "o": {2, "o"}}); err != nil || !maps.Equal(many, want) {
			t.Errorf("%v, %v", many, err)
		}
		if v, _ := b.get("m"); v != `{"ID":1,"Name":"m"}` {
			t.Errorf("redis has %q", v)
		}
	})
}

func TestWhatTheLoaderReturnsStaysItsOwn(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	users := holdfast.NewTyped(c, holdfast.JSON[*user]())
	mine := &user{7, "Ada"}
	got, err := users.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (*user, error) { return mine, nil })
	must(t, err)
	mine.Name = "changed"
	again, err := users.Get(ctx, "k")
	must(t, err)
	if got.Name != "Ada" || again.Name != "Ada" {
		t.Errorf("%+v, then %+v", got, again)
	}
	if got != again {
		t.Error("one value was decoded twice")
	}
	// The same of bytes, which the codec does not copy.
	raw := holdfast.NewTyped(c, holdfast.Bytes())
	b := []byte("Ada")
	one, err := raw.GetOrLoad(ctx, "b", time.Hour, func(context.Context) ([]byte, error) { return b, nil })
	must(t, err)
	b[0] = 'X'
	if two, err := raw.Get(ctx, "b"); err != nil || string(one) != "Ada" || string(two) != "Ada" {
		t.Errorf("%q, then %q, %v", one, two, err)
	}
}

func TestAnErrorOfEncodeIsTheCallersAndNothingIsStored(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	boom := errors.New("boom")
	// It cannot encode, or decode, what begins with the word.
	refuse := func(word, v string) error {
		if strings.HasPrefix(v, word) {
			return boom
		}
		if strings.HasPrefix(v, "panic "+word) {
			panic(boom)
		}
		return nil
	}
	codec := holdfast.CodecFuncs(
		func(v string) ([]byte, error) { return []byte(v), refuse("encode", v) },
		func(b []byte) (string, error) { return string(b), refuse("decode", string(b)) })
	typed := holdfast.NewTyped(c, codec)
	for _, v := range []string{"encode", "panic encode", "decode", "panic decode"} {
		writes := map[string]func() error{
			"getorload": func() error {
				_, err := typed.GetOrLoad(ctx, "k", 0, func(context.Context) (string, error) { return v, nil })
				return err
			},
			"getorloadwith": func() error {
				_, err := typed.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, func(context.Context, *holdfast.TypedEntry[string]) (holdfast.TypedLoaded[string], error) {
					return holdfast.TypedLoaded[string]{Value: v}, nil
				})
				return err
			},
			"getorloadmany": func() error {
				got, err := typed.GetOrLoadMany(ctx, []string{"k", "good"}, 0, func(context.Context, []string) (map[string]string, error) {
					return map[string]string{"k": v, "good": "v"}, nil
				})
				if got["good"] != "v" || len(got) != 1 {
					t.Errorf("%s: %v beside it", v, got)
				}
				return err
			},
		}
		if strings.HasSuffix(v, "encode") {
			writes["set"] = func() error { return typed.Set(ctx, "k", v, 0) }
			writes["add"] = func() error { _, err := typed.Add(ctx, "k", v, 0); return err }
			writes["setmany"] = func() error { return typed.SetMany(ctx, map[string]string{"k": v}, 0) }
		}
		for op, write := range writes {
			err := write()
			if !errors.Is(err, boom) || errors.Is(err, holdfast.ErrMiss) {
				t.Errorf("%s of %q: %v", op, v, err)
			}
			var e *holdfast.Error
			if !errors.As(err, &e) || e.Op != op {
				t.Errorf("%s of %q: %#v", op, v, err)
			}
			var p *holdfast.PanicError
			if strings.HasPrefix(v, "panic") && (!errors.As(err, &p) || !strings.Contains(string(p.Stack), "typed_test.go")) {
				t.Errorf("%s of %q: no panic that tells where in %#v", op, v, err)
			}
			if b, err := c.Get(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) {
				t.Fatalf("%s of %q stored %q, %v", op, v, b, err)
			}
			must(t, c.Delete(ctx, "k", "good")) // and what is remembered of them
		}
	}
	// A panic over what is stored is a miss.
	must(t, c.Set(ctx, "k", []byte("panic decode"), 0))
	_, err := typed.Get(ctx, "k")
	var p *holdfast.PanicError
	if !errors.Is(err, holdfast.ErrMiss) || !errors.As(err, &p) || p.Value != any(boom) {
		t.Errorf("%v", err)
	}
	// Nothing is held: Close, at the end of the test, would give up and say so.
}

func TestACloneIsTheCallersOwn(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	codec := &marking{}
	list := holdfast.CodecFuncs(
		func(v []string) ([]byte, error) { return codec.Encode(strings.Join(v, ",")) },
		func(b []byte) ([]string, error) {
			v, err := codec.Decode(b)
			return strings.Split(v, ","), err
		})
	clone := func(v []string) []string {
		if v[0] == "panic" {
			panic("no copy")
		}
		return append([]string(nil), v...)
	}
	for name, typed := range map[string]*holdfast.Typed[[]string]{
		"WithClone":      holdfast.NewTyped(c, list).WithClone(clone),
		"WithoutDecoded": holdfast.NewTyped(c, list, holdfast.WithoutDecoded()),
	} {
		must(t, typed.Set(ctx, "k", []string{"a", "b"}, 0))
		before := codec.decoded.Load()
		reads := map[string]func() []string{
			"get":    func() []string { v, err := typed.Get(ctx, "k"); must(t, err); return v },
			"lookup": func() []string { e, err := typed.Lookup(ctx, "k"); must(t, err); return e.Value },
			"many":   func() []string { m, err := typed.GetMany(ctx, "k"); must(t, err); return m["k"] },
			"load": func() []string {
				v, err := typed.GetOrLoad(ctx, "k", 0, neverLoad[[]string](t))
				must(t, err)
				return v
			},
			"loadmany": func() []string {
				m, err := typed.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string][]string, error) {
					return nil, errors.New("asked")
				})
				must(t, err)
				return m["k"]
			},
		}
		for range 3 {
			for op, read := range reads {
				v := read()
				if len(v) != 2 || v[0] != "a" {
					t.Fatalf("%s: %s returns %q", name, op, v)
				}
				v[0] = "changed by " + op
			}
		}
		if n := codec.decoded.Load() - before; name == "WithClone" && n != 1 || name == "WithoutDecoded" && n != 15 {
			t.Errorf("%s: decoded %d times in 15 reads", name, n)
		}
	}
	// A Typed and its clone share what they have decoded.
	kept := holdfast.NewTyped(c, list)
	typed := kept.WithClone(clone)
	must(t, kept.Set(ctx, "k", []string{"a", "b"}, 0))
	before := codec.decoded.Load()
	for range 3 {
		for _, reader := range []*holdfast.Typed[[]string]{kept, typed, typed.WithClone(nil)} {
			v, err := reader.Get(ctx, "k")
			must(t, err)
			if v[0] != "a" {
				t.Fatalf("a reader changed the kept value to %q", v)
			}
			if reader == typed {
				v[0] = "changed"
			}
		}
	}
	if n := codec.decoded.Load() - before; n != 1 {
		t.Errorf("two that share decoded %d times in 9 reads", n)
	}
	must(t, typed.Set(ctx, "k", []string{"panic"}, 0))
	for range 2 {
		var p *holdfast.PanicError
		if _, err := typed.Get(ctx, "k"); !errors.As(err, &p) {
			t.Errorf("a clone that panics: %v", err)
		}
	}
	if many, err := typed.GetMany(ctx, "k"); err == nil || len(many) != 0 {
		t.Errorf("a clone that panics: %v, %v", many, err)
	}
}

func TestATypedsTTLIsForCallsThatPassNone(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{DefaultTTL: time.Hour})
	for _, tt := range []struct {
		of, passed, want time.Duration
	}{
		{0, 0, time.Hour}, {time.Minute, 0, time.Minute}, {time.Minute, time.Second, time.Second},
	} {
		typed := holdfast.NewTyped(c, holdfast.String(), holdfast.WithTTL(tt.of))
		for op, write := range map[string]func() error{
			"set":     func() error { return typed.Set(ctx, "k", "v", tt.passed) },
			"setmany": func() error { return typed.SetMany(ctx, map[string]string{"k": "v"}, tt.passed) },
			"touch":   func() error { return typed.Touch(ctx, "k", tt.passed) },
			"load": func() error {
				must(t, typed.Delete(ctx, "k"))
				_, err := typed.GetOrLoad(ctx, "k", tt.passed, func(context.Context) (string, error) { return "v", nil })
				return err
			},
		} {
			if op == "touch" {
				must(t, c.Set(ctx, "k", nil, 0))
			}
			must(t, write())
			if got, err := typed.TTL(ctx, "k"); err != nil || got > tt.want || got < tt.want-time.Second*59/60 {
				t.Errorf("%+v, %s: %v, %v", tt, op, got, err)
			}
		}
		if err := typed.Set(ctx, "k", "v", -1); !errors.Is(err, holdfast.ErrInvalidTTL) {
			t.Errorf("a negative ttl: %v", err)
		}
	}
}

func TestNewTypedPanicsWhereItMakesNoSense(t *testing.T) {
	begin(t)
	c := open(t, holdfast.Options{})
	str := holdfast.String()
	for name, tt := range map[string]struct {
		words string
		make  func()
	}{
		"no cache":          {"Cache is nil", func() { holdfast.NewTyped(nil, str) }},
		"no codec":          {"Codec is nil", func() { holdfast.NewTyped[string](c, nil) }},
		"a negative ttl":    {"WithTTL", func() { holdfast.NewTyped(c, str, holdfast.WithTTL(-1)) }},
		"a bound of loads":  {"MaxConcurrent", func() { holdfast.NewTyped(c, str, holdfast.WithLoad(holdfast.LoadOptions{MaxConcurrent: 2})) }},
		"a nil option":      {"option is nil", func() { holdfast.NewTyped(c, str, nil) }},
		"senseless loading": {"TTLJitter", func() { holdfast.NewTyped(c, str, holdfast.WithLoad(holdfast.LoadOptions{TTLJitter: 2})) }},
		"no functions":      {"both functions", func() { holdfast.CodecFuncs[string](nil, nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if r := fmt.Sprint(recover()); !strings.Contains(r, tt.words) {
					t.Errorf("panicked with %q, which does not say %q", r, tt.words)
				}
			}()
			tt.make()
		})
	}
}

func TestATypedReturnsWhatItsCacheDoesOfContextsAndClosing(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	typed := holdfast.NewTyped(c, holdfast.String())
	must(t, typed.Set(ctx, "k", "v", 0))
	if _, err := typed.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	calls := func(ctx context.Context) []error {
		_, get := typed.Get(ctx, "k")
		_, lookup := typed.Lookup(ctx, "k")
		_, many := typed.GetMany(ctx, "k")
		_, none := typed.GetMany(ctx)
		_, load := typed.GetOrLoad(ctx, "k", 0, neverLoad[string](t))
		_, loadMany := typed.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string]string, error) { return nil, nil })
		return []error{get, lookup, many, none, load, loadMany, typed.Set(ctx, "k", "v", 0)}
	}
	var nobody context.Context
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for i, err := range calls(gone) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d, cancelled: %v", i, err)
		}
	}
	for i, err := range calls(nobody) {
		if err == nil {
			t.Errorf("call %d with a nil context: no error", i)
		}
	}
	if _, err := typed.GetOrLoad(ctx, "k", 0, nil); err == nil {
		t.Error("a nil loader: no error")
	}
	if _, err := typed.GetOrLoadMany(ctx, []string{"k"}, 0, nil); err == nil {
		t.Error("a nil loader of many: no error")
	}
	if _, err := typed.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, nil); err == nil {
		t.Error("a nil loader of the rich form: no error")
	}
	closedEmpty(t, c)
	for i, err := range calls(ctx) {
		if !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("call %d, closed: %v", i, err)
		}
	}
}

func TestALocalHitOfATypedAllocatesNothing(t *testing.T) {
	ctx := undisturbed(t)
	c := open(t, holdfast.Options{})
	type point struct{ X, Y, Z int64 }
	must(t, c.Set(ctx, "p:k", []byte(`{"X":1}`), time.Hour))
	points := holdfast.NewTyped(c, holdfast.JSON[point](), holdfast.WithPrefix("p:"))
	pointers := holdfast.NewTyped(c, holdfast.JSON[*point]())
	strs := holdfast.NewTyped(c, holdfast.String())
	raw := holdfast.NewTyped(c, holdfast.Bytes())
	load := func(context.Context) (point, error) { return point{}, nil }
	for name, get := range map[string]func() error{
		"a struct, with a prefix": func() error { _, err := points.Get(ctx, "k"); return err },
		"an entry":                func() error { _, err := points.Lookup(ctx, "k"); return err },
		"a pointer":               func() error { _, err := pointers.Get(ctx, "p:k"); return err },
		"a string":                func() error { _, err := strs.Get(ctx, "p:k"); return err },
		"bytes":                   func() error { _, err := raw.Get(ctx, "p:k"); return err },
		"with a loader":           func() error { _, err := points.GetOrLoad(ctx, "k", 0, load); return err },
	} {
		must(t, get())
		if n := testing.AllocsPerRun(1000, func() { get() }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestDecodedValuesCountAgainstTheLocalTier(t *testing.T) {
	ctx := begin(t)
	const room = 4 << 20
	c := open(t, holdfast.Options{Local: holdfast.LocalOptions{MaxBytes: room}})
	type big struct{ Cells [1024]byte } // much more than its encoded form
	codec := holdfast.CodecFuncs(
		func(v big) ([]byte, error) { return []byte{v.Cells[0]}, nil },
		func(b []byte) (v big, err error) { v.Cells[0] = b[0]; return v, nil })
	typed := holdfast.NewTyped(c, codec)
	const few = 100
	keys := make([]string, 0, few)
	for i := range few {
		keys = append(keys, fmt.Sprint("k", i))
		must(t, typed.Set(ctx, keys[i], big{}, time.Hour))
	}
	// In between an entry is in two places, and counts twice.
	between := func(what string, least, most int64) {
		t.Helper()
		redistest.WaitFor(t, patience, what, func() bool {
			n := c.Stats().LocalBytes
			return least <= n && n <= most
		})
	}
	between("the bytes alone", few*250, few*300)
	for _, k := range keys {
		if _, err := typed.Get(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	between("what was decoded of them, too", few*1250, few*1350)
	// And so they are bounded: 20 MiB of them in 4.
	for i := range 20 << 10 {
		key := fmt.Sprint("many", i)
		must(t, typed.Set(ctx, key, big{}, time.Hour))
		if _, err := typed.Get(ctx, key); err != nil && !errors.Is(err, holdfast.ErrMiss) {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if n := c.Stats().LocalBytes; n > room {
				t.Fatalf("%d bytes, over %d", n, room)
			}
		}
	}
	if n := c.Stats(); n.LocalEvicted == 0 && n.LocalDropped == 0 {
		t.Errorf("nothing had to give way: %+v", n)
	}
}

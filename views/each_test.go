package views_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

// Aside from what all views do alike, in views_test.go.

const century = 100 * 365 * 24 * time.Hour

func TestFiberIgnoresEmptyKeysAndValues(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{})
	f := views.NewFiber(c, "fiber:")
	must(t, f.Set("", []byte("value"), time.Hour))
	must(t, f.Set("key", nil, time.Hour))
	must(t, f.Set("kept", []byte("value"), time.Hour))
	must(t, f.Set("kept", []byte{}, time.Hour))
	must(t, f.Delete(""))
	if keys := m.Keys(); slices.Contains(keys, "fiber:") || slices.Contains(keys, "fiber:key") {
		t.Errorf("redis holds %v", keys)
	}
	if got, err := f.Get("kept"); err != nil || string(got) != "value" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := f.Get(""); err != nil || got != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFiberExpirations(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{DefaultTTL: time.Minute})
	f := views.NewFiber(c, "")
	for _, tt := range []struct {
		exp      time.Duration
		min, max time.Duration
	}{
		{0, century, forever}, // not DefaultTTL
		{time.Hour, time.Hour, time.Hour},
		{time.Hour + time.Nanosecond, time.Hour + time.Millisecond, time.Hour + time.Millisecond},
		{forever, century, forever},
	} {
		must(t, f.Set("key", []byte("value"), tt.exp))
		if ttl := m.TTL("key"); ttl < tt.min || ttl > tt.max {
			t.Errorf("exp %v: redis says %v", tt.exp, ttl)
		}
		// To the Cache so long a time is no expiry, which is 0.
		if ttl, err := c.TTL(ctx, "key"); err != nil || ttl > tt.max || ttl < tt.min-patience && tt.max != forever {
			t.Errorf("exp %v: the cache says %v, %v", tt.exp, ttl, err)
		}
	}
	for _, exp := range []time.Duration{-1, -time.Nanosecond, -forever} {
		must(t, f.Set("key", []byte("value"), time.Hour))
		must(t, f.Set("key", []byte("other"), exp))
		if got, err := f.Get("key"); err != nil || got != nil || m.Exists("key") {
			t.Errorf("exp %v: %q, %v, in redis: %v", exp, got, err, m.Exists("key"))
		}
	}
}

const forever = time.Duration(1<<63 - 1)

func TestWhatIsKeptForEverOutlivesAnOutageAndARead(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	c := open(t, s.Addr(), holdfast.Options{DefaultTTL: time.Minute})
	ready(t, c)
	f := views.NewFiber(c, "")
	must(t, f.Set("key", []byte("value"), 0))
	for range 2 {
		if got, err := f.Get("key"); err != nil || string(got) != "value" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	keeps := func() {
		t.Helper()
		if ms := s.MustDo("PTTL", "key"); ms != "-1" && len(ms) < len("9000000000000") {
			t.Errorf("redis says %s ms", ms)
		}
	}
	keeps()
	s.Kill()
	redistest.WaitFor(t, patience, "the outage to be noticed", func() bool { return c.Health().State == holdfast.Down })
	must(t, f.Set("key", []byte("other"), 0))
	if got, err := f.Get("key"); err != nil || string(got) != "other" {
		t.Fatalf("%q, %v", got, err)
	}
	s.RestartEmpty()
	redistest.WaitFor(t, patience, "the replay", func() bool { return s.MustDo("GET", "key") == "other" })
	keeps()
}

var heap []byte // a string on the stack would be copied on its way

// Fiber's strings are views of buffers that the next request overwrites.
func TestFiberKeysMayChangeAfterTheCall(t *testing.T) {
	for _, prefix := range []string{"", "fiber:"} {
		begin(t)
		c, m := onServer(t, holdfast.Options{})
		f := views.NewFiber(c, prefix)
		heap = []byte("key")
		key := unsafe.String(&heap[0], len(heap))
		as := func(text string) string { copy(heap, text); return key }

		must(t, m.Set(prefix+"abc", "found"))
		if got, err := f.Get(as("abc")); err != nil || string(got) != "found" {
			t.Fatalf("%q, %v", got, err)
		}
		must(t, f.Set(as("one"), []byte("1"), time.Hour))
		away(t, c, m)
		must(t, f.Set(as("two"), []byte("2"), time.Hour))
		must(t, f.Delete(as("abc")))
		as("xyz")
		for key, want := range map[string]string{"one": "1", "two": "2", "abc": "", "xyz": ""} {
			if got, err := f.Get(strings.Clone(key)); err != nil || string(got) != want {
				t.Errorf("in the outage %s is %q, %v; want %q", key, got, err, want)
			}
		}
		back(t, c, m)
		if got, err := m.Get(prefix + "two"); err != nil || got != "2" {
			t.Errorf("redis holds %q, %v", got, err)
		}
		if m.Exists(prefix+"abc") || m.Exists(prefix+"xyz") {
			t.Errorf("redis holds %v", m.Keys())
		}
	}
}

// The command of a call that has given up may not even be sent yet.
func TestAFiberKeyMayChangeWhileItsCommandWaitsToBeSent(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, s.Addr(), holdfast.Options{Timeout: 100 * time.Millisecond})
	ready(t, c)
	f := views.NewFiber(c, "")
	heap = []byte("one")
	key := unsafe.String(&heap[0], len(heap))
	s.Pause()
	must(t, c.Set(ctx, "large", make([]byte, 32<<20), 0)) // fills every buffer on the way
	must(t, f.Set(key, []byte("value"), time.Hour))
	copy(heap, "two")
	s.Resume()
	redistest.WaitFor(t, patience, "the value", func() bool { return s.MustDo("GET", "one") == "value" })
	must(t, c.Drain(ctx))
	if s.MustDo("EXISTS", "two") == "1" {
		t.Error("redis has the value under what the key became")
	}
}

func TestFiberResetIsRefusedAndCloseLeavesTheCacheToOthers(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{})
	f := views.NewFiber(c, "fiber:")
	must(t, f.Set("key", []byte("value"), time.Hour))
	must(t, m.Set("somebody else's", "value"))
	for _, err := range []error{f.Reset(), f.ResetWithContext(ctx)} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("reset: %v", err)
		}
	}
	must(t, f.Close())
	if got, err := f.Get("key"); err != nil || string(got) != "value" {
		t.Errorf("%q, %v", got, err)
	}
	if !m.Exists("somebody else's") {
		t.Error("reset removed another's key")
	}
}

func TestTheCallersContextEndsACallOfAView(t *testing.T) {
	begin(t)
	c, _ := onServer(t, holdfast.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f, s := views.NewFiber(c, ""), views.NewSCS(c, "")
	a, w := views.NewAutocert(c, "", errNoSuchCert), views.NewWatermill(c, "", time.Hour)
	one := func(_ any, err error) error { return err }
	two := func(_, _ any, err error) error { return err }
	for name, err := range map[string]error{
		"fiber get":       one(f.GetWithContext(ctx, "key")),
		"fiber set":       f.SetWithContext(ctx, "key", []byte("value"), time.Hour),
		"fiber delete":    f.DeleteWithContext(ctx, "key"),
		"scs find":        two(s.FindCtx(ctx, "key")),
		"scs commit":      s.CommitCtx(ctx, "key", []byte("value"), time.Now().Add(time.Hour)),
		"scs delete":      s.DeleteCtx(ctx, "key"),
		"autocert get":    one(a.Get(ctx, "key")),
		"autocert put":    a.Put(ctx, "key", []byte("value")),
		"autocert delete": a.Delete(ctx, "key"),
		"watermill":       one(w.IsDuplicate(ctx, "key")),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnSCSSessionEndsAtItsExpiry(t *testing.T) {
	begin(t)
	c, m := onServer(t, holdfast.Options{DefaultTTL: time.Minute})
	s := views.NewSCS(c, "")
	for name, expiry := range map[string]time.Time{
		"past":     time.Now().Add(-time.Second),
		"now":      time.Now(),
		"zero":     {},
		"far past": time.Unix(-1<<40, 0),
	} {
		must(t, s.Commit("token", []byte("old"), time.Now().Add(time.Hour)))
		must(t, s.Commit("token", []byte("new"), expiry))
		if got, found, err := s.Find("token"); err != nil || found || m.Exists("token") {
			t.Errorf("%s: %q, found %v, %v; in redis: %v", name, got, found, err, m.Exists("token"))
		}
	}
	must(t, s.Commit("token", []byte("data"), time.Now().Add(time.Hour)))
	if ttl := m.TTL("token"); ttl > time.Hour+time.Millisecond || ttl < time.Hour-patience {
		t.Errorf("redis says %v", ttl)
	}
	must(t, s.Commit("token", []byte("data"), time.Now().Add(290*365*24*time.Hour)))
	if ttl := m.TTL("token"); ttl < century {
		t.Errorf("redis says %v", ttl)
	}
	must(t, s.Commit("token", []byte("data"), time.Unix(1<<40, 0)))
	if got, found, err := s.Find("token"); err != nil || !found || string(got) != "data" {
		t.Errorf("%q, found %v, %v", got, found, err)
	}
}

func TestAutocertOrdersNothingOnAMissThatRedisHasNotConfirmed(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{DefaultTTL: time.Minute})
	a := views.NewAutocert(c, "cert:", errNoSuchCert)
	must(t, a.Put(ctx, "known", []byte("key")))
	must(t, a.Put(ctx, "removed", []byte("key")))
	must(t, m.Set("cert:unseen", "key"))
	if ttl := m.TTL("cert:known"); ttl < century {
		t.Errorf("redis says that a certificate has %v", ttl)
	}
	away(t, c, m)
	if got, err := a.Get(ctx, "unseen"); got != nil || !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("%q, %v; want ErrUnavailable", got, err)
	}
	if got, err := a.Get(ctx, "known"); err != nil || string(got) != "key" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, a.Delete(ctx, "removed"))
	if _, err := a.Get(ctx, "removed"); err != errNoSuchCert {
		t.Errorf("what was deleted here: %v; want the miss error", err)
	}
	back(t, c, m)
	if got, err := a.Get(ctx, "unseen"); err != nil || string(got) != "key" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAutocertOnARedisThatDoesNotAnswerIsUnavailable(t *testing.T) {
	ctx := begin(t)
	c := open(t, redistest.Blackhole(t).Addr(), holdfast.Options{Timeout: 50 * time.Millisecond})
	a := views.NewAutocert(c, "", errNoSuchCert)
	if _, err := a.Get(ctx, "key"); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("%v; want ErrUnavailable", err)
	}
}

func TestASturdycBatchReturnsWhatThereIsAndTellsOfTheRest(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{})
	s := views.NewSturdyc(c, "s:", time.Hour)
	var heard []error
	s.OnError = func(err error) { heard = append(heard, err) }
	s.SetBatch(ctx, map[string][]byte{"a": []byte("1"), "b": []byte("2")})
	s.SetBatch(ctx, nil)
	if got := s.GetBatch(ctx, nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
	_, err := m.Push("s:list", "x")
	must(t, err)
	got := s.GetBatch(ctx, []string{"a", "list", "none", "b", "a", ""})
	if len(got) != 2 || string(got["a"]) != "1" || string(got["b"]) != "2" {
		t.Errorf("%q", got)
	}
	if len(heard) != 1 || !strings.Contains(heard[0].Error(), "WRONGTYPE") {
		t.Errorf("heard %v", heard)
	}
	if ttl := m.TTL("s:a"); ttl > time.Hour || ttl < time.Hour-patience {
		t.Errorf("redis says %v", ttl)
	}
	s.DeleteBatch(ctx, []string{"a", "none"})
	s.DeleteBatch(ctx, nil)
	if m.Exists("s:a") || !m.Exists("s:b") {
		t.Errorf("redis holds %v", m.Keys())
	}
}

func TestAnErrorThatNobodyHearsIsNoPanic(t *testing.T) {
	ctx := begin(t)
	c := open(t, "", holdfast.Options{})
	must(t, c.Close())
	h, l := views.NewHTTPCache(c, "", 0), views.NewLocalCache(c, "", 0)
	s, g := views.NewSturdyc(c, "", 0), views.NewGQLGen(c, "", 0)
	for _, f := range []func() bool{
		func() bool { _, ok := h.Get("key"); h.Set("key", nil); h.Delete("key"); return ok },
		func() bool { _, ok := l.Get("key"); l.Set("key", nil); l.Del("key"); return ok },
		func() bool { _, ok := g.Get(ctx, "key"); g.Add(ctx, "key", ""); return ok },
		func() bool { _, ok := s.Get(ctx, "key"); s.Set(ctx, "key", nil); s.Delete(ctx, "key"); return ok },
		func() bool { return len(s.GetBatch(ctx, []string{"key"})) > 0 },
	} {
		if f() {
			t.Error("a closed cache has something")
		}
	}
}

func TestTheTTLOfAViewIsThatOfWhatItStores(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{DefaultTTL: time.Minute})
	for ttl, want := range map[time.Duration]time.Duration{time.Hour: time.Hour, 0: time.Minute} {
		views.NewHTTPCache(c, "h:", ttl).Set("key", []byte("value"))
		views.NewLocalCache(c, "l:", ttl).Set("key", []byte("value"))
		views.NewSturdyc(c, "s:", ttl).Set(ctx, "key", []byte("value"))
		views.NewGQLGen(c, "g:", ttl).Add(ctx, "key", "value")
		for _, key := range []string{"h:key", "l:key", "s:key", "g:key"} {
			if got := m.TTL(key); got != want {
				t.Errorf("%s: redis says %v; want %v", key, got, want)
			}
		}
	}
}

func TestAViewWithANegativeTTLStoresNothingAndSaysSo(t *testing.T) {
	ctx := begin(t)
	c := open(t, "", holdfast.Options{})
	var heard []error
	hear := func(err error) { heard = append(heard, err) }
	h, l := views.NewHTTPCache(c, "", -1), views.NewLocalCache(c, "", -1)
	s, g := views.NewSturdyc(c, "", -1), views.NewGQLGen(c, "", -1)
	h.OnError, l.OnError, s.OnError, g.OnError = hear, hear, hear, hear
	h.Set("h", []byte("value"))
	l.Set("l", []byte("value"))
	s.Set(ctx, "s", []byte("value"))
	s.SetBatch(ctx, map[string][]byte{"b": []byte("value")})
	g.Add(ctx, "g", "value")
	if len(heard) != 5 {
		t.Errorf("heard %v; want five errors", heard)
	}
	for _, err := range heard {
		if !errors.Is(err, holdfast.ErrInvalidTTL) {
			t.Errorf("%v; want ErrInvalidTTL", err)
		}
	}
	if found, err := c.GetMany(ctx, "h", "l", "s", "b", "g"); err != nil || len(found) != 0 {
		t.Errorf("stored %v, %v", found, err)
	}
}

func TestADuplicateIsOneForAllProcessesAndForTheWindow(t *testing.T) {
	ctx := begin(t)
	c, m := onServer(t, holdfast.Options{})
	other := open(t, m.Addr(), holdfast.Options{})
	ready(t, other)
	w, w2 := views.NewWatermill(c, "dup:", time.Hour), views.NewWatermill(other, "dup:", time.Hour)
	says := func(w *views.Watermill, want bool) {
		t.Helper()
		if got, err := w.IsDuplicate(ctx, "message"); err != nil || got != want {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	says(w, false)
	says(w, true)
	says(w2, true)
	if ttl := m.TTL("dup:message"); ttl != time.Hour {
		t.Errorf("redis says %v", ttl)
	}
	m.FastForward(time.Hour)
	says(w2, false)
	says(w, true)
	for _, window := range []time.Duration{0, -1} {
		w := views.NewWatermill(c, "none:", window)
		if dup, err := w.IsDuplicate(ctx, "message"); dup || !errors.Is(err, holdfast.ErrInvalidTTL) {
			t.Errorf("a window of %v: %v, %v", window, dup, err)
		}
	}
	away(t, c, m)
	for _, key := range []string{"message", "other"} {
		if dup, err := w.IsDuplicate(ctx, key); dup || !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("in the outage: %v, %v", dup, err)
		}
	}
	back(t, c, m)
	if dup, err := w.IsDuplicate(ctx, "other"); dup || err != nil {
		t.Errorf("what was refused in the outage: %v, %v; want no duplicate", dup, err)
	}
}

package holdfast

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/redis/rueidis"
)

// The two ways to make a reply must not be told apart, and the quick one must be taken
// with the version of rueidis that go.mod names.

func TestTheLayoutOfRepliesIsTheOneThatIsKnown(t *testing.T) {
	a := newAnswers()
	if !a.direct {
		t.Fatal("rueidis.RedisMessage has changed: see message in client_reply.go")
	}
	slow := &answers{ok: a.ok, null: a.null}
	if !slow.sound() {
		t.Error("CacheUnmarshalView does not read what is written here")
	}
	long := make([]byte, 100_000)
	for i := range long {
		long[i] = byte(i)
	}
	for _, value := range [][]byte{nil, {}, []byte("v"), []byte("\x00\xff\r\n"), long} {
		quick, copied := a.text(value), slow.text(value)
		same(t, quick, copied)
		if s, err := quick.ToString(); err != nil || s != string(value) {
			t.Errorf("%q is %q, %v", value, s, err)
		}
		if b, err := quick.AsBytes(); err != nil || len(b) != len(value) || cap(b) != len(b) {
			t.Errorf("%q is %q of capacity %d, %v", value, b, cap(b), err)
		}
	}
	for _, n := range []int64{0, 1, -1, -2, 1<<63 - 1, -1 << 63} {
		same(t, a.number(n), slow.number(n))
	}
	same(t, a.list(nil), slow.list(nil))
	same(t, a.list([]rueidis.RedisMessage{a.text([]byte("x")), a.null, a.number(7), a.ok}),
		slow.list([]rueidis.RedisMessage{slow.text([]byte("x")), slow.null, slow.number(7), slow.ok}))
	if s, err := a.ok.ToString(); err != nil || s != "OK" || a.ok.IsCacheHit() {
		t.Errorf("OK is %q, %v", s, err)
	}
	if a.null.Error() != rueidis.Nil {
		t.Errorf("nil is %v", a.null.Error())
	}
	end := time.Now().Add(time.Hour).UnixMilli()
	quick, copied := a.text([]byte("x")), slow.text([]byte("x"))
	a.asHit(&quick, end)
	slow.asHit(&copied, end)
	same(t, quick, copied)
	if !quick.IsCacheHit() || quick.CachePXAT() != end {
		t.Errorf("a hit until %d says %v, %d", end, quick.IsCacheHit(), quick.CachePXAT())
	}
	fetched := a.text([]byte("x"))
	a.asCached(&fetched, end)
	if fetched.IsCacheHit() || fetched.CachePXAT() != end {
		t.Errorf("what was fetched until %d says %v, %d", end, fetched.IsCacheHit(), fetched.CachePXAT())
	}
}

func same(t *testing.T, a, b rueidis.RedisMessage) {
	t.Helper()
	if a.String() != b.String() || a.IsCacheHit() != b.IsCacheHit() || a.IsArray() != b.IsArray() ||
		string(a.CacheMarshal(nil)) != string(b.CacheMarshal(nil)) {
		t.Errorf("%s is not %s", a.String(), b.String())
	}
}

func TestASystemClockThatIsSetIsNoticedInASecond(t *testing.T) {
	u := unixClock{clock: clock.Start()}
	near := func(now int64) bool {
		wall := time.Now()
		off := u.millis(now, now+int64(time.Hour)) - wall.Add(time.Hour+time.Duration(now-u.clock.At(wall))).UnixMilli()
		return -2 <= off && off <= 2
	}
	now := u.clock.Now()
	if !near(now) {
		t.Error("the first time is wrong")
	}
	u.apart.Add(int64(time.Minute)) // as if the system clock had been set a minute back
	if near(now + int64(time.Second)/2) {
		t.Error("the clock was read again within a second: each hit pays for it")
	}
	if !near(now + 2*int64(time.Second)) {
		t.Error("the old time is still told after a second")
	}
	if got, most := u.millis(now, 1<<63-1), int64(1<<63-1)/int64(time.Millisecond); got < most {
		t.Errorf("the longest ttl ends at %d, before %d", got, most)
	}
}

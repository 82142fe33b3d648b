package holdfast_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A script may write keys that it does not name. The server tells of them, but mostly
// behind the script's reply, and with prefixes not at all.
func TestWhatAScriptWritesWithoutNamingItIsReadAfterIt(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackPrefixes} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		if mode == holdfast.TrackPrefixes {
			o.Tracking.Prefixes = []string{"n"}
		}
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		for i := range 500 {
			want := strconv.Itoa(i)
			wantSay(t, cl, "OK", "EVAL", "return redis.call('SET','n:'..'x',ARGV[1])", "0", want)
			wantSay(t, cl, want, "GET", "n:x")
			wantSay(t, cl, want, "GET", "n:x")
		}
	}
}

// FLUSHALL is behind every write of ours that was accepted before it, also behind one
// that waits in the journal.
func TestNothingComesBackAfterAFlush(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Journal.MaxRate = 20
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	const n = 200
	for i := range n {
		wantSay(t, cl, "OK", "SET", "k"+strconv.Itoa(i), "1")
	}
	s.Kill()
	waitState(t, c, holdfast.Down)
	for i := range n {
		wantSay(t, cl, "OK", "SET", "k"+strconv.Itoa(i), "2")
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	wantSay(t, cl, "OK", "FLUSHALL")
	if c.Health().JournalKeys == 0 {
		t.Fatal("all was replayed before the flush came: the test shows nothing")
	}
	for i := range n {
		wantSay(t, cl, "(nil)", "GET", "k"+strconv.Itoa(i))
	}
	drain(t, c)
	if got := s.MustDo("DBSIZE"); got != "0" && got != "1" {
		t.Errorf("%s keys came back: %s", got, s.MustDo("KEYS", "*"))
	}
}

// What a batch does to a key's end comes before the value that is set behind it.
func TestAnEndIsOfTheValueThatItWasGiven(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		o.Tracking.UntrackedTTL = time.Hour
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		wantSay(t, cl, "OK", "SET", "a", "1", "EX", "900")
		wantSay(t, cl, "OK", "SET", "b", "1")
		for i, res := range cl.DoMulti(ctx, cl.B().Persist().Key("a").Build(), cl.B().Set().Key("a").Value("2").ExSeconds(100).Build(),
			cl.B().Expire().Key("b").Seconds(50).Build(), cl.B().Set().Key("b").Value("2").Build()) {
			if err := res.Error(); err != nil {
				t.Fatal(i, err)
			}
		}
		for key, want := range map[string]string{"a": "100", "b": "-1"} {
			if got := say(t, cl, "TTL", key); got != want {
				t.Errorf("TTL %s: %s; want %s", key, got, want)
			}
		}
		s.Kill()
		waitState(t, c, holdfast.Down)
		for key, want := range map[string]string{"a": "100", "b": "-1"} {
			got, err := ask(cl, "TTL", key)
			if err == nil && got != want && got != "99" {
				t.Errorf("TTL %s while Redis is away: %s; want %s", key, got, want)
			}
			fmt.Println(mode, key, got, err)
		}
		s.Restart()
		waitState(t, c, holdfast.Up)
	}
	_ = context.Background
}

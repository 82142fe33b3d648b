package holdfast

import (
	"testing"

	"github.com/holdfast-cache/holdfast/internal/local"
)

func TestWhatTheServerRefutedIsNeverServedAgain(t *testing.T) {
	l := local.New(1 << 20)
	t.Cleanup(l.Close)
	h := l.Hash("k")
	set := func(expires int64) *local.Entry {
		e := local.NewEntry("k", []byte("v"), local.Freshness{Fresh: local.FreshUntil(expires), Expires: expires, Scope: &l.StandaloneScope, Epoch: l.StandaloneScope.Epoch.Load()})
		l.Put(h, e)
		return e
	}
	outage := OutageOptions{ServeStaleFor: 1 << 62}
	served := func(e *local.Entry, now int64) bool { return servable(e, now, true, outage) }

	e := set(100)
	if !served(e, 50) || !served(e, 150) || e.Invalid() {
		t.Fatal("a copy that nobody refuted is not served")
	}
	l.Invalidate(h, 50)
	if served(e, 50) || served(e, 150) || !e.Invalid() || e.FreshUntil() != 0 {
		t.Errorf("a refuted copy is served: %+v", e)
	}
	l.Suspect(h, func(int64) int64 { return 1000 }) // a Touch
	if !e.Invalid() {
		t.Error("a new end brought a refuted copy back")
	}
	tok := l.Token(h, &l.StandaloneScope)
	if !l.Fill(h, "k", []byte("v"), tok, local.Freshness{Confirmed: 60, Fresh: 100, Expires: 100, Scope: &l.StandaloneScope, Epoch: l.StandaloneScope.Epoch.Load()}) {
		t.Error("what redis holds now was not kept")
	}
	if e := l.Get(h); e == nil || e.Invalid() || e.FreshUntil() != 100 {
		t.Errorf("after a read: %+v", e)
	}

	// What the server tells of an expired key is that it expired.
	e = set(100)
	l.Invalidate(h, 100)
	if !served(e, 150) || e.FreshUntil() != 0 {
		t.Errorf("an expiry refuted a copy that may be served past its end: %+v", e)
	}

	e = set(100)
	l.StandaloneScope.Suspect()
	if e.Invalid() || !served(e, 50) || e.EpochValid(50) {
		t.Error("a lost stream made more of a copy than doubtful, or less")
	}
	l.StandaloneScope.Flush()
	if !e.Invalid() || served(e, 50) {
		t.Error("a copy outlives FLUSHALL")
	}
	if e := set(100); e.Invalid() || !e.EpochValid(50) {
		t.Error("FLUSHALL refutes what is written after it")
	}
}

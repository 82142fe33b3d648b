package link

import "sync/atomic"

// TestHooks gives the tests of a whole Cache the part of a link's state that the link alone uses.
type TestHooks struct {
	Used, Quiet, Trying *atomic.Bool
	Began               *atomic.Int64
	SetError            func(error)
	// AgeScripts lets the server's last answers about scripts be as old as it takes to believe them.
	AgeScripts func()
}

// TestHooks is for tests of other packages.
func (l *Link) TestHooks() TestHooks {
	return TestHooks{&l.used, &l.quiet, &l.trying, &l.began, l.setError, func() {
		l.scripting.Lock()
		defer l.scripting.Unlock()
		l.scripting.since -= int64(scriptsAfter)
		l.scripting.asked -= int64(scriptsAfter)
	}}
}

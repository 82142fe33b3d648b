package holdfast

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// Whether the server runs the replay's script is asked when it is greeted. Where it does
// not, nothing can be compared, and the sets that wait in the journal become deletes. That
// cannot be taken back, and a permission may be missing for a moment. So they wait until
// the server has said so twice, the second time scriptsAfter later or on another
// connection. What a replay meets by itself only makes it ask again.
//
//	          | greeted: runs | greeted: does not                 | a replay met that
//	runs      | runs          | awaited                           | awaited
//	awaited   | runs          | awaited, scriptless once it lasts | awaited
//	scriptless| runs          | scriptless                        | scriptless

// scriptsAfter is how long a server must have said that it runs no scripts.
const scriptsAfter = 10 * time.Second

// scripting is what is known of a link's server.
type scripting struct {
	mu struct {
		sync.Mutex
		since int64 // when it said first that it does not run the script; 0 where it does
		asked int64 // when it was asked last
	}
	logged atomic.Bool
}

// scriptState is what a session's server said.
type scriptState uint32

const (
	scriptsRun scriptState = iota
	scriptsAwaited
	scriptsNone
)

func (s *session) scriptless() bool     { return scriptState(s.scripts.Load()) == scriptsNone }
func (s *session) scriptsAwaited() bool { return scriptState(s.scripts.Load()) == scriptsAwaited }

// askScripts asks the server whether it runs the script, with the script itself: it has a
// look at the probe's key, and has been loaded then. The error is what ends the
// connection, or is about the server.
func (s *session) askScripts(ctx context.Context) error {
	key := s.link.probeKey("")
	if key == "" {
		return nil // a node without slots: nothing is replayed there
	}
	b := s.client.B()
	ticket := s.tickets.Add(1)
	replies := s.client.DoMulti(ctx,
		b.ScriptLoad().Script(replayScript).Build(),
		b.Evalsha().Sha1(replayDigest).Numkeys(1).Key(key).Arg("redelete", "", "0", "").Build())
	if err := replies[1].NonRedisError(); err != nil && !rueidis.IsRedisNil(err) {
		return err
	}
	s.answered(ticket)
	err := replies[1].Error()
	if err == nil || rueidis.IsRedisNil(err) {
		err = errNonsense
		if verdicts, shape := replies[1].ToArray(); shape == nil && len(verdicts) == 1 {
			err = readAnswer(verdicts[0]).err
		}
	}
	if load := replies[0].Error(); load != nil && err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		err = load // it says more
	}
	switch {
	case err == nil:
		s.noteScripts(nil, true)
	case noScripts(err), classify(ctx, err) == classUnknown:
		s.noteScripts(err, true)
	case away(err):
		return err
	}
	return nil
}

// noteScripts takes what the server said of the script: nil where it runs it. greeted: it
// was asked for that alone.
func (s *session) noteScripts(err error, greeted bool) {
	k := &s.link.scripting
	k.mu.Lock()
	now := s.link.clock.now()
	state := scriptsRun
	if greeted {
		k.mu.asked = now
	}
	switch {
	case err == nil:
		k.mu.since = 0
	default:
		if state = scriptsAwaited; k.mu.since == 0 {
			k.mu.since = now
		}
		if greeted && now-k.mu.since >= int64(scriptsAfter) || s.scriptless() {
			state = scriptsNone
		}
	}
	s.scripts.Store(uint32(state))
	k.mu.Unlock()
	s.lacks.note(lackScripts, err != nil)
	switch {
	case err == nil:
		k.logged.Store(false)
	case !k.logged.Swap(true):
		s.link.notify.scriptless(s.addr, err)
	}
}

// askAgain asks a server that did not run the script when it was asked before.
func (r *replayer) askAgain(ctx context.Context, s *session) {
	if now := r.clock.now(); !s.scriptsAwaited() || now < r.nextAsk(s) {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := s.askScripts(bounded); err != nil {
		s.link.askProbe() // there is more amiss
		k := &s.link.scripting
		k.mu.Lock()
		k.mu.asked = r.clock.now()
		k.mu.Unlock()
	}
}

// nextAsk is when a server is to be asked again, or never.
func (r *replayer) nextAsk(s *session) int64 {
	if !s.scriptsAwaited() || r.journal.queued.Load() == 0 {
		return never
	}
	k := &s.link.scripting
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.asked + int64(r.pauses.max)
}

// noScripts says that the server does not run the script, now or at all: it was flushed
// between load and use, the user may not run it or a command in it, or a proxy knows no
// scripts.
func noScripts(err error) bool {
	if errors.Is(err, errNonsense) {
		return true
	}
	if err == nil || !isReply(err) {
		return false
	}
	text := err.Error()
	return strings.HasPrefix(text, "NOSCRIPT") || refusesCommand(err) ||
		strings.Contains(text, "can't run this command or subcommand") ||
		strings.Contains(text, "ACL failure in script") && strings.Contains(text, " to run the ") ||
		strings.Contains(text, "ommand called from ") // Unknown Redis command called from script
}

// greetScripts is askScripts in a greeting. If the connection breaks over it, the next one
// does without: some servers hang up on what they do not know.
func (s *session) greetScripts(ctx context.Context) error {
	if s.link.skipScripts {
		s.link.skipScripts = false
		return nil
	}
	err := s.askScripts(ctx)
	s.link.skipScripts = err != nil && !isReply(err)
	return err
}

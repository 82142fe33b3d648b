package holdfast

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// Whether the server runs the replay's script is asked when it is greeted. Where it does
// not, nothing can be compared, and the sets that wait in the journal become deletes. That
// cannot be taken back, and a permission may be missing for a moment. So they wait, and the
// server is greeted once more, and only one that says no at least scriptsAfter after it
// said so first, and at no time nothing for as long, is believed. Both times the session
// must serve, so that a probe has shown
// that the server is well otherwise: what is said before that may be the way's. What a
// replay meets by itself only makes it ask. A text that nobody understands, and an answer
// that makes no sense, say nothing of scripts, however long: sets that are refused so are held.
//
//	           | greeted: runs | greeted: does not                  | a replay met that
//	runs       | runs          | awaited                            | awaited
//	awaited    | runs          | awaited; scriptless if that lasted | awaited
//	scriptless | runs          | scriptless                         | scriptless

// scriptsAfter is how long a server must have said that it runs no scripts.
const scriptsAfter = 10 * time.Second

// scripting is what is known of a link's server.
type scripting struct {
	sync.Mutex
	since    int64 // when it said first that it does not run the script; 0 where it does
	last     int64 // when it said so last
	asked    int64 // when it was asked last
	why      error
	logged   bool
	believed bool // since then it was scriptless
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
	case noScripts(err):
		s.noteScripts(err, true)
	case away(err):
		return err
	default: // in words of the way, or none: what is refused so is judged, and held
		s.link.scripting.Lock()
		s.link.scripting.asked = s.link.clock.now()
		s.link.scripting.Unlock()
	}
	return nil
}

// noteScripts takes what the server said of the script: nil where it runs it. greeted: it
// was asked for that alone.
func (s *session) noteScripts(err error, greeted bool) {
	k := &s.link.scripting
	k.Lock()
	now := s.link.clock.now()
	if greeted {
		k.asked = now
	}
	k.why = err
	state := scriptsRun
	if err != nil && !k.believed && now-k.last >= int64(scriptsAfter) {
		k.since = 0 // it was not asked meanwhile, and may have been without a permission twice
	}
	if err != nil {
		k.last = now
	}
	switch {
	case err == nil:
		k.since, k.logged, k.believed = 0, false, false
	case s.scriptless(), greeted && k.since != 0 && now-k.since >= int64(scriptsAfter) && s.link.gate.Load() == s:
		state, k.believed = scriptsNone, true
	default:
		state = scriptsAwaited
	}
	s.scripts.Store(uint32(state))
	k.Unlock()
	s.lacks.note(lackScripts, err != nil)
	if s.link.gate.Load() == s {
		s.tellScripts()
	}
}

// tellScripts notes that a session serves whose server does not run the script, and logs it
// once.
func (s *session) tellScripts() {
	if scriptState(s.scripts.Load()) == scriptsRun {
		return
	}
	k := &s.link.scripting
	k.Lock()
	defer k.Unlock()
	if k.since == 0 {
		k.since = s.link.clock.now()
	}
	if !k.logged && k.why != nil {
		k.logged = true
		s.link.notify.scriptless(s.addr, k.why)
	}
}

var errMinimal = errors.New("holdfast: the server hangs up at commands that it does not know")

// askAgain asks a server that did not run the script when it was asked before.
func (r *replayer) askAgain(ctx context.Context, s *session) {
	if now := r.clock.now(); !s.scriptsAwaited() || now < r.nextAsk(s) {
		return
	}
	if s.manner == mannerMinimal {
		s.noteScripts(errMinimal, true)
		return
	}
	bounded, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := s.askScripts(bounded); err != nil {
		s.link.askProbe() // there is more amiss
		k := &s.link.scripting
		k.Lock()
		k.asked = r.clock.now()
		k.Unlock()
	}
}

// nextAsk is when a server is to be asked again, or never.
func (r *replayer) nextAsk(s *session) int64 {
	if !s.scriptsAwaited() || r.journal.queued.Load() == 0 {
		return never
	}
	k := &s.link.scripting
	k.Lock()
	defer k.Unlock()
	return k.asked + int64(r.pauses.max)
}

// noScripts says that the server does not run the script, now or at all: it was flushed
// between load and use, the user may not run it or a command in it, or a proxy knows no
// scripts.
func noScripts(err error) bool {
	if err == nil || !isReply(err) {
		return false
	}
	return strings.HasPrefix(err.Error(), "NOSCRIPT") || refusesCommand(err) || withinScript(err) || otherwiseNoScripts(err)
}

// otherwiseNoScripts knows the words of other makes: Pika's, Garnet's, those of services.
func otherwiseNoScripts(err error) bool {
	text := strings.ToLower(strings.TrimPrefix(err.Error(), "ERR "))
	for _, t := range []string{"unknown command", "unknown or unsupported command", "unsupported command"} {
		if strings.HasPrefix(text, t) {
			return true
		}
	}
	return (strings.Contains(text, "scripting") || strings.Contains(text, "scripts") || strings.Contains(text, "lua")) &&
		(strings.Contains(text, "disabled") || strings.Contains(text, "not supported") || strings.Contains(text, "not support "))
}

// withinScript says that a command is refused that the script calls. What the greeting has
// the script call is asked for there; what it does not is seldom called, and refused to the
// entry.
func withinScript(err error) bool {
	text := err.Error()
	return strings.Contains(text, "can't run this command or subcommand") ||
		strings.Contains(text, "ACL failure in script") && strings.Contains(text, " to run the ") ||
		strings.Contains(text, "ommand called from ") // Unknown Redis command called from script
}

// greetScripts is askScripts in a greeting. If the connection breaks over it, the next one
// does without: some servers hang up on what they do not know.
func (s *session) greetScripts(ctx context.Context) error {
	if s.manner == mannerMinimal {
		s.noteScripts(errMinimal, true) // it would hang up
		return nil
	}
	if s.link.skipScripts {
		s.link.skipScripts = false
		return nil
	}
	err := s.askScripts(ctx)
	s.link.skipScripts = err != nil && !isReply(err)
	return err
}

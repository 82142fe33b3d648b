package link

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// The greeting of a session asks whether the server runs the replay's script. Without the
// script nothing can be compared, and the journaled sets become deletes. That cannot be
// undone, and a permission may be missing for a moment. So the sets wait, and the server is
// asked again. The refusal counts as permanent only if
//
//  - the server refuses the script again at least scriptsAfter after the first refusal,
//  - less than scriptsAfter passed between two refusals in a row, unless the refusal counted
//    as permanent before and the server has not run the script since, and
//  - the session serves at both times, so that a probe has shown that the server is
//    healthy otherwise. Before that, the answer may come from a proxy on the way.
//
// A refusal that a replay meets only causes a question. An unknown error text, or a reply
// that makes no sense, says nothing about scripts, however long it lasts: the sets that are
// refused so are held.
//
//	           | greeting: runs | greeting: does not                 | met by a replay
//	runs       | runs           | awaited                            | awaited
//	awaited    | runs           | awaited; scriptless if that lasted | awaited
//	scriptless | runs           | scriptless                         | scriptless

// scriptsAfter is how long a server must have said that it runs no scripts.
const scriptsAfter = 10 * time.Second

// scripting is the state of the scripts of a link's server.
type scripting struct {
	sync.Mutex
	since    int64 // when it first refused the script while a session served; 0: it did not
	last     int64 // when it last refused the script
	asked    int64 // when it was last asked
	why      error
	logged   bool
	believed bool // it was scriptless, and has not run the script since
}

// scriptState is the state of the scripts of a session's server.
type scriptState uint32

const (
	scriptsRun scriptState = iota
	scriptsAwaited
	scriptsNone
)

func (s *Session) Scriptless() bool     { return scriptState(s.scripts.Load()) == scriptsNone }
func (s *Session) ScriptsAwaited() bool { return scriptState(s.scripts.Load()) == scriptsAwaited }

// AskScripts asks the server whether it runs the script: it loads the script and runs it on
// the probe's key, which it only reads. An error is about the connection or the whole
// server. It blocks at most until ctx ends.
func (s *Session) AskScripts(ctx context.Context) error {
	key := s.Link.Keys.ProbeKey("")
	if key == "" {
		return nil // a node without slots: nothing is replayed there
	}
	b, check := s.Client.B(), &s.Link.cfg.Script
	ticket := s.Tickets.Add(1)
	replies := s.Client.DoMulti(ctx,
		b.ScriptLoad().Script(check.Text).Build(),
		b.Evalsha().Sha1(check.Digest).Numkeys(1).Key(key).Arg(check.Args...).Build())
	if err := replies[1].NonRedisError(); err != nil && !rueidis.IsRedisNil(err) {
		return err
	}
	s.Answered(ticket)
	err := replies[1].Error()
	if err == nil || rueidis.IsRedisNil(err) {
		err = check.Check(replies[1])
	}
	if load := replies[0].Error(); load != nil && err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		err = load // it is more specific
	}
	switch {
	case err == nil:
		s.NoteScripts(nil, true)
	case NoScripts(err):
		s.NoteScripts(err, true)
	case dial.Away(err):
		return err
	default: // another error, or a reply without sense: judged when a replay meets it
		s.ScriptAsked()
	}
	return nil
}

// NoteScripts records the answer of the server about the script; nil: it runs the script.
// greeted reports that the server was asked for that alone, and not by a replay.
func (s *Session) NoteScripts(err error, greeted bool) {
	k := &s.Link.scripting
	k.Lock()
	now := s.Link.clock.Now()
	if greeted {
		k.asked = now
	}
	k.why = err
	state := scriptsRun
	if err != nil && !k.believed && now-k.last >= int64(scriptsAfter) {
		k.since = 0 // between the answers the permission may have been there
	}
	if err != nil {
		k.last = now
	}
	switch {
	case err == nil:
		k.since, k.logged, k.believed = 0, false, false
		s.Lacks.Note(lackEvalsha, false)
	case s.Scriptless(), greeted && k.since != 0 && now-k.since >= int64(scriptsAfter) && s.Link.Gate.Load() == s:
		state, k.believed = scriptsNone, true
	default:
		state = scriptsAwaited
	}
	s.scripts.Store(uint32(state))
	k.Unlock()
	s.Lacks.Note(LackScripts, err != nil)
	if s.Link.Gate.Load() == s {
		s.tellScripts()
	}
}

// tellScripts records that a session serves whose server does not run the script, and logs
// it once.
func (s *Session) tellScripts() {
	if scriptState(s.scripts.Load()) == scriptsRun {
		return
	}
	k := &s.Link.scripting
	k.Lock()
	defer k.Unlock()
	if k.since == 0 {
		k.since = s.Link.clock.Now()
	}
	if !k.logged && k.why != nil {
		k.logged = true
		s.Link.Watcher.Scriptless(s.Addr, k.why)
	}
}

var ErrMinimal = errors.New("holdfast: the server hangs up at commands that it does not know")

// ScriptAsked records that the server was asked now, and gave no answer about the script.
func (s *Session) ScriptAsked() {
	k := &s.Link.scripting
	k.Lock()
	k.asked = s.Link.clock.Now()
	k.Unlock()
}

// ScriptAskedAt returns when the server was last asked.
func (s *Session) ScriptAskedAt() int64 {
	k := &s.Link.scripting
	k.Lock()
	defer k.Unlock()
	return k.asked
}

// NoScripts reports whether an error means that the server does not run the script, now or
// ever: the script was flushed between load and use, the user may not run it or a command
// in it, or a proxy has no scripts.
func NoScripts(err error) bool {
	if err == nil || !rediserr.IsReply(err) {
		return false
	}
	return strings.HasPrefix(err.Error(), "NOSCRIPT") || rediserr.RefusesCommand(err) || WithinScript(err) || otherwiseNoScripts(err)
}

// otherwiseNoScripts knows the error texts of Pika, Garnet and cloud services.
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

// WithinScript reports whether a command inside the script was refused. The greeting asks
// for the commands that its run of the script needs. Other commands are run for few
// entries, and a refusal counts for the entry alone.
func WithinScript(err error) bool {
	text := err.Error()
	return strings.Contains(text, "can't run this command or subcommand") ||
		strings.Contains(text, "ACL failure in script") && strings.Contains(text, " to run the ") ||
		strings.Contains(text, "ommand called from ") // Unknown Redis command called from script
}

// greetScripts is AskScripts for a greeting. If the connection is lost over it, the next
// greeting omits it: some servers close the connection at an unknown command.
func (s *Session) greetScripts(ctx context.Context) error {
	if s.Manner == dial.MannerMinimal {
		s.NoteScripts(ErrMinimal, true) // the server would close the connection
		return nil
	}
	if s.Link.skipScripts {
		s.Link.skipScripts = false
		return nil
	}
	err := s.AskScripts(ctx)
	s.Link.skipScripts = err != nil && !rediserr.IsReply(err)
	return err
}

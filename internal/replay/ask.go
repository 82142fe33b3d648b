package replay

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/link"
)

// askAgain asks the server again, when the next question is due, whether it runs the script. It
// blocks for at most the replay's timeout.
func (r *Replayer) askAgain(ctx context.Context, s *link.Session) {
	if now := r.clock.Now(); !s.ScriptsAwaited() || now < r.nextAsk(s) {
		return
	}
	if s.Manner == dial.MannerMinimal {
		s.NoteScripts(link.ErrMinimal, true)
		return
	}
	bounded, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := s.AskScripts(bounded); err != nil {
		s.Link.AskProbe() // the server has another problem
		s.ScriptAsked()
	}
}

// nextAsk returns when the server is to be asked again, or never.
func (r *Replayer) nextAsk(s *link.Session) int64 {
	if !s.ScriptsAwaited() || r.journal.Queued.Load() == 0 {
		return clock.Never
	}
	return s.ScriptAskedAt() + int64(r.pauses.Max)
}

package holdfast

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// askAgain asks a server that did not run the script when it was last asked, if that is
// due. It blocks for at most the replay's timeout.
func (r *replayer) askAgain(ctx context.Context, s *session) {
	if now := r.clock.Now(); !s.scriptsAwaited() || now < r.nextAsk(s) {
		return
	}
	if s.manner == mannerMinimal {
		s.noteScripts(errMinimal, true)
		return
	}
	bounded, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := s.askScripts(bounded); err != nil {
		s.link.askProbe() // the server has another problem
		s.scriptAsked()
	}
}

// nextAsk returns when the server is to be asked again, or never.
func (r *replayer) nextAsk(s *session) int64 {
	if !s.scriptsAwaited() || r.journal.Queued.Load() == 0 {
		return clock.Never
	}
	return s.scriptAskedAt() + int64(r.pauses.Max)
}

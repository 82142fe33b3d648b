package link

import (
	"strings"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// RunScript builds the command that runs the script: EVALSHA with the digest, or EVAL with the
// text if the item or its session got no further with the digest. Batch and One send the item
// again with the text if the server does not know the digest (a start, a failover, SCRIPT FLUSH),
// or refuses EVALSHA: then nothing was run. EVAL also loads the script.
func (it *Item) RunScript(b rueidis.Builder, s *Script, keys []string, args ...string) rueidis.Completed {
	it.byDigest = !it.byText && it.Session.Manner != dial.MannerMinimal && !it.Session.Lacks.has(lackEvalsha)
	if it.byDigest {
		return b.Evalsha().Sha1(s.Digest).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	}
	return b.Eval().Script(s.Text).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
}

// needsText reports whether the script of the item was not run for want of its text.
func (it *Item) needsText() bool {
	err := it.outcome.Err
	return it.byDigest && it.outcome.Class == rediserr.Command && (notLoaded(err) || NoScripts(err) && !WithinScript(err))
}

// useText prepares the item for another try, with the text. Where the server refuses EVALSHA
// itself, so do all items of the session from now on.
func (it *Item) useText() {
	it.byText, it.Session = true, it.outcome.Session
	it.Session.Lacks.Note(lackEvalsha, !notLoaded(it.outcome.Err))
}

// notLoaded reports whether the server does not know a script by its digest.
func notLoaded(err error) bool {
	return strings.HasPrefix(err.Error(), "NOSCRIPT") || strings.HasPrefix(err.Error(), "No matching script")
}

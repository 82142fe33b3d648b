package link

import (
	"strings"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// RunScript builds the command that runs the script: EVALSHA with the digest if the session has
// run the script before, else EVAL with the text, which loads it. Batch and One send the item again
// with the text if the server does not know the digest any more (SCRIPT FLUSH), or refuses EVALSHA:
// then nothing was run.
func (it *Item) RunScript(b rueidis.Builder, s *Script, keys []string, args ...string) rueidis.Completed {
	it.script = s
	_, known := it.Session.ran.Load(s)
	it.byDigest = known && !it.byText && !it.Session.Lacks.has(lackEvalsha) && it.Session.Manner != dial.MannerMinimal
	if it.byDigest {
		return b.Evalsha().Sha1(s.Digest).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	}
	return b.Eval().Script(s.Text).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
}

// conclude records the outcome of a try, and reports whether the item is done. If not, it was
// redirected, or the server needs the text of its script.
func (it *Item) conclude(o Outcome) (done bool) {
	it.outcome = o
	if it.script != nil && !it.byDigest && o.Class == rediserr.OK {
		o.Session.ran.Store(it.script, nil)
	}
	return o.Class != rediserr.Redirect && !it.needsText()
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

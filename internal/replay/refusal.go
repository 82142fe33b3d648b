package replay

import (
	"strings"

	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// refusalText returns the text of an error for display and comparison: printable, and without
// the key and numbers, which differ from entry to entry.
func refusalText(err error, key string) string {
	text := err.Error()
	if len(text) > journal.RefusalRead+len(key) {
		text = text[:journal.RefusalRead+len(key)]
	}
	if key != "" {
		text = withoutKey(text, key)
	}
	var b strings.Builder
	digits := false
	for i := range len(text) {
		digit := '0' <= text[i] && text[i] <= '9'
		if !digit {
			b.WriteByte(text[i])
		} else if !digits {
			b.WriteByte('#')
		}
		digits = digit
	}
	return rediserr.Printable(b.String())
}

// withoutKey replaces the key in a text, except where the key is part of a longer word: a
// short key may be part of any word.
func withoutKey(text, key string) string {
	inWord := func(i int) bool {
		return i >= 0 && i < len(text) && (text[i]|0x20 >= 'a' && text[i]|0x20 <= 'z')
	}
	var b strings.Builder
	done := 0
	for at := 0; ; {
		i := strings.Index(text[at:], key)
		if i < 0 {
			return b.String() + text[done:]
		}
		i += at
		if at = i + len(key); inWord(i-1) && inWord(i) || inWord(at-1) && inWord(at) {
			at = i + 1
			continue
		}
		b.WriteString(text[done:i] + "*")
		done = at
	}
}

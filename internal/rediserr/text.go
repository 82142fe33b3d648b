package rediserr

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/redis/rueidis"
)

// MaxServerText bounds the text of a server in an error of this package, in bytes.
const MaxServerText = 256

// Printable returns a server's text as errors, log lines and Health show it: cut, and without
// control characters, because a terminal would obey them.
func Printable(text string) string {
	cut := escape(text[:min(len(text), MaxServerText)])
	if len(cut) > MaxServerText {
		cut = strings.ToValidUTF8(cut[:MaxServerText], "")
	}
	if len(text) > MaxServerText {
		cut += "..."
	}
	return cut
}

// escape replaces unprintable characters with Go's escape sequences.
func escape(text string) string {
	if !strings.ContainsFunc(text, Unprintable) {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func Unprintable(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }

// Describe returns the text of an error with every server's text in it made printable. The
// error itself is unchanged: errors.As finds Redis' own error with its whole text.
func Describe(err error) string {
	text := err.Error()
	eachServerError(err, func(said string) {
		if clean := Printable(said); clean != said {
			text = strings.ReplaceAll(text, said, clean)
		}
	})
	return text
}

func eachServerError(err error, f func(text string)) {
	switch e := err.(type) { // not errors.As, which finds only the first
	case *rueidis.RedisError:
		f(e.Error())
	case *strconv.NumError:
		f(strconv.Quote(e.Num)) // the server's text, in place of a number
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if err := e.Unwrap(); err != nil {
			eachServerError(err, f)
		}
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			eachServerError(err, f)
		}
	}
}

// maxTold bounds the text of an error in Health, log lines and hooks, where several errors
// may be joined. In bytes.
const maxTold = 8 * MaxServerText

// Presentable returns an error for Health, log lines and hooks: its text is on one line, of
// bounded length and without control characters.
func Presentable(err error) error {
	if err == nil {
		return nil
	}
	text := Text(err)
	if text == err.Error() {
		return err
	}
	return &presented{text, err}
}

// Text returns the text of presentable's error.
func Text(err error) string {
	text := escape(strings.ReplaceAll(Describe(err), "\n", "; "))
	if len(text) > maxTold {
		text = strings.ToValidUTF8(text[:maxTold], "") + "..."
	}
	return text
}

// presented is an error with a text that is safe to show.
type presented struct {
	text string
	err  error
}

func (p *presented) Error() string { return p.text }
func (p *presented) Unwrap() error { return p.err }

package resp

import "strings"

// Said is an error reply.
type Said struct {
	Reply int64  // which reply of the connection it was, from 1
	Text  string // how it begins
}

const (
	// maxSaid is how much of an error is kept.
	maxSaid = 256
	// mostSaid is how many errors are kept.
	mostSaid = 16
)

// note keeps the error that has just ended.
func (f *Framer) note() {
	if f.deaf {
		return
	}
	if len(f.said) == mostSaid {
		f.said = f.said[:mostSaid-1]
	}
	f.said = append(f.said, Said{f.replies, string(f.text[:min(len(f.text), maxSaid)])})
}

// unfinished is how the error begins that is being received, "" where none is.
func (f *Framer) unfinished() string {
	if len(f.stack) > 0 || f.typ == '-' && f.state != stLine || f.typ == '!' && f.state != stBody && f.state != stCR {
		return ""
	}
	if f.typ != '-' && f.typ != '!' {
		return ""
	}
	return strings.TrimSuffix(string(f.text[:min(len(f.text), maxSaid)]), "\r")
}

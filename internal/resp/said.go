package resp

import "strings"

// Said is an error reply.
type Said struct {
	Reply int64  // number of the reply on the connection, from 1
	Text  string // the beginning of its text, at most 256 bytes
}

const (
	// maxSaid is how many bytes of an error are kept.
	maxSaid = 256
	// mostSaid is how many errors are kept.
	mostSaid = 16
)

// note keeps the error that has just ended. If there are mostSaid already, it replaces
// the last one.
func (f *Framer) note() {
	if f.deaf {
		return
	}
	if len(f.said) == mostSaid {
		f.said = f.said[:mostSaid-1]
	}
	f.said = append(f.said, Said{f.replies, string(f.text[:min(len(f.text), maxSaid)])})
}

// unfinished returns the beginning of the error that is being received, "" if there is
// none.
func (f *Framer) unfinished() string {
	if len(f.stack) > 0 || f.typ == '-' && f.state != stLine || f.typ == '!' && f.state != stBody && f.state != stCR {
		return ""
	}
	if f.typ != '-' && f.typ != '!' {
		return ""
	}
	return strings.TrimSuffix(string(f.text[:min(len(f.text), maxSaid)]), "\r")
}

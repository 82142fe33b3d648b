package resp

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

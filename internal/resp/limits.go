package resp

// Limits bounds how much one server may make the client allocate. Announced bytes cost
// nothing before they arrive, so these are bounds on bytes really sent. A field that is
// zero or negative takes its value from DefaultLimits.
type Limits struct {
	// MaxBulk is the length of the longest bulk string, in bytes. Default: 512 MiB.
	MaxBulk int64

	// MaxElements is how many elements all aggregates of one top-level frame may declare
	// together; a map entry counts as two. rueidis needs 40 bytes for each. Default:
	// 1<<24.
	MaxElements int64

	// MaxDepth is how deep aggregates may nest. rueidis recurses once per level, and a Go
	// stack overflow cannot be recovered. Redis nests to about two thousand levels, in
	// the reply of a script. Default: 4096.
	MaxDepth int

	// MaxLine is the length of the longest simple string, error, double or big number, in
	// bytes without its type byte and CRLF. rueidis buffers a line until it ends
	// (resp.go, readS). Redis does not bound the error of a script. Default: 16 MiB; at
	// most 1 GiB.
	MaxLine int

	// MaxFrame is the size of one top-level frame, in bytes on the wire. rueidis holds a
	// reply in memory until its last element has arrived, so a bound for each bulk string
	// would not bound an array of a million of them. Default: 1 GiB.
	MaxFrame int64
}

// DefaultLimits accepts every reply of a Redis server with its default configuration,
// including bulk strings as large as Redis' own limit.
var DefaultLimits = Limits{
	MaxBulk:     512 << 20,
	MaxElements: 1 << 24,
	MaxDepth:    4096,
	MaxLine:     16 << 20,
	MaxFrame:    1 << 30,
}

func (l Limits) withDefaults() Limits {
	if l.MaxBulk <= 0 {
		l.MaxBulk = DefaultLimits.MaxBulk
	}
	if l.MaxElements <= 0 {
		l.MaxElements = DefaultLimits.MaxElements
	}
	if l.MaxDepth <= 0 {
		l.MaxDepth = DefaultLimits.MaxDepth
	}
	if l.MaxLine <= 0 {
		l.MaxLine = DefaultLimits.MaxLine
	}
	l.MaxLine = min(l.MaxLine, 1<<30)
	if l.MaxFrame <= 0 {
		l.MaxFrame = DefaultLimits.MaxFrame
	}
	return l
}

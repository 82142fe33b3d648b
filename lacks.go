package holdfast

import "sync/atomic"

// lack is a helper command that Redis may not run for this user, and that is done
// without then.
type lack uint32

const (
	lackPTTL lack = 1 << iota
	lackExists
	lackLeases
	lackScripts
)

// lacks is a set of them, as far as is known of a session. What the last try of each
// met counts, so that a permission that is given back is noticed.
type lacks struct{ atomic.Uint32 }

// note says what became of a try. Where nothing is lacking that costs an atomic load.
func (l *lacks) note(what lack, missing bool) {
	switch was := l.Load()&uint32(what) != 0; {
	case missing && !was:
		l.Or(uint32(what))
	case was && !missing:
		l.And(^uint32(what))
	}
}

func (l *lacks) names() (names []string) {
	for i, name := range [...]string{"pttl", "exists", "leases", "scripts"} {
		if l.Load()&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

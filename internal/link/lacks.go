package link

import "sync/atomic"

// lack is a helper command that Redis may refuse, because it does not know the command or
// the user may not run it. The library then works without it.
type lack uint32

const (
	lackPTTL lack = 1 << iota
	LackExists
	LackLeases
	LackScripts
	lackEvalsha // not in names: it costs nothing but the text of the scripts
	lackHPTTL   // not in names: the server does not know it, so no field of a hash expires
)

// lacks is the set of refused helper commands of a session. The last try of each command
// counts, so that a permission that is given back is noticed.
type lacks struct{ atomic.Uint32 }

// Note records the result of a try. While nothing is lacking, it costs one atomic load.
func (l *lacks) Note(what lack, missing bool) {
	switch was := l.Load()&uint32(what) != 0; {
	case missing && !was:
		l.Or(uint32(what))
	case was && !missing:
		l.And(^uint32(what))
	}
}

func (l *lacks) has(what lack) bool { return l.Load()&uint32(what) != 0 }

// names returns the refused commands as Health.Lacks shows them.
func (l *lacks) names() (names []string) {
	for i, name := range [...]string{"pttl", "exists", "leases", "scripts"} {
		if l.Load()&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

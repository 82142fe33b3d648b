package link

import (
	"strings"
	"time"
)

// causes are the reported reasons why Redis was not reached. A client that never connects
// stays in one state, so no change of state would report the reason.
type causes struct {
	last     string
	reported map[string]int64 // when each cause was reported
}

const (
	// causeAgain is the least time between two reports of one cause, if others came
	// between.
	causeAgain = time.Minute
	// causesMost is the most causes reported in that time: the text may be the server's.
	causesMost = 16
)

// news reports whether a failure is to be reported: it is the first, or its cause differs
// from that of the failure before. Causes that differ only in numbers, such as ports, are
// the same. A cause that was reported within causeAgain is not reported again.
func (c *causes) news(text string, now int64) bool {
	if len(text) > 256 {
		text = text[:256]
	}
	cause := strings.Join(strings.FieldsFunc(text, func(r rune) bool { return '0' <= r && r <= '9' }), "#")
	if cause == c.last {
		return false
	}
	c.last = cause
	if c.reported == nil {
		c.reported = make(map[string]int64)
	}
	for old, at := range c.reported {
		if now-at >= int64(causeAgain) {
			delete(c.reported, old)
		}
	}
	if _, lately := c.reported[cause]; lately || len(c.reported) == causesMost {
		return false
	}
	c.reported[cause] = now
	return true
}

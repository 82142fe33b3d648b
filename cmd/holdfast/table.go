package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// tally summarizes the calls of a period.
type tally struct {
	calls, failed, overran int
	reads                  [sources]int
	latency                histogram
	failure                error         // one of the failures
	oversleep              time.Duration // the longest
}

func (t *tally) merge(other *tally) {
	t.calls += other.calls
	t.failed += other.failed
	t.overran += other.overran
	for i, n := range other.reads {
		t.reads[i] += n
	}
	t.latency.merge(&other.latency)
	t.oversleep = max(t.oversleep, other.oversleep)
	if t.failure == nil {
		t.failure = other.failure
	}
}

// meter gathers tallies. Callers report to it when their call is over, so a call of
// several seconds counts in the row in which it ended.
type meter struct {
	limit time.Duration // allowed duration of a call

	mu  sync.Mutex
	now *tally
}

func newMeter(allowed time.Duration) *meter { return &meter{limit: allowed, now: new(tally)} }

func (m *meter) read(took time.Duration, from source, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(took, err)
	if err == nil {
		m.now.reads[from]++
	}
}

func (m *meter) write(took time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count(took, err)
}

func (m *meter) woke(late time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.oversleep = max(m.now.oversleep, late)
}

// count adds one call. The caller holds the lock.
func (m *meter) count(took time.Duration, err error) {
	m.now.calls++
	m.now.latency.add(took)
	if took > m.limit {
		m.now.overran++
	}
	if err != nil {
		m.now.failed++
		m.now.failure = err
	}
}

// take returns the tally since the last call of take.
func (m *meter) take() *tally {
	fresh := new(tally)
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.now
	m.now = fresh
	return taken
}

// row is one line of the table.
type row struct {
	at      time.Duration // since the script began
	length  time.Duration
	script  mode
	state   string // "" if the client reports none
	journal string
	dials   int64
	tally   *tally
}

// printer writes output for a person.
type printer struct {
	out    io.Writer
	styled bool
}

// rowFormat fits a terminal of 80 columns.
const rowFormat = "%5s %-6s %-8s %7s %5s %5s %4s %6s %6s %6s %5s %6s\n"

func (p printer) heading() {
	p.style("\x1b[1m", fmt.Sprintf(rowFormat, "time", "script", "state", "calls/s",
		"local", "redis", "miss", "p50", "max", "errors", "dials", "kept"))
}

func (p printer) row(r row) {
	t := r.tally
	reads := 0
	for _, n := range t.reads {
		reads += n
	}
	share := func(n int) string {
		if reads == 0 {
			return "."
		}
		return percent(float64(n) / float64(reads))
	}
	line := fmt.Sprintf(rowFormat,
		elapsed(r.at), r.script, short(r.state),
		thousands(int64(float64(t.calls)/r.length.Seconds())),
		share(t.reads[fromLocal]+t.reads[fromJournal]), share(t.reads[fromRedis]), share(t.reads[fromNowhere]),
		millis(t.latency.quantile(0.5)), millis(t.latency.longest),
		thousands(int64(t.failed)), thousands(r.dials), orDash(r.journal))
	switch {
	case t.failed > 0:
		p.style("\x1b[31m", line)
	case r.script != up:
		p.style("\x1b[33m", line)
	default:
		p.style("", line)
	}
}

// style writes a line, in colour if the output is styled.
func (p printer) style(escape, line string) {
	if p.styled && escape != "" {
		line = escape + line[:len(line)-1] + "\x1b[0m\n"
	}
	io.WriteString(p.out, line)
}

func (p printer) say(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

// elapsed formats a time in at most five letters.
func elapsed(d time.Duration) string {
	if d >= 100*time.Second {
		return fmt.Sprintf("%.0fs", d.Seconds())
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// short returns the state in at most eight letters.
func short(state string) string {
	if state == "connecting" {
		return "connect"
	}
	return orDash(state)
}

// percent formats a share in at most four letters.
func percent(share float64) string {
	if share > 0 && share < 0.0995 {
		return fmt.Sprintf("%.1f%%", 100*share)
	}
	return fmt.Sprintf("%.0f%%", 100*share)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// millis formats a duration in milliseconds with the significant digits only.
func millis(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return fmt.Sprintf("%.3f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	}
	return thousands(int64(ms))
}

func thousands(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

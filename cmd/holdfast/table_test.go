package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAQuantileIsNeverBelowTheTruthAndHardlyAbove(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var h histogram
	var all []time.Duration
	for range 10000 {
		d := time.Duration(1) << random.IntN(40)
		d += time.Duration(random.Int64N(int64(d)))
		all = append(all, d)
		h.add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999} {
		truth, got := all[int(q*float64(len(all)))], h.quantile(q)
		if got < truth || got > truth+truth/fine {
			t.Errorf("quantile %v is %v, the truth %v", q, got, truth)
		}
	}
	if h.longest != all[len(all)-1] || h.quantile(1) != h.longest {
		t.Errorf("the longest is %v, quantile 1 %v, the truth %v", h.longest, h.quantile(1), all[len(all)-1])
	}
}

func TestEveryDurationHasABucketAndItsLimitIsInIt(t *testing.T) {
	for _, v := range []uint64{0, 1, fine - 1, fine, fine + 1, 2*fine - 1, 2 * fine, 1000, 1 << 40, 1<<63 - 1} {
		i := bucket(v)
		if i >= 64*fine || limit(i) < v || bucket(limit(i)) != i {
			t.Errorf("%d is in bucket %d, which ends with %d", v, i, limit(i))
		}
	}
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("nothing has a quantile")
	}
	h.add(-time.Second)
	if h.longest != 0 || h.count != 1 {
		t.Error("a clock that went backwards was not counted as 0")
	}
}

func TestTheColumnsOfARowStandBelowTheirHeadings(t *testing.T) {
	full := &tally{calls: 12345, failed: 1234, failure: errors.New("x"), reads: [sources]int{1, 2, 3, 4}}
	full.latency.add(time.Second)
	for _, r := range []row{
		{at: time.Second, length: time.Second, script: killed, state: "connecting", journal: "65,536", dials: 9999, tally: full},
		{at: 100 * time.Second, length: time.Second, script: up, tally: new(tally)},
	} {
		var out bytes.Buffer
		p := printer{out: &out}
		p.heading()
		p.row(r)
		lines := strings.Split(out.String(), "\n")
		if len(lines[0]) != len(lines[1]) {
			t.Errorf("the widths differ:\n%s", out.String())
		}
		if n := len(strings.Fields(lines[1])); n != 12 {
			t.Errorf("%d columns, want 12:\n%s", n, out.String())
		}
		if n := len(lines[1]); n > 80 {
			t.Errorf("a row takes %d columns", n)
		}
	}
}

func TestColourIsForTerminalsAlone(t *testing.T) {
	var plain, styled bytes.Buffer
	printer{out: &plain}.heading()
	printer{out: &styled, styled: true}.heading()
	if strings.Contains(plain.String(), "\x1b") || !strings.HasSuffix(styled.String(), "\x1b[0m\n") {
		t.Errorf("%q, %q", plain.String(), styled.String())
	}
	if terminal(&plain) {
		t.Error("a buffer was taken for a terminal")
	}
}

func TestNumbersAreWrittenForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 184223: "184,223", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is written %s", n, got)
		}
	}
	for share, want := range map[float64]string{0: "0%", 0.0004: "0.0%", 0.0121: "1.2%", 0.0996: "10%", 0.5: "50%", 1: "100%"} {
		if got := percent(share); got != want {
			t.Errorf("a share of %v is written %s", share, got)
		}
	}
	for d, want := range map[time.Duration]string{
		1500 * time.Nanosecond: "0.002", 50300 * time.Microsecond: "50.3", 3002 * time.Millisecond: "3,002",
	} {
		if got := millis(d); got != want {
			t.Errorf("%v is written %s", d, got)
		}
	}
}

func TestAPhaseHasARowForEachSecondOrAsManyWhenShortened(t *testing.T) {
	for _, c := range []struct {
		scale float64
		want  int // of all the script
	}{{0.05, 12}, {0.2, 12}, {1, 12}, {2, 24}, {1.5, 19}, {10, 120}} {
		n := 0
		for _, part := range script {
			n += rows(time.Duration(float64(part.length)*c.scale), c.scale)
		}
		if n != c.want {
			t.Errorf("scale %v has %d rows, want %d", c.scale, n, c.want)
		}
	}
}

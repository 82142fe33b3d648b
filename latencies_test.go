package holdfast_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestLatenciesCountEachPipelineByItsKind(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := at(p.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	const slow = 20 * time.Millisecond
	p.SetLatency(slow)
	for name, tt := range map[string]struct {
		of   func(l *holdfast.Latencies) *holdfast.Latency
		work func()
	}{
		"Read":  {func(l *holdfast.Latencies) *holdfast.Latency { return &l.Read }, func() { _, _ = c.Get(ctx, "absent") }},
		"Write": {func(l *holdfast.Latencies) *holdfast.Latency { return &l.Write }, func() { must(t, c.Set(ctx, "k", nil, 0)) }},
		"Passed": {func(l *holdfast.Latencies) *holdfast.Latency { return &l.Passed }, func() {
			must(t, cl.Do(ctx, built(cl.B(), strings.Fields("INCR n"))).Error())
		}},
		"Script": {func(l *holdfast.Latencies) *holdfast.Latency { return &l.Script }, func() {
			must(t, cl.Do(ctx, built(cl.B(), strings.Fields("EVAL return(1) 0"))).Error())
		}},
	} {
		before := c.Latencies()
		for range 3 {
			tt.work()
		}
		after := c.Latencies()
		d := tt.of(&after).Minus(*tt.of(&before))
		if d.Count() != 3 || d.Sum < 3*slow || d.Quantile(0) < slow {
			t.Errorf("%s: 3 calls of %v each count as %d, in all %v, the fastest up to %v", name, slow, d.Count(), d.Sum, d.Quantile(0))
		}
	}
	p.SetLatency(0)
	before := c.Latencies()
	if before.Dial.Count() == 0 || before.Probe.Count() == 0 {
		t.Errorf("%d dials and %d probes are counted", before.Dial.Count(), before.Probe.Count())
	}
	_, err := c.GetOrLoad(ctx, "loaded", time.Hour, func(context.Context) ([]byte, error) {
		time.Sleep(slow)
		return nil, nil
	})
	must(t, err)
	after := c.Latencies()
	if d := after.Load.Minus(before.Load); d.Count() != 1 || d.Sum < slow {
		t.Errorf("a load of %v counts as %d, in all %v", slow, d.Count(), d.Sum)
	}

	s.Kill()
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "away", nil, 0))
	s.Restart()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if after = c.Latencies(); after.Replay.Count() == 0 || after.Dial.Count() <= before.Dial.Count() {
		t.Errorf("after an outage %d pipelines of replays and %d dials are counted", after.Replay.Count(), after.Dial.Count()-before.Dial.Count())
	}
}

func TestALoadThatWaitedForAnotherProcessIsTimed(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	first, second := open(t, at(s.Addr())), open(t, at(s.Addr()))
	ready(t, first)
	ready(t, second)
	began, end := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = first.GetOrLoad(ctx, "k", time.Hour, func(context.Context) ([]byte, error) {
			close(began)
			<-end
			return []byte("v"), nil
		})
	}()
	<-began
	go func() {
		redistest.WaitFor(t, patience, "the wait", func() bool { return second.Stats().LeaseWaits == 1 })
		close(end)
	}()
	v, err := second.GetOrLoad(ctx, "k", time.Hour, func(context.Context) ([]byte, error) { return []byte("twice"), nil })
	if must(t, err); string(v) != "v" {
		t.Errorf("the value is %q", v)
	}
	<-done
	l := second.Latencies()
	if l.Lease.Count() != 1 || l.Lease.Sum <= 0 {
		t.Errorf("one wait counts as %d, in all %v", l.Lease.Count(), l.Lease.Sum)
	}
}

func TestTheLastStateChangesAreKept(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	for range 2 {
		s.Kill()
		waitState(t, c, holdfast.Down)
		s.Restart()
		waitState(t, c, holdfast.Up)
	}
	closed(t, c)
	got := c.StateChanges()
	want := []holdfast.State{holdfast.Up, holdfast.Down, holdfast.Up, holdfast.Down, holdfast.Up, holdfast.Closed}
	if len(got) != len(want) {
		t.Fatalf("the changes are %v", got)
	}
	for i, change := range got {
		if change.To != want[i] || i > 0 && (change.From != got[i-1].To || change.At.Before(got[i-1].At)) || (change.To == holdfast.Down) != (change.Err != nil) {
			t.Errorf("change %d is %+v", i, change)
		}
	}
}

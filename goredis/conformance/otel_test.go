package conformance

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// instruments are those of redisotel, with what they have recorded.
type instruments struct {
	spans  *tracetest.InMemoryExporter
	traces *trace.TracerProvider
	reader *metric.ManualReader
	meters *metric.MeterProvider
}

func newInstruments() *instruments {
	spans, reader := tracetest.NewInMemoryExporter(), metric.NewManualReader()
	return &instruments{
		spans, trace.NewTracerProvider(trace.WithSyncer(spans)),
		reader, metric.NewMeterProvider(metric.WithReader(reader)),
	}
}

func (i *instruments) add(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	must(t, redisotel.InstrumentTracing(rdb, redisotel.WithTracerProvider(i.traces), redisotel.WithCommandFilter(redisotel.BasicCommandFilter)))
	must(t, redisotel.InstrumentMetrics(rdb, redisotel.WithMeterProvider(i.meters)))
}

// take returns the names of the spans since the last call of take.
func (i *instruments) take() string {
	var names []string
	for _, s := range i.spans.GetSpans() {
		names = append(names, s.Name)
	}
	i.spans.Reset()
	return strings.Join(names, " ")
}

// timed returns how many commands and pipelines the metrics have timed.
func (i *instruments) timed(t *testing.T) (n uint64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	must(t, i.reader.Collect(context.Background(), &all))
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			h, ok := m.Data.(metricdata.Histogram[float64])
			if !ok || m.Name != "db.client.connections.use_time" {
				continue
			}
			for _, p := range h.DataPoints {
				n += p.Count
			}
		}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Instrumentation that was added before Attach sees every command; what was added after it, only
// those that go to Redis over go-redis.
func TestInstrumentationBeforeAndAfterAttach(t *testing.T) {
	ctx := context.Background()
	s := redistest.Start(t)
	c, err := holdfast.New(holdfast.Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}, Timeout: 10 * time.Second})
	must(t, err)
	defer c.Close()
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	defer rdb.Close()
	before, after := newInstruments(), newInstruments()
	before.add(t, rdb)
	must(t, goredis.Attach(rdb, c))
	after.add(t, rdb)
	must(t, c.WaitReady(ctx))
	must(t, rdb.Incr(ctx, "warm").Err()) // handshakes are seen, too
	before.take()
	after.take()
	for _, step := range []struct {
		run           func() error
		before, after string // spans
	}{
		{func() error { return rdb.Set(ctx, "k", 1, 0).Err() }, "set", ""},
		{func() error { return rdb.Get(ctx, "k").Err() }, "get", ""},
		{func() error { return rdb.Incr(ctx, "k").Err() }, "incr", "incr"},
		{func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "k", 1, 0); p.Incr(ctx, "k"); return nil })
			return err
		}, "redis.pipeline set incr", "redis.pipeline incr"},
	} {
		all, sent := before.timed(t), after.timed(t)
		must(t, step.run())
		if b, a := before.take(), after.take(); b != step.before || a != step.after {
			t.Errorf("spans before the cache: %q, behind it: %q; want %q, %q", b, a, step.before, step.after)
		}
		if b, a := before.timed(t)-all, after.timed(t)-sent; b != 1 || a != 1 && step.after != "" || a != 0 && step.after == "" {
			t.Errorf("%s: timed before the cache: %d, behind it: %d", step.before, b, a)
		}
	}
}

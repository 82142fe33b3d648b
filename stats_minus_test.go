package holdfast_test

import (
	"reflect"
	"testing"

	"github.com/holdfast-cache/holdfast"
)

// The difference of two snapshots has every field: counters subtract, gauges stay.
func TestMinusForgetsNoField(t *testing.T) {
	gauges := map[string]bool{}
	for row := range (holdfast.Stats{}).All() {
		gauges[row.Name] = row.Gauge
	}
	var now, before holdfast.Stats
	n, b := reflect.ValueOf(&now).Elem(), reflect.ValueOf(&before).Elem()
	for i := range n.NumField() {
		for v, to := range map[int]reflect.Value{1000 + i: n.Field(i), 10: b.Field(i)} {
			if to.CanUint() {
				to.SetUint(uint64(v))
			} else {
				to.SetInt(int64(v))
			}
		}
	}
	d := reflect.ValueOf(now.Minus(before))
	for i := range d.NumField() {
		name := d.Type().Field(i).Name
		gauge := gauges[name]
		switch field := d.Field(i); {
		case gauge && (!field.CanInt() || field.Int() != int64(1000+i)):
			t.Errorf("the gauge %s of the difference is %v, want its present value %d", name, field, 1000+i)
		case !gauge && (!field.CanUint() || field.Uint() != uint64(990+i)):
			t.Errorf("the counter %s of the difference is %v, want %d", name, field, 990+i)
		}
	}
	if now.LocalHits == 0 || before.LocalHits != 10 {
		t.Error("Minus has changed what it subtracts")
	}
	back := reflect.ValueOf(before.Minus(now))
	for i := range back.NumField() {
		if back.Field(i).CanUint() && back.Field(i).Uint() != 0 {
			t.Errorf("%s of snapshots in the wrong order is %v, want 0", back.Type().Field(i).Name, back.Field(i))
		}
	}
}

func TestMinusCountsWhatCameBetween(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	wantGet(t, c, "k", "v")
	before := c.Stats()
	wantGet(t, c, "k", "v")
	wantGet(t, c, "none", "")
	if d := c.Stats().Minus(before); d.LocalHits != 1 || d.Misses != 1 || d.LocalEntries != c.Stats().LocalEntries {
		t.Errorf("%+v", d)
	}
}

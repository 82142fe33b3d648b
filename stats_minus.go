package holdfast

import "reflect"

// Minus returns the difference between two snapshots of one Cache: each counter, which is
// each uint64 field, less its value in earlier, and each gauge, which is any other field,
// as it is in s. A counter that is less than in earlier, because the snapshots are in the
// wrong order or of two Caches, gives 0.
func (s Stats) Minus(earlier Stats) Stats {
	now, before := reflect.ValueOf(&s).Elem(), reflect.ValueOf(earlier)
	for i := range now.NumField() {
		if field := now.Field(i); field.Kind() == reflect.Uint64 {
			n := field.Uint()
			field.SetUint(n - min(n, before.Field(i).Uint()))
		}
	}
	return s
}

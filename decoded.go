package holdfast

import (
	"reflect"
	"unsafe"
)

// decoded is the header of a decoded value that is kept beside the bytes it was decoded from,
// so that a local hit of a Typed decodes nothing. It is attached to the entry, whose bytes
// never change: so it can neither outlive those bytes nor be used for others, even when the
// key is overwritten. It is the head of a decodedAs[V]; only the owner knows V.
type decoded struct {
	owner unsafe.Pointer // the Typed that made it and alone may use it; nil: no value
	size  int32          // bytes that it adds to the entry's cost
	grace grace          // the entry's
}

// decodedAs is a decoded value.
type decodedAs[V any] struct {
	decoded
	value V
}

// keptBy returns the decoded value that the owner, which must be a *Typed[V], attached to the
// entry, or nil.
func keptBy[V any](e *entry, owner unsafe.Pointer) *decodedAs[V] {
	d := e.decoded.Load()
	if d == nil || d.owner != owner {
		return nil
	}
	return (*decodedAs[V])(unsafe.Pointer(d))
}

// attach attaches d to the key's entry, if val is still the entry's very slice and there is
// room. It replaces the decoded value of an earlier owner.
func (l *local) attach(h keyHash, val []byte, d *decoded) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, e := l.lookLocked(s, h)
	if e == nil || !e.holds(val) {
		return
	}
	size := e.size() + int64(d.size)
	if old := e.decoded.Load(); old != nil {
		d.grace = old.grace
		if old.size >= d.size {
			d.size = old.size // the cost that is counted already
			e.decoded.Store(d)
			return
		}
		size -= int64(old.size)
	}
	if size > l.maxEntry || !l.room(p, size) {
		return
	}
	e.decoded.Store(d)
	// With its new cost the entry must be admitted again, so it goes through the overlay.
	if p == nil {
		p = l.pendLocked(s, h)
		p.entry = e
	}
	l.overlay.Add(size - p.size)
	p.size, p.grown = size, true
	p.dirty++
	l.wake()
}

// footprint returns the size in bytes of a type's values, and whether they also refer to
// other memory, whose size is unknown.
func footprint(t reflect.Type) (size int64, open bool) {
	size = int64(t.Size())
	if t.Kind() == reflect.Pointer {
		size += int64(t.Elem().Size())
		return size, pointers(t.Elem())
	}
	return size, pointers(t)
}

// pointers reports whether values of a type refer to other memory.
func pointers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return t.Len() > 0 && pointers(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if pointers(t.Field(i).Type) {
				return true
			}
		}
		return false
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return false
	}
	return true
}

package holdfast

import (
	"reflect"
	"unsafe"
)

// decoded is a decoded value beside the bytes that it was made of, so that a local
// hit of a Typed decodes nothing. It hangs on the entry, whose bytes never change:
// so it cannot outlive them nor stand for others, whatever becomes of the key. It is
// the head of a decodedAs[V]; only the owner knows which V that is.
type decoded struct {
	owner unsafe.Pointer // the Typed that made it, and that alone may use it; nil: nothing was
	size  int32          // what the entry costs more for it
	grace grace          // the entry's
}

// decodedAs is a decoded value.
type decodedAs[V any] struct {
	decoded
	value V
}

// keptBy returns what the owner, which must be a *Typed[V], keeps with the entry.
func keptBy[V any](e *entry, owner unsafe.Pointer) *decodedAs[V] {
	d := e.decoded.Load()
	if d == nil || d.owner != owner {
		return nil
	}
	return (*decodedAs[V])(unsafe.Pointer(d))
}

// attach keeps d with the key's entry, if value is still the very bytes that the
// entry holds, and there is room for it. What an earlier owner kept there gives way.
func (l *local) attach(h keyHash, value []byte, d *decoded) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, e := l.lookLocked(s, h)
	if e == nil || !e.holds(value) {
		return
	}
	size := e.size() + int64(d.size)
	if old := e.decoded.Load(); old != nil {
		d.grace = old.grace
		if old.size >= d.size {
			d.size = old.size // is counted already
			e.decoded.Store(d)
			return
		}
		size -= int64(old.size)
	}
	if size > l.maxEntry || !l.room(p, size) {
		return
	}
	e.decoded.Store(d)
	// With its new cost it goes to ristretto anew, and so through the overlay.
	if p == nil {
		p = l.pendLocked(s, h)
		p.entry = e
	}
	l.overlay.Add(size - p.size)
	p.size, p.grown = size, true
	p.dirty++
	l.wake()
}

// footprint is what values of a type occupy, and whether that is more than can be
// told from the type.
func footprint(t reflect.Type) (size int64, open bool) {
	size = int64(t.Size())
	if t.Kind() == reflect.Pointer {
		size += int64(t.Elem().Size())
		return size, pointers(t.Elem())
	}
	return size, pointers(t)
}

// pointers says whether values of a type lead to others.
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

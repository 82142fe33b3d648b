package local

import (
	"reflect"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Decoded is the header of a decoded value that is kept beside the bytes it was decoded from,
// so that a local hit of a Typed decodes nothing. It is attached to the entry, whose bytes
// never change: so it can neither outlive those bytes nor be used for others, even when the
// key is overwritten. It is the head of a DecodedAs[V]; only the owner knows V.
type Decoded struct {
	Owner unsafe.Pointer // the Typed that made it and alone may use it; nil: no value
	Size  int32          // bytes that it adds to the entry's cost
	grace StaleIfError   // the entry's
}

// DecodedAs is a decoded value.
type DecodedAs[V any] struct {
	Decoded
	Value V
}

// KeptBy returns the decoded value that the owner, which must be a *Typed[V], attached to the
// entry, or nil.
func KeptBy[V any](e *Entry, owner unsafe.Pointer) *DecodedAs[V] {
	d := e.decoded.Load()
	if d == nil || d.Owner != owner {
		return nil
	}
	return (*DecodedAs[V])(unsafe.Pointer(d))
}

// Attach attaches d to the key's entry, if val is still the entry's very slice and there is
// room. It replaces the decoded value of an earlier owner.
func (l *Tier) Attach(h keyhash.Hash, val []byte, d *Decoded) {
	s, k, e := l.lock(h)
	defer l.unlock(s, h)
	if e == nil || !e.Holds(val) {
		return
	}
	change := d.Size
	if old := e.decoded.Load(); old != nil {
		d.grace = old.grace
		d.Size = max(d.Size, old.Size) // the cost that is counted already
		change = d.Size - old.Size
	}
	if e.size()+int64(change) > l.maxEntry || l.bytes.Load()+int64(change) > l.maxBytes {
		return
	}
	e.decoded.Store(d)
	l.account(k, 0, int64(change))
}

// Footprint returns the size in bytes of a type's values, and whether they also refer to
// other memory, whose size is unknown.
func Footprint(t reflect.Type) (size int64, open bool) {
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

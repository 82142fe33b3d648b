// Package compress stores large values of a [holdfast.Typed] compressed. It is a module
// of its own, so that other programs do not depend on its library.
package compress

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/holdfast-cache/holdfast"
	"github.com/klauspost/compress/s2"
)

// MaxDecoded is the size in bytes of the largest value that S2 compresses or decodes: 64
// MiB.
const MaxDecoded = 64 << 20

// A value that S2 stores begins with magic, or is the output of the inner codec. No JSON,
// no text in UTF-8, no protobuf message and no MessagePack map or array begins with its
// first byte.
const (
	magic      = "\xffs2\x00"
	compressed = 's' // a block of S2 follows
	plain      = 'p' // the inner codec's output follows, which happens to begin with magic
)

var (
	errTooLarge = fmt.Errorf("compress: the value is over %d MiB", MaxDecoded>>20)
	errUnknown  = errors.New("compress: the value is of a form that this version does not know")
)

// S2 returns a Codec that compresses the output of codec if it has at least minBytes and
// at most MaxDecoded bytes, and becomes smaller. All other values are stored as codec
// encodes them, so that older values, and values that other clients write, can still be
// decoded. Other clients must support S2 to read a compressed value: it is magic, the
// byte 's' and a block of S2 (see the source). If a program returns to codec alone,
// compressed values fail to decode and count as misses until they are loaded again.
//
// A value that claims to be larger than MaxDecoded is not decoded. S2 panics if codec is
// nil.
func S2[V any](codec holdfast.Codec[V], minBytes int) holdfast.Codec[V] {
	if codec == nil {
		panic("compress: S2: the codec is nil")
	}
	return s2Codec[V]{codec, minBytes}
}

type s2Codec[V any] struct {
	holdfast.Codec[V]
	minBytes int
}

func (c s2Codec[V]) Encode(v V) ([]byte, error) {
	b, err := c.Codec.Encode(v)
	if err != nil {
		return nil, err
	}
	if len(b) >= c.minBytes && len(b) <= MaxDecoded {
		room := make([]byte, len(magic)+1+max(0, s2.MaxEncodedLen(len(b))))
		head := append(append(room[:0], magic...), compressed)
		if n := len(s2.Encode(room[len(head):], b)); len(head)+n < len(b) {
			return room[:len(head)+n], nil
		}
	}
	if bytes.HasPrefix(b, []byte(magic)) {
		return append(append([]byte(magic), plain), b...), nil
	}
	return b, nil
}

func (c s2Codec[V]) Decode(b []byte) (none V, err error) {
	rest, ours := bytes.CutPrefix(b, []byte(magic))
	switch {
	case !ours:
		return c.Codec.Decode(b)
	case len(rest) > 0 && rest[0] == plain:
		return c.Codec.Decode(rest[1:])
	case len(rest) > 0 && rest[0] == compressed:
	default:
		return none, errUnknown
	}
	// The claimed length is checked before memory is allocated for it.
	n, err := s2.DecodedLen(rest[1:])
	if err != nil {
		return none, fmt.Errorf("compress: %w", err)
	}
	if n > MaxDecoded {
		return none, errTooLarge
	}
	whole, err := s2.Decode(make([]byte, n), rest[1:])
	if err != nil {
		return none, fmt.Errorf("compress: %w", err)
	}
	return c.Codec.Decode(whole)
}

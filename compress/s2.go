// Package compress stores large values of a [holdfast.Typed] compressed. It is a
// module of its own, so that who does not need it does not carry it.
package compress

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/holdfast-cache/holdfast"
	"github.com/klauspost/compress/s2"
)

// MaxDecoded is how large a value may be that S2 decodes, or compresses.
const MaxDecoded = 64 << 20

// What S2 stores begins with magic, or is what the codec within encoded. No JSON, no
// text in UTF-8, no protobuf message and no MessagePack map or array begins with its
// first byte.
const (
	magic      = "\xffs2\x00"
	compressed = 's' // a block of S2 follows
	plain      = 'p' // what the codec encoded follows, and happens to begin with magic
)

var (
	errTooLarge = fmt.Errorf("compress: the value is over %d MiB", MaxDecoded>>20)
	errUnknown  = errors.New("compress: the value is of a form that this version does not know")
)

// S2 is a Codec that compresses what codec encodes to minBytes or more, where that
// makes it smaller. What is smaller, what does not shrink, and what is over MaxDecoded is
// stored as codec encodes it, so that values from before are still decoded, as are
// those that other clients write. Those clients must know S2 to read what is
// compressed: it is magic, the byte 's' and a block of S2 (see the source). To go back
// to codec alone is to take what is compressed for misses, until it is loaded again.
//
// What claims to be larger than MaxDecoded is not decoded. It panics where codec is nil.
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
	// The length that a block claims is looked at before room is made for it.
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

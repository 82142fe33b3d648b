// Package keyhash hashes keys for the tables of this process.
package keyhash

import (
	"hash/maphash"
	"math/bits"
)

// Hash identifies a key in the local tier: two hashes with independent random seeds. The tier
// finds an entry by the first, which is not 0. The second replaces the comparison of the key itself,
// which would cost a hit two more cache misses, and each entry the memory of its key.
// The upper 16 bits of the second hold the key's length, which is part of an entry's cost.
// Two keys of a process that agree in the length and in 112 bits are less likely than a
// failure of the memory that holds them.
type Hash struct{ Place, Check uint64 }

const (
	LengthShift = 48
	LongKey     = 1 << 15 // from here on a length is rounded up to a multiple of this
)

// Hasher hashes the keys of one Cache, with random seeds of its own.
type Hasher struct{ seeds [2]maphash.Seed }

// NewHasher returns a Hasher with new seeds.
func NewHasher() Hasher { return Hasher{[2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}} }

// Of returns the hash of a key.
func (s *Hasher) Of(key string) Hash {
	check := maphash.String(s.seeds[1], key)&(1<<LengthShift-1) | KeyLength(len(key))
	return Hash{max(1, maphash.String(s.seeds[0], key)), check}
}

// Extend returns the hash of h's key followed by another word. The order of the words counts. It
// counts as the hash of a key of no length.
func (s *Hasher) Extend(h Hash, word string) Hash {
	const golden = 0x9E3779B97F4A7C15
	h.Place = (bits.RotateLeft64(h.Place, 23) ^ maphash.String(s.seeds[0], word)) * golden
	h.Check = (bits.RotateLeft64(h.Check, 23)^maphash.String(s.seeds[1], word))*golden&(1<<LengthShift-1) | extended
	return h
}

// extended is in place of the length of a key. KeyLength returns it for none.
const extended = LongKey << LengthShift

// IsExtended reports whether Extend has made a Hash.Check.
func IsExtended(check uint64) bool { return check>>LengthShift == LongKey }

// KeyLength encodes a key's length for Hash.Check.
func KeyLength(length int) uint64 {
	n := uint64(length)
	if n >= LongKey {
		n = LongKey | (n+LongKey-1)/LongKey
	}
	return n << LengthShift
}

// LengthIn decodes the length that KeyLength encoded.
func LengthIn(check uint64) int64 {
	n := int64(check >> LengthShift)
	if n >= LongKey {
		n = (n - LongKey) * LongKey
	}
	return n
}

package main

import (
	"bytes"
	"fmt"
	"math/rand"
	"strings"
)

const (
	keyWidth  = 16
	valueSize = 100
)

func newValue() []byte { return bytes.Repeat([]byte("v"), valueSize) }

// keys are n keys within one string: the collector sees one object for any n.
type keys struct{ all string }

func newKeys(n int) keys {
	var b strings.Builder
	b.Grow(n * keyWidth)
	for i := range n {
		fmt.Fprintf(&b, "speed:%010d", i)
	}
	return keys{b.String()}
}

func (k keys) len() int { return len(k.all) / keyWidth }

func (k keys) at(i int) string { return k.all[i*keyWidth : (i+1)*keyWidth] }

// own returns a copy of a key that shares no memory with the others, as the keys of a program.
func (k keys) own(i int) string { return strings.Clone(k.at(i)) }

// batch returns the keys from i on.
func (k keys) batch(i, n int) []string {
	b := make([]string, n)
	for j := range b {
		b[j] = k.at(i + j)
	}
	return b
}

// sequence is the order in which keys are read. Its length is a power of two.
type sequence []uint32

const sequenceSize = 1 << 20

// at returns the n-th key. Callers, whose numbers are apart, begin at different places.
func (s sequence) at(n int) int { return int(s[n&(len(s)-1)]) }

// zipf has exponent 1.01. Popular keys are not neighbours.
func zipf(n int) sequence {
	z := rand.NewZipf(rand.New(rand.NewSource(1)), 1.01, 1, uint64(n-1))
	return newSequence(func() uint32 { return scatter(z.Uint64(), n) })
}

func uniform(n int) sequence {
	r := rand.New(rand.NewSource(1))
	return newSequence(func() uint32 { return uint32(r.Intn(n)) })
}

func newSequence(next func() uint32) sequence {
	s := make(sequence, sequenceSize)
	for i := range s {
		s[i] = next()
	}
	return s
}

// scatter maps the ranks below n to each other: it multiplies by a prime that is no factor
// of any n here.
func scatter(rank uint64, n int) uint32 { return uint32(rank * 2_654_435_761 % uint64(n)) }

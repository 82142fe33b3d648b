//go:build race

package holdfast_test

// raceFactor is what the race detector may cost.
const raceFactor = 4

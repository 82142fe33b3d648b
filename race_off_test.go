//go:build !race

package holdfast_test

const raceFactor = 1

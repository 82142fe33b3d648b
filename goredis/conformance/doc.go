// Package conformance has tests of goredis with instrumentation for go-redis of other
// modules.
package conformance

// Package bench measures holdfast beside what a Go program would else use: what a
// stampede on a cold key costs the source, the callers and Redis, in one process and
// in several, with Redis and without; and what a hit in the process costs. It exports
// nothing: it is its tests and benchmarks. README.md says how to run them, and what
// they have shown.
package bench

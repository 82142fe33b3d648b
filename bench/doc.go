// Package bench compares holdfast with the alternatives of a Go program. It measures how
// much a stampede on a cold key costs the source, the callers and Redis, in one process
// and in several, with Redis and without, and the cost of a hit in the process. It
// exports nothing: it consists of tests and benchmarks. README.md says how to run them,
// and lists results.
package bench

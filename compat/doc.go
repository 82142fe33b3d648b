// Package compat has no code: its tests run libraries that are written for a
// rueidis.Client on Cache.Client, on a Redis that is well, and on one that is killed,
// stopped and started again midway. It is a module of its own, so that nobody who uses
// the cache needs those libraries.
package compat

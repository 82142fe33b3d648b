// Package programs has no code. Its tests run libraries written for a client of go-redis
// on such a client with a cache attached, and on one without: on a healthy Redis the two
// must see the same, and docs/PROGRAMS.md has the table of their outages. It is a module
// of its own, so that users of the cache do not depend on those libraries.
package programs

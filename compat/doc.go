// Package compat has no code. Its tests run libraries written for a rueidis.Client on
// Cache.Client, on a healthy Redis and on one that is killed, paused and restarted
// midway. They compute the table of docs/PROGRAMS.md. It is a module of its own, so that users of the cache do not depend on those
// libraries.
package compat

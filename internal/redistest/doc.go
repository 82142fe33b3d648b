// Package redistest holds the rigs with which this module's tests run against real redis
// processes: single servers, sentinel groups and clusters, a TCP proxy that misbehaves on
// request, listeners that are not redis at all, and a dialer that counts.
//
// All rigs listen on the loopback interface only. A rig belongs to the test that started
// it and ends with that test. Rigs report failures with Fatal, so call their methods from
// the test's own goroutine unless a method's doc allows others.
//
// The package keeps one goroutine for the life of the test binary, from which all
// processes are started (see SpawnerFunction).
package redistest

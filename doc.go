// Package holdfast is a resilient, non-blocking cache client.
package holdfast

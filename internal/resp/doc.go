// Package resp validates the bytes between a Redis client library and the network. It
// lets through only input that the library survives.
//
// rueidis parses replies on a goroutine of its own. A panic there cannot be recovered by
// the caller and ends the host process. Several byte sequences that a broken, hostile or
// simply wrong server may send make it panic, or allocate as much as the server asks for.
// [Guard] wraps a net.Conn so that a [Framer] validates every byte before the library
// sees it. So a server cannot send more replies than it got requests, and memory follows
// the bytes received, not the sizes announced.
package resp

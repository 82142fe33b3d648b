// Package resp stands between a Redis client library and the network and lets
// through only what the library can survive.
//
// rueidis parses replies on a goroutine of its own. A panic there cannot be
// recovered by anybody and takes the host process down, and several byte
// sequences a broken, hostile or simply wrong server may send do make it
// panic, or allocate whatever the server asks for. [Guard] wraps a net.Conn so
// that every byte is validated by a [Framer] before the library sees it, so
// that a server can never send more replies than it was sent requests, and so that
// memory follows what was received and not what was announced.
package resp

package resp

import (
	"fmt"
	"strconv"
)

// maxQuote is the maximum number of received bytes that an error quotes.
const maxQuote = 32

// ProtocolError says that a peer sent bytes that no RESP peer sends, or that exceed the
// configured limits.
type ProtocolError struct {
	// Offset is the position in the stream of the byte that broke the rules.
	Offset int64
	// Byte is that byte.
	Byte byte
	// Reason says which rule was broken.
	Reason string
	// Hint is a guess at the mistake behind it; it may be empty.
	Hint string
	// Outbound is true if the client broke the rules, not the server.
	Outbound bool
}

// Error describes the violation in one line.
func (e *ProtocolError) Error() string {
	who := "server"
	if e.Outbound {
		who = "client"
	}
	s := fmt.Sprintf("resp: %s broke the protocol at byte %d (%s): %s", who, e.Offset, byteName(e.Byte), e.Reason)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func byteName(c byte) string {
	if printable(c) {
		return strconv.QuoteRune(rune(c))
	}
	return fmt.Sprintf("0x%02x", c)
}

func printable(c byte) bool { return c >= 0x20 && c < 0x7f }

// firstByteHint explains a stream whose first byte cannot be RESP. Usually the configured
// address is not that of a Redis server.
func firstByteHint(b []byte) string {
	switch c := b[0]; {
	case c == 'H':
		return "looks like an HTTP server"
	case c == 0x15 || c == 0x16:
		return "looks like a TLS port; use rediss://"
	case printable(c):
		return "it said " + quote(b)
	}
	return ""
}

// quote returns the first line of b in quotes, at most maxQuote bytes of it.
func quote(b []byte) string {
	n := 0
	for n < len(b) && n < maxQuote && b[n] != '\r' && b[n] != '\n' {
		n++
	}
	return strconv.Quote(string(b[:n]))
}

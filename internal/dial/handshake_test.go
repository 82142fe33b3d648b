package dial

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/resp"
)

// A server that hung up between the handshake and the greeting was told as a connection
// that nobody may dial.
func TestAConnectionThatEndsBetweenTwoCommandsIsExplained(t *testing.T) {
	ours, theirs := net.Pipe()
	conn := &wire{Conn: resp.Guard(ours, resp.DefaultLimits, nil)}
	go func() {
		_, _ = theirs.Read(make([]byte, 100))
		_, _ = io.WriteString(theirs, "-ERR server is shutting down\r\n")
		theirs.Close()
	}()
	if _, err := io.WriteString(conn, "*1\r\n$5\r\nHELLO\r\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn)
	d := &Dialer{}
	d.mu.conn, d.mu.sent = conn, []string{"HELLO"}
	err := d.Explain(fmt.Errorf("greeting: %w", ErrNoPermit))
	if want := `HELLO: the server said "ERR server is shutting down" and hung up: EOF`; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

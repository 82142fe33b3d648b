package dial

import "github.com/holdfast-cache/holdfast/internal/resp"

// Opened returns a Dialer that has dialled the connection. It is for tests of other packages.
func Opened(conn *resp.Conn) *Dialer {
	d := &Dialer{}
	d.mu.conn = &wire{Conn: conn}
	return d
}

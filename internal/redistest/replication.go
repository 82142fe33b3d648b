package redistest

import (
	"fmt"
	"strconv"
)

// replicationArgs remove the delays of replication, which make sense in a real network
// only.
var replicationArgs = []string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}

// inSync returns nil if every replica has its master's data and receives later writes.
func inSync(master *Server, replicas []*Server) error {
	for _, s := range replicas {
		out, err := s.call("ROLE")
		if err != nil {
			return err
		}
		role := out.strings()
		if len(role) < 4 || role[0] != "slave" || role[3] != "connected" {
			return fmt.Errorf("role of %s: %q", s.Addr(), role)
		}
	}
	return streams(master, len(replicas))
}

// streams returns nil if n replicas have acknowledged a command that the master sent just
// now. A replica reports "connected" up to a second before the master starts to send it
// new writes. If the master is killed within that second, the writes are lost.
func streams(master *Server, n int) error {
	if n == 0 {
		return nil
	}
	c, err := dialRESP(master.Addr(), master.currentPassword())
	if err != nil {
		return err
	}
	defer c.Close()
	// Waiting for one replica too many makes the master send a request for
	// acknowledgement down the stream, which leaves no trace in the data. The next
	// command moves the offset to wait for behind that request.
	if _, err := c.call("WAIT", strconv.Itoa(n+1), "1"); err != nil {
		return err
	}
	if _, err := c.call("PING"); err != nil {
		return err
	}
	got, err := c.call("WAIT", strconv.Itoa(n), "1000")
	if err != nil {
		return err
	}
	if got.text != strconv.Itoa(n) {
		return fmt.Errorf("%s of the %d replicas of %s acknowledge", got.text, n, master.Addr())
	}
	return nil
}

// AwaitReplicas blocks until n replicas have everything that was written to the
// server before the call, and fails the test when they do not within a
// minute. (A WAIT sent by Do says nothing: it waits for the writes of its own
// connection, of which there are none.)
func (s *Server) AwaitReplicas(n int) {
	s.tb.Helper()
	var last error
	if !poll(readyWithin, func() bool { last = streams(s, n); return last == nil }) {
		s.tb.Fatalf("redistest: waited %v for the replicas: %v\n%s", readyWithin, last, s.log())
	}
}

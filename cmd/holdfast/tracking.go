package main

import (
	"sync"
	"sync/atomic"

	"github.com/alicebob/miniredis/v2/server"
)

// tracking adds CLIENT TRACKING to the embedded server, which lacks it: it remembers
// which keys each tracking connection has read, and sends it an invalidation at the next
// write.
//
// Every argument of a command counts as a key: a wrong key only costs a read. Expiry and
// flushes cause no invalidation; the clients' copies have their own expiry, and the demo
// flushes nothing.
type tracking struct {
	server *server.Server

	// mu runs one command at a time, so that no invalidation is written into the middle
	// of another connection's reply.
	mu      sync.Mutex
	running atomic.Pointer[server.Peer] // the connection whose command is running
	read    map[*server.Peer]map[string]bool
	clients sync.Map // *server.Peer: connections that sent HELLO
}

func track(s *server.Server) {
	t := &tracking{server: s, read: map[*server.Peer]map[string]bool{}}
	s.SetPreHook(t.run)
}

// run runs a command and returns true. It returns false for a command that the server
// must run itself.
func (t *tracking) run(c *server.Peer, cmd string, args ...string) bool {
	if cmd == "HELLO" {
		t.clients.Store(c, true)
	}
	_, greeted := t.clients.Load(c)
	if !greeted || t.running.Load() == c {
		// The command comes from a script, whose connection never sent HELLO, or from the
		// Dispatch below.
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if cmd == "CLIENT" && t.control(c, args) {
		return true
	}
	t.running.Store(c)
	t.server.Dispatch(c, append([]string{cmd}, args...))
	t.running.Store(nil)
	if t.server.IsReadOnlyCommand(cmd) {
		t.remember(c, args)
	} else {
		t.invalidate(args)
	}
	return true
}

// control answers CLIENT TRACKING and CLIENT CACHING. The caller holds the lock.
func (t *tracking) control(c *server.Peer, args []string) bool {
	switch {
	case len(args) < 2:
		return false
	case args[0] == "TRACKING" && args[1] == "ON" && c.Resp3:
		if t.read[c] == nil {
			t.read[c] = map[string]bool{}
			c.OnDisconnect(func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.read, c)
				t.clients.Delete(c)
			})
		}
	case args[0] == "CACHING" && t.read[c] != nil:
	default:
		return false
	}
	c.WriteOK()
	return true
}

// remember records that the connection has read the keys. The caller holds the lock.
func (t *tracking) remember(c *server.Peer, keys []string) {
	if read := t.read[c]; read != nil {
		for _, key := range keys {
			read[key] = true
		}
	}
}

// invalidate sends an invalidation to each connection that has read one of the keys. The
// caller holds the lock.
func (t *tracking) invalidate(keys []string) {
	for c, read := range t.read {
		told := false
		for _, key := range keys {
			if !read[key] {
				continue
			}
			delete(read, key)
			told = true
			c.Block(func(w *server.Writer) {
				w.WritePushLen(2)
				w.WriteBulk("invalidate")
				w.WriteLen(1)
				w.WriteBulk(key)
			})
		}
		if told {
			c.Flush()
		}
	}
}

package main

import (
	"sync"
	"sync/atomic"

	"github.com/alicebob/miniredis/v2/server"
)

// tracking adds CLIENT TRACKING to the embedded server, which lacks it: the server
// remembers what each tracking connection has read, and tells it of the next write.
//
// Every argument of a command counts as a key: a false key costs a read. Expiry and
// flushes are not told; the clients' copies have ends of their own, and nothing in
// the demo flushes.
type tracking struct {
	server *server.Server

	// mu runs one command at a time, so that no invalidation is written into the
	// middle of another connection's reply.
	mu      sync.Mutex
	running atomic.Pointer[server.Peer] // whose command it is
	read    map[*server.Peer]map[string]bool
	clients sync.Map // *server.Peer: those that said HELLO
}

func track(s *server.Server) {
	t := &tracking{server: s, read: map[*server.Peer]map[string]bool{}}
	s.SetPreHook(t.run)
}

// run runs a command and returns true, or returns false for a command that the
// server shall run itself.
func (t *tracking) run(c *server.Peer, cmd string, args ...string) bool {
	if cmd == "HELLO" {
		t.clients.Store(c, true)
	}
	_, client := t.clients.Load(c)
	if !client || t.running.Load() == c {
		// The command of a script, whose connection never said HELLO, or what run
		// itself passed to the server.
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

// control answers CLIENT TRACKING and CLIENT CACHING. It needs the lock.
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

// remember needs the lock.
func (t *tracking) remember(c *server.Peer, keys []string) {
	if read := t.read[c]; read != nil {
		for _, key := range keys {
			read[key] = true
		}
	}
}

// invalidate tells the connections that have read one of the keys. It needs the lock.
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

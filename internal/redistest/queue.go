package redistest

import (
	"sync"
	"time"
)

// chunk is the result of one read: some bytes, or the end of the stream.
type chunk struct {
	data []byte
	due  time.Time
	end  bool
	// reset means that the stream ended with an error.
	reset bool
}

// queue holds the chunks of one direction between their arrival and delivery. It has no
// bound: a proxy that hangs accepts all bytes.
type queue struct {
	mu     sync.Mutex
	chunks []chunk
	more   chan struct{}
}

func newQueue() *queue { return &queue{more: make(chan struct{}, 1)} }

func (q *queue) push(c chunk) {
	q.mu.Lock()
	q.chunks = append(q.chunks, c)
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// pop blocks until there is a chunk; false means that stop was closed. Only one
// goroutine may pop.
func (q *queue) pop(stop <-chan struct{}) (chunk, bool) {
	for {
		q.mu.Lock()
		if len(q.chunks) > 0 {
			c := q.chunks[0]
			q.chunks = q.chunks[1:]
			q.mu.Unlock()
			return c, true
		}
		q.mu.Unlock()
		select {
		case <-q.more:
		case <-stop:
			return chunk{}, false
		}
	}
}

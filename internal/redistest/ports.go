package redistest

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports come from below the range that the kernel uses for outgoing connections. So a
// restarted server finds its port free, and a dial to a port without a listener cannot
// connect to itself. The cluster bus port is busOffset higher and below that range as
// well.
const (
	firstPort = 10000
	lastPort  = 22000
	busOffset = 10000
)

var ports struct {
	sync.Mutex
	given map[int]bool
}

// freePort returns a loopback port that is free together with its cluster bus
// port and was not handed out before in this process.
func freePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = make(map[int]bool)
	}
	for range 1000 {
		p := firstPort + rand.IntN(lastPort-firstPort)
		if ports.given[p] || ports.given[p+busOffset] || !canListen(p) || !canListen(p+busOffset) {
			continue
		}
		ports.given[p], ports.given[p+busOffset] = true, true
		return p, nil
	}
	return 0, errors.New("redistest: no free loopback port found")
}

func canListen(port int) bool {
	ln, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// FreeAddr returns a loopback address without a listener: a dial to it is refused. This
// process does not hand the address out again, but another process may take it. It does
// not block.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	p, err := freePort()
	if err != nil {
		tb.Fatal(err)
	}
	return loopback(p)
}

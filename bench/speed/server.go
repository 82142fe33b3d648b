package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// server is a redis-server without persistence on the loopback interface.
type server struct {
	addr   string
	cmd    *exec.Cmd
	exited chan struct{}
	client rueidis.Client
}

func serverProgram() string {
	if p := os.Getenv("HOLDFAST_REDIS_SERVER"); p != "" {
		return p
	}
	return "redis-server"
}

// startServer returns when the server answers. The server is killed when the context ends.
func startServer(ctx context.Context) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	s := &server{addr: addr, exited: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, serverProgram(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	deadline := time.Now().Add(time.Minute)
	for {
		s.client, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true})
		if err == nil {
			return s, nil
		}
		select {
		case <-s.exited:
			return nil, errors.New("redis-server has exited")
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("redis-server does not answer: %w", err)
		}
	}
}

func (s *server) stop() {
	if s.client != nil {
		s.client.Close()
	}
	s.cmd.Process.Kill() // also of one that was stopped already
	<-s.exited
}

// prepare empties the server and gives it the first n keys.
func (s *server) prepare(n int) error {
	ctx := context.Background()
	if err := s.client.Do(ctx, s.client.B().Flushall().Sync().Build()).Error(); err != nil {
		return err
	}
	all, value := newKeys(n), rueidis.BinaryString(newValue())
	const batch = 1000
	for i := 0; i < n; i += batch {
		var sets []rueidis.Completed
		for _, key := range all.batch(i, min(batch, n-i)) {
			sets = append(sets, s.client.B().Set().Key(key).Value(value).Px(keptFor).Build())
		}
		for _, r := range s.client.DoMulti(ctx, sets...) {
			if err := r.Error(); err != nil {
				return err
			}
		}
	}
	return nil
}

// freeAddr returns a loopback address without a listener.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// serverVersion returns the version that the program prints: "7.0.15".
func serverVersion() string {
	out, err := exec.Command(serverProgram(), "--version").Output()
	if err != nil {
		return "none"
	}
	for _, field := range strings.Fields(string(out)) {
		if v, ok := strings.CutPrefix(field, "v="); ok {
			return v
		}
	}
	return strings.TrimSpace(string(out))
}

// Package worker is one process of a fleet. It receives orders, requests the ordered key
// at the ordered moment from many goroutines at once, and reports the results. It needs
// only the standard library, so that a peer with other versions of the dependencies can
// have a program of its own.
package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Peer is a cache with loaders, set up as a program would.
type Peer interface {
	// Get returns the value of key if it is cached, and otherwise the result of load,
	// which is then stored.
	Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error)
	Close()
}

// Env is the environment variable that holds a Setup, as JSON.
const Env = "HOLDFAST_BENCH_WORKER"

// Setup configures a process.
type Setup struct {
	Peer   string        // its name
	Addr   string        // of Redis
	Budget time.Duration // timeout of one exchange with Redis
}

// Order is one key to be requested.
type Order struct {
	Key      string
	At       time.Time     // when to request it
	Callers  int           // number of concurrent callers
	Takes    time.Duration // how long the source takes to answer
	Patience time.Duration // timeout of a caller
}

// Report is the result of an Order.
type Report struct {
	Loads    int             // calls of the source
	Answered int             // callers that got the value
	Failure  string          // the error of one of the others
	Took     []time.Duration // how long each caller waited, with any result
}

// Value is the source's value of a key.
func Value(key string) []byte {
	return append(bytes.Repeat([]byte("."), 96), key...)
}

// Main is the program of a process. It opens the peer that the environment names and
// carries out orders until its input ends. An empty report says that it is ready.
func Main(open func(Setup) (Peer, error)) {
	if err := serve(os.Stdin, os.Stdout, open); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(in io.Reader, out io.Writer, open func(Setup) (Peer, error)) error {
	var s Setup
	if err := json.Unmarshal([]byte(os.Getenv(Env)), &s); err != nil {
		return fmt.Errorf("%s: %w", Env, err)
	}
	p, err := open(s)
	if err != nil {
		return err
	}
	defer p.Close()
	orders, reports := json.NewDecoder(in), json.NewEncoder(out)
	if err := reports.Encode(Report{}); err != nil {
		return err
	}
	for {
		var o Order
		switch err := orders.Decode(&o); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := reports.Encode(carryOut(p, o)); err != nil {
			return err
		}
	}
}

// carryOut starts all callers at once and collects their results.
func carryOut(p Peer, o Order) Report {
	var loads atomic.Int64
	load := func(ctx context.Context) ([]byte, error) {
		loads.Add(1)
		t := time.NewTimer(o.Takes)
		defer t.Stop()
		select {
		case <-t.C:
			return Value(o.Key), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	want, now := Value(o.Key), make(chan struct{})
	r := Report{Took: make([]time.Duration, o.Callers)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range o.Callers {
		wg.Go(func() {
			<-now
			ctx, cancel := context.WithTimeout(context.Background(), o.Patience)
			defer cancel()
			start := time.Now()
			got, err := p.Get(ctx, o.Key, load)
			r.Took[i] = time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				r.Failure = err.Error()
			case !bytes.Equal(got, want):
				r.Failure = fmt.Sprintf("got %q", got)
			default:
				r.Answered++
			}
		})
	}
	<-time.After(time.Until(o.At))
	close(now)
	wg.Wait()
	r.Loads = int(loads.Load())
	return r
}

package holdfast_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// While Redis is away, too, a loader that does not return holds up neither its only caller,
// whose context may have no end, nor Close.
func TestALoaderInAnOutageHoldsUpNoCaller(t *testing.T) {
	ctx := begin(t)
	o := at(unused())
	o.Load.HardTimeout = patience
	c, err := holdfast.New(o)
	must(t, err)
	let := make(chan struct{})
	defer close(let)
	stubborn := func(context.Context) ([]byte, error) { <-let; return []byte("late"), nil }
	rich := func(context.Context, *holdfast.Entry) (l holdfast.Loaded, err error) { <-let; return l, nil }

	few, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := c.GetOrLoad(few, "deadline", 0, stubborn); err != context.DeadlineExceeded {
		t.Errorf("its deadline: %v", err)
	}
	_, err = c.GetOrLoadWith(ctx, "hard", 0, holdfast.LoadOptions{HardTimeout: 10 * time.Millisecond}, rich)
	if err == nil || !strings.Contains(err.Error(), "HardTimeout") {
		t.Errorf("the hard timeout: %v", err)
	}
	_, err = c.GetOrLoad(ctx, "goexit", 0, func(context.Context) ([]byte, error) { runtime.Goexit(); return nil, nil })
	if err == nil || !strings.Contains(err.Error(), "Goexit") {
		t.Errorf("goexit: %v", err)
	}
	began, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := c.GetOrLoad(ctx, "close", 0, func(ctx context.Context) ([]byte, error) { close(began); return stubborn(ctx) })
		done <- err
	}()
	<-began
	if err := c.Close(); err == nil || !strings.Contains(err.Error(), "loader") {
		t.Errorf("close: %v", err)
	}
	if err := <-done; err != holdfast.ErrClosed {
		t.Errorf("who waited got %v", err)
	}
}

// The context of a loader is no caller's: a context that the loader makes of it goes on when
// the first caller leaves, and ends with the load.
func TestALoadersContextIsNoCallers(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		type key struct{}
		first, leave := context.WithCancelCause(context.WithValue(ctx, key{}, "trace"))
		began, left := make(chan struct{}), make(chan struct{})
		ended := make(chan error, 1)
		go c.GetOrLoad(first, "k", 0, func(ctx context.Context) ([]byte, error) {
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			context.AfterFunc(ctx, func() { ended <- context.Cause(own) })
			close(began)
			<-left
			time.Sleep(time.Second)
			if own.Err() != nil || context.Cause(own) != nil || own.Value(key{}) != "trace" {
				t.Errorf("when the first caller has left: %v, %v, %v", own.Err(), context.Cause(own), own.Value(key{}))
			}
			<-own.Done()
			return nil, own.Err()
		})
		<-began
		few, leaveToo := context.WithTimeout(ctx, time.Minute/2)
		defer leaveToo()
		done := make(chan error, 1)
		go func() { done <- second(c.GetOrLoad(few, "k", 0, newSource("v").load)) }()
		time.Sleep(time.Second)
		leave(errors.New("gone"))
		close(left)
		if err := <-done; err != context.DeadlineExceeded {
			t.Errorf("the second caller got %v", err)
		}
		if err := <-ended; err != context.Canceled {
			t.Errorf("the loader's own context ended with %v", err)
		}
	})
}

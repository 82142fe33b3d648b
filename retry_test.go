package holdfast_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// lock returns a call for Retry that takes a lock, and the number of its runs.
func lock(c *holdfast.Cache) (take func(context.Context) error, runs *int) {
	runs = new(int)
	return func(ctx context.Context) error {
		*runs++
		took, err := c.Add(ctx, "lock", []byte("token"), time.Hour)
		if err == nil && !took {
			err = errors.New("the lock is another's")
		}
		return err
	}, runs
}

func TestALockIsTakenAfterAHangByRetry(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	take, runs := lock(c)
	s.Pause()
	resume := time.AfterFunc(2*time.Second, s.Resume)
	defer resume.Stop()
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.Retry(bounded, take); err != nil {
		t.Fatalf("%v after %d runs", err, *runs)
	}
	if got := s.MustDo("GET", "lock"); got != "token" || *runs < 2 {
		t.Errorf("the lock is %q after %d runs", got, *runs)
	}
}

func TestRetryRunsAgainAsSoonAsRedisIsBack(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.set(true, false, true)
		waitState(t, c, holdfast.Down) // an Add that is cut off keeps its key in the journal for a while
		v.resetTimes()
		began := time.Now()
		time.AfterFunc(10*time.Minute, func() { v.set(false, false, false) })
		take, runs := lock(c)
		if err := c.Retry(ctx, take); err != nil {
			t.Fatal(err)
		}
		if late := time.Since(c.Health().Since); late != 0 {
			t.Errorf("it ran %v after redis was back", late)
		}
		must(t, redistest.RateOKUntil(v.times(), began, time.Now()))
		if *runs < 600 || *runs > 710 {
			t.Errorf("%d runs in ten minutes, want about one a second", *runs)
		}
	})
}

func TestRetryEndsWithItsContextAndWithTheCache(t *testing.T) {
	const wait = time.Minute
	for name, tt := range map[string]struct {
		end  func(c *holdfast.Cache, cancel func())
		want []error
	}{
		"context": {func(_ *holdfast.Cache, cancel func()) { cancel() }, []error{context.Canceled, holdfast.ErrUnavailable}},
		"Close":   {func(c *holdfast.Cache, _ func()) { _ = c.Close() }, []error{holdfast.ErrClosed}},
		"Shutdown": {func(c *holdfast.Cache, _ func()) {
			bounded, cancel := context.WithTimeout(context.Background(), wait)
			defer cancel()
			_ = c.Shutdown(bounded)
		}, []error{holdfast.ErrClosed}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
				v.set(true, false, true)
				waitState(t, c, holdfast.Down)
				must(t, c.Set(ctx, "journaled", []byte("v"), 0)) // Shutdown waits for it
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				began := time.Now()
				time.AfterFunc(wait, func() { tt.end(c, cancel) })
				err := c.Retry(ctx, func(context.Context) error { return holdfast.ErrUnavailable })
				for _, want := range tt.want {
					if !errors.Is(err, want) {
						t.Errorf("%v; want %v", err, want)
					}
				}
				if took := time.Since(began); took != wait {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestRetryRunsOnceWhatItCannotHelp(t *testing.T) {
	ctx := begin(t)
	other := errors.New("other")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	c, local, past := open(t, at("127.0.0.1:1")), open(t, holdfast.Options{}), open(t, holdfast.Options{})
	must(t, past.Close())
	for name, tt := range map[string]struct {
		ctx  context.Context
		c    *holdfast.Cache
		err  error // of the call
		want error
		runs int
	}{
		"success":          {ctx, c, nil, nil, 1},
		"another error":    {ctx, c, other, other, 1},
		"a deadline":       {ctx, c, context.DeadlineExceeded, context.DeadlineExceeded, 1},
		"no Redis":         {ctx, local, holdfast.ErrUnavailable, holdfast.ErrUnavailable, 1},
		"an ended context": {ended, c, nil, context.Canceled, 0},
		"a closed cache":   {ctx, past, nil, holdfast.ErrClosed, 0},
	} {
		runs := 0
		err := tt.c.Retry(tt.ctx, func(context.Context) error { runs++; return tt.err })
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || runs != tt.runs {
			t.Errorf("%s: %v after %d runs", name, err, runs)
		}
	}
}

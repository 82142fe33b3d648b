package conformance

import (
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

func TestWatermillHandlesAMessageOnceAndDropsNoneInAnOutage(t *testing.T) {
	redis := redistest.Start(t)
	var handled counted
	start := func(c *holdfast.Cache) message.HandlerFunc {
		d := &middleware.Deduplicator{Repository: views.NewWatermill(c, "dup:", time.Hour)}
		return d.Middleware(func(*message.Message) ([]*message.Message, error) {
			handled.ask()
			return nil, nil
		})
	}
	c, otherCache := open(t, redis), open(t, redis)
	here, there := start(c), start(otherCache)
	deliver := func(to message.HandlerFunc, text string) error {
		_, err := to(message.NewMessage("", []byte(text)))
		return err
	}
	must(t, deliver(here, "one"))
	must(t, deliver(here, "one"))
	must(t, deliver(there, "one"))
	equal(t, "messages handled", handled.n.Load(), 1)

	kill(t, redis, c)
	if err := deliver(here, "two"); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("in the outage: %v; want ErrUnavailable", err)
	}
	equal(t, "messages handled in the outage", handled.n.Load(), 1)
	restart(t, redis, c)
	must(t, deliver(here, "two")) // delivered again
	equal(t, "messages handled afterwards", handled.n.Load(), 2)
}

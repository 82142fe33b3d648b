package compat

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/redis/rueidis"
)

// shard is a RedisShard on a client of the venue. A RedisShard takes addresses and makes its
// client itself; it has no field, hook or dial function for another one. So that its broker
// can be tested on a Cache, the client is replaced. That is no way for a program.
func (v venue) shard(node *centrifuge.Node) (*centrifuge.RedisShard, error) {
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: v.redis.Addr()})
	if err != nil || v.cache == nil {
		return shard, err
	}
	field := reflect.ValueOf(shard).Elem().FieldByName("client")
	client := reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Interface().(*rueidis.Client)
	(*client).Close()
	*client = v.cache.Client()
	return shard, nil
}

// received are the publications of each channel that a broker has received.
type received struct {
	sync.Map // of chan string by channel
}

func (r *received) of(channel string) chan string {
	ch, _ := r.LoadOrStore(channel, make(chan string, 1000))
	return ch.(chan string)
}

// next waits for a publication.
func (r *received) next(channel string) (string, error) {
	select {
	case text := <-r.of(channel):
		return text, nil
	case <-time.After(patience):
		return "", errors.New("nothing was received")
	}
}

func (r *received) HandlePublication(ch string, pub *centrifuge.Publication, sp centrifuge.StreamPosition, _ bool, _ *centrifuge.Publication) error {
	r.of(ch) <- fmt.Sprintf("%s at %d", pub.Data, sp.Offset)
	return nil
}

func (r *received) HandleJoin(ch string, info *centrifuge.ClientInfo) error {
	r.of(ch) <- info.ClientID + " joined"
	return nil
}

func (r *received) HandleLeave(ch string, info *centrifuge.ClientInfo) error {
	r.of(ch) <- info.ClientID + " left"
	return nil
}

// broker is a running RedisBroker, with the publications that it has received.
func (v venue) broker() (*centrifuge.RedisBroker, *received, func(), error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, nil, nil, err
	}
	shard, err := v.shard(node)
	if err != nil {
		return nil, nil, nil, err
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{Shards: []*centrifuge.RedisShard{shard}})
	if err != nil {
		return nil, nil, nil, err
	}
	end := func() {
		_ = broker.Close(context.Background())
		shard.Close()
	}
	got := &received{}
	return broker, got, end, broker.RegisterBrokerEventHandler(got)
}

var history = centrifuge.PublishOptions{HistorySize: 3, HistoryTTL: time.Minute}

func brokerProgram(_ context.Context, s *story) {
	broker, got, end, err := s.broker()
	s.note("broker", nil, err)
	defer end()
	receive := func() {
		text, err := got.next("news")
		s.note("received", text, err)
	}
	publish := func(what, data string, o centrifuge.PublishOptions) {
		at, suppressed, err := broker.Publish("news", []byte(data), o)
		s.note(what, fmt.Sprint(at.Offset, suppressed), err)
	}
	s.note("remove the history", nil, broker.RemoveHistory("news"))
	s.note("subscribe", nil, broker.Subscribe("news"))
	publish("publish", "one", centrifuge.PublishOptions{})
	receive()
	info := &centrifuge.ClientInfo{ClientID: "c1", UserID: "u1", ConnInfo: []byte("{}")}
	s.note("join", nil, broker.PublishJoin("news", info))
	receive()
	s.note("leave", nil, broker.PublishLeave("news", info))
	receive()
	once := centrifuge.PublishOptions{IdempotencyKey: fmt.Sprint(len(s.lines)), IdempotentResultTTL: time.Minute}
	publish("publish once", "two", once)
	receive()
	publish("publish once, again", "two", once)
	s.note("unsubscribe", nil, broker.Unsubscribe("news"))
	publish("publish to nobody", "three", centrifuge.PublishOptions{})
	s.note("subscribe", nil, broker.Subscribe("news"))
	publish("publish", "four", centrifuge.PublishOptions{})
	receive()
	s.note("unsubscribe", nil, broker.Unsubscribe("news"))
	historyProgram(s, broker)
	s.note("of a hundred goroutines", hundred(broker, got), nil)
	s.note("remove the history", nil, broker.RemoveHistory("h"))
}

func historyProgram(s *story, broker *centrifuge.RedisBroker) {
	var epochs []string
	s.note("remove the history", nil, broker.RemoveHistory("h"))
	for i := range 5 {
		at, _, err := broker.Publish("h", fmt.Append(nil, i), history)
		epochs = append(epochs, at.Epoch)
		s.note("publish with a history", i, err)
	}
	s.note("epochs", len(slices.Compact(epochs)), nil)
	read := func(what string, f centrifuge.HistoryFilter) {
		pubs, _, err := broker.History("h", centrifuge.HistoryOptions{Filter: f})
		var texts []string
		for _, p := range pubs {
			texts = append(texts, string(p.Data))
		}
		s.note(what, texts, err)
	}
	read("history", centrifuge.HistoryFilter{Limit: centrifuge.NoLimit})
	read("history, last", centrifuge.HistoryFilter{Limit: 1, Reverse: true})
	read("history, none", centrifuge.HistoryFilter{})
	s.note("remove the history", nil, broker.RemoveHistory("h"))
	read("history of the removed", centrifuge.HistoryFilter{Limit: centrifuge.NoLimit})
}

// hundred has a hundred goroutines subscribe to channels of their own, publish, receive and
// unsubscribe. It returns how many of their publications were received, and the errors.
func hundred(broker *centrifuge.RedisBroker, got *received) string {
	const goroutines, rounds = 100, 10
	var arrived atomic.Int32
	failed := make(chan error, goroutines)
	var all sync.WaitGroup
	for i := range goroutines {
		all.Go(func() {
			for round := range rounds {
				if err := deliver(broker, got, fmt.Sprint("own:", i), fmt.Sprint(round)); err != nil {
					failed <- err
					return
				}
				arrived.Add(1)
			}
		})
	}
	all.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	return fmt.Sprint(arrived.Load(), errors.Join(errs...))
}

// deliver sends a publication to itself.
func deliver(broker *centrifuge.RedisBroker, got *received, channel, text string) error {
	if err := broker.Subscribe(channel); err != nil {
		return err
	}
	if _, _, err := broker.Publish(channel, []byte(text), centrifuge.PublishOptions{}); err != nil {
		return err
	}
	switch data, err := got.next(channel); {
	case err != nil:
		return err
	case data != text+" at 0":
		return fmt.Errorf("received %q instead of %q", data, text)
	}
	return broker.Unsubscribe(channel)
}

func (v venue) redisPresence() (centrifuge.PresenceManager, func(), error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, nil, err
	}
	shard, err := v.shard(node)
	if err != nil {
		return nil, nil, err
	}
	m, err := centrifuge.NewRedisPresenceManager(node, centrifuge.RedisPresenceManagerConfig{
		Shards: []*centrifuge.RedisShard{shard}, EnableUserMapping: func(string) bool { return true },
	})
	return m, shard.Close, err
}

func redisPresenceProgram(_ context.Context, s *story) {
	m, end, err := s.redisPresence()
	s.note("presence manager", nil, err)
	defer end()
	presenceCalls(s, m)
}

func presenceProgram(_ context.Context, s *story) {
	client, err := s.build(rueidis.ClientOption{})
	s.note("client", nil, err)
	defer client.Close()
	presenceCalls(s, NewPresence(client, time.Minute))
}

func presenceCalls(s *story, m centrifuge.PresenceManager) {
	note := func(what string) {
		clients, err := m.Presence("room")
		var texts []string
		for id, c := range clients {
			texts = append(texts, fmt.Sprintf("%s=%s %s %s %s", id, c.ClientID, c.UserID, c.ConnInfo, c.ChanInfo))
		}
		slices.Sort(texts)
		s.note(what, strings.Join(texts, ", "), err)
		stats, err := m.PresenceStats("room")
		s.note(what+", in numbers", stats, err)
	}
	add := func(client, user string) {
		s.note("add", client, m.AddPresence("room", client, &centrifuge.ClientInfo{
			ClientID: client, UserID: user, ConnInfo: []byte(`{"n":1}`),
		}))
	}
	note("nobody")
	add("c1", "u1")
	add("c2", "u1")
	add("c3", "u2")
	add("c1", "u1")
	note("three")
	s.note("remove", nil, m.RemovePresence("room", "c2", "u1"))
	s.note("remove of nobody", nil, m.RemovePresence("room", "c9", "u9"))
	note("two")

	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			id := fmt.Sprint("many", i)
			if m.AddPresence("room", id, &centrifuge.ClientInfo{ClientID: id, UserID: id}) == nil && i%2 == 0 {
				_ = m.RemovePresence("room", id, id)
			}
		})
	}
	all.Wait()
	note("after a hundred goroutines")
	for i := range 100 {
		_ = m.RemovePresence("room", fmt.Sprint("many", i), fmt.Sprint("many", i))
	}
	for client, user := range map[string]string{"c1": "u1", "c3": "u2"} {
		s.note("remove", client != "", m.RemovePresence("room", client, user))
	}
	note("nobody again")
}

// Clients of which nothing was heard for the time to live are not present any more.
func TestAClientThatIsNotAddedAgainIsNotPresentForLong(t *testing.T) {
	v := cacheVenue(t, budget)
	m := NewPresence(v.cache.Client(), 50*time.Millisecond)
	must(t, m.AddPresence("room", "c1", &centrifuge.ClientInfo{ClientID: "c1"}))
	ended := time.After(patience)
	for {
		clients, err := m.Presence("room")
		must(t, err)
		if len(clients) == 0 {
			return
		}
		select {
		case <-ended:
			t.Fatal("the client is present for ever")
		case <-time.After(time.Millisecond):
		}
	}
}

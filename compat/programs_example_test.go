package compat

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/holdfast-cache/holdfast"
	"github.com/redis/rueidis/rueidisaside"
	"github.com/redis/rueidis/rueidiscompat"
	"github.com/redis/rueidis/rueidislock"
)

// The functions below are the code of docs/PROGRAMS.md.

func programAdapter(cache *holdfast.Cache) rueidiscompat.Cmdable {
	rdb := rueidiscompat.NewAdapter(cache.Client())
	return rdb
}

func programLocker(cache *holdfast.Cache) (rueidislock.Locker, error) {
	locker, err := rueidislock.NewLocker(rueidislock.LockerOption{ClientBuilder: cache.NewClient})
	return locker, err
}

func programAside(cache *holdfast.Cache) (rueidisaside.CacheAsideClient, error) {
	client, err := rueidisaside.NewClient(rueidisaside.ClientOption{ClientBuilder: cache.NewClient})
	return client, err
}

func programCentrifuge(cache *holdfast.Cache, addr string) (*centrifuge.Node, error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, err
	}
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: addr})
	if err != nil {
		return nil, err // also where Redis is not there
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Shards: []*centrifuge.RedisShard{shard}, // on a client of its own
	})
	if err != nil {
		return nil, err
	}
	node.SetBroker(broker)
	node.SetPresenceManager(NewPresence(cache.Client(), time.Minute))
	return node, node.Run()
}

// The documented programs work.
func TestTheProgramsOfTheDocumentsWork(t *testing.T) {
	v, ctx := cacheVenue(t, budget), context.Background()
	must(t, programAdapter(v.cache).Set(ctx, "k", "v", 0).Err())

	locker, err := programLocker(v.cache)
	must(t, err)
	defer locker.Close()
	_, release, err := locker.WithContext(ctx, "x")
	must(t, err)
	release()

	aside, err := programAside(v.cache)
	must(t, err)
	defer aside.Close()
	got, err := aside.Get(ctx, time.Hour, "a", func(context.Context, string) (string, error) { return "loaded", nil })
	must(t, err)
	equal(t, "the loaded value", got, "loaded")

	node, err := programCentrifuge(v.cache, v.redis.Addr())
	must(t, err)
	defer func() { must(t, node.Shutdown(ctx)) }()
	_, err = node.Publish("news", []byte(`{}`))
	must(t, err)
	presence, err := node.Presence("news")
	must(t, err)
	equal(t, "clients in the channel", len(presence.Presence), 0)
}

var fence = regexp.MustCompile("(?s)```go (program[A-Z]\\w*)\n(.*?)```")

// The code of docs/PROGRAMS.md is that of the functions above; a fence names its function.
func TestTheCodeOfTheDocumentIsThatOfTheTests(t *testing.T) {
	document, err := os.ReadFile("../docs/PROGRAMS.md")
	must(t, err)
	source, err := os.ReadFile("programs_example_test.go")
	must(t, err)
	fences := fence.FindAllStringSubmatch(string(document), -1)
	equal(t, "pieces of code", len(fences), 4)
	for _, f := range fences {
		_, body, _ := strings.Cut(string(source), fmt.Sprintf("\nfunc %s(", f[1]))
		body, _, _ = strings.Cut(body, "\n}\n")
		code := "\t" + strings.ReplaceAll(strings.TrimRight(f[2], "\n"), "\n", "\n\t")
		if !strings.Contains(body, code) {
			t.Errorf("%s differs from the code in docs/PROGRAMS.md:\n%s", f[1], code)
		}
	}
}

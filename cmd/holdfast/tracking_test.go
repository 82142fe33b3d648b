package main

import (
	"context"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// The embedded server has no CLIENT TRACKING of its own. Without it, a client-side
// cache could not be shown, and holdfast would ask again every few seconds.
func TestTheEmbeddedServerTellsWhoReadAKeyThatItChanged(t *testing.T) {
	t.Parallel()
	server := embedForTest(t)
	told := make(chan string, 64)
	option := server.endpoint().option
	option.ForceSingleClient = true
	option.OnInvalidations = func(messages []rueidis.RedisMessage) {
		for i := range messages {
			key, _ := messages[i].ToString()
			told <- key
		}
	}
	reader, err := rueidis.NewClient(option)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writer, err := server.endpoint().direct()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	read := func() rueidis.RedisResult {
		return reader.DoCache(ctx, reader.B().Get().Key("k").Cache(), time.Minute)
	}
	write := map[string]rueidis.Completed{
		"set":    writer.B().Set().Key("k").Value("v").Build(),
		"script": writer.B().Eval().Script("return redis.call('SET', KEYS[1], 'w')").Numkeys(1).Key("k").Build(),
		"delete": writer.B().Del().Key("k").Build(),
	}
	for _, name := range []string{"set", "script", "delete"} {
		read()
		if r := read(); !r.IsCacheHit() {
			t.Fatalf("before the %s the second read was no hit: %v", name, r.Error())
		}
		if err := writer.Do(ctx, write[name]).Error(); err != nil {
			t.Fatal(err)
		}
		select {
		case key := <-told:
			if key != "k" {
				t.Errorf("the %s was told as a change of %q", name, key)
			}
		case <-ctx.Done():
			t.Fatalf("the %s was not told", name)
		}
	}
	if err := read().Error(); !rueidis.IsRedisNil(err) {
		t.Errorf("the deleted key is read as %v", err)
	}
}

package holdfast_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// aclLine is the line of the documents that makes the user.
func aclLine(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("docs/LIMITS.md")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "ACL" && words[1] == "SETUSER" {
			return words
		}
	}
	t.Fatal("docs/LIMITS.md has no line that begins with ACL SETUSER")
	return nil
}

// The documents said which rights a user needs, and nobody had tried.
func TestTheRightsThatTheDocumentsNameAreEnough(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name string
		mode holdfast.TrackingMode
	}{{"tracking reads", holdfast.TrackReads}, {"tracking prefixes", holdfast.TrackPrefixes}} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			line := aclLine(t)
			if major, minor := redistest.Version(t); major < 7 || major == 7 && minor < 2 {
				line = strings.Fields(strings.ReplaceAll(strings.Join(line, " "), "+client|setinfo", ""))
			}
			s.MustDo(line...)
			p := redistest.NewProxy(t, s.Addr())
			o := at(p.Addr())
			o.Redis.Username, o.Redis.Password = "app", "secret"
			o.Timeout = time.Second
			o.Tracking.Mode = tt.mode
			if tt.mode == holdfast.TrackPrefixes {
				o.Tracking.Prefixes = []string{"app:"}
			}
			c := open(t, o)
			ready(t, c)
			if h := c.Health(); !h.Tracking || !h.Writable {
				t.Errorf("health %+v", h)
			}
			everyCommand(t, ctx, c)

			// What is set and deleted in an outage, and what others do meanwhile.
			p.SetMode(redistest.Cut)
			redistest.WaitFor(t, patience, "the loss", func() bool { return c.Health().State == holdfast.Down })
			for _, key := range []string{"set", "absent", "theirs", "list"} {
				must(t, c.Set(ctx, "app:"+key, []byte("ours"), time.Hour))
			}
			must(t, c.Set(ctx, "app:forever", []byte("ours"), 0))
			must(t, c.Set(ctx, "app:brief", []byte("ours"), time.Millisecond))
			must(t, c.Delete(ctx, "app:gone"))
			s.MustDo("SET", "app:theirs", "theirs")
			s.MustDo("RPUSH", "app:list", "e")
			s.MustDo("SCRIPT", "FLUSH")
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			redistest.WaitFor(t, patience, "the second checks", func() bool { return c.Health().JournalKeys == 0 })
			for key, want := range map[string]string{"set": "ours", "absent": "ours", "forever": "ours", "gone": "(nil)", "brief": "(nil)"} {
				if v := s.MustDo("GET", "app:"+key); v != want {
					t.Errorf("%s is %q in redis, want %q", key, v, want)
				}
			}
			everyCommand(t, ctx, c)
			if log := s.MustDo("ACL", "LOG"); log != "" {
				t.Errorf("redis refused:\n%s", log)
			}
			used := s.MustDo("INFO", "commandstats")
			for _, word := range line {
				if right, ok := strings.CutPrefix(word, "+"); ok && !strings.Contains(used, "cmdstat_"+right+":") {
					t.Errorf("nothing needs %s", word)
				}
			}
			if h := c.Health(); h.State != holdfast.Up || !h.Tracking {
				t.Errorf("health %+v", h)
			}
		})
	}
}

// everyCommand uses all that sends a command of its own to Redis.
func everyCommand(t *testing.T, ctx context.Context, c *holdfast.Cache) {
	t.Helper()
	load := func(context.Context) ([]byte, error) { return []byte("loaded"), nil }
	must(t, c.Set(ctx, "app:set", []byte("v"), time.Hour))
	must(t, c.Set(ctx, "app:forever", []byte("v"), 0))
	must(t, c.Set(ctx, "app:gone", []byte("v"), time.Hour))
	wantGet(t, c, "app:set", "v")
	_, err := c.Lookup(ctx, "app:set")
	must(t, err)
	must(t, c.SetMany(ctx, map[string][]byte{"app:a": []byte("1"), "app:b": []byte("2")}, time.Hour))
	_, err = c.GetMany(ctx, "app:a", "app:b", "app:set", "app:none")
	must(t, err)
	_, err = c.Add(ctx, "app:add", []byte("v"), time.Minute)
	must(t, err)
	_, err = c.TTL(ctx, "app:add")
	must(t, err)
	must(t, c.Touch(ctx, "app:add", time.Hour))
	must(t, c.Touch(ctx, "app:add", 0))
	must(t, c.Delete(ctx, "app:add", "app:a", "app:cold", "app:cold:a", "app:cold:b"))
	got, err := c.GetOrLoad(ctx, "app:cold", time.Hour, load)
	if err != nil || string(got) != "loaded" {
		t.Errorf("load: %q, %v", got, err)
	}
	_, err = c.GetOrLoadMany(ctx, []string{"app:cold:a", "app:cold:b"}, time.Hour, func(context.Context, []string) (map[string][]byte, error) {
		return map[string][]byte{"app:cold:a": []byte("1"), "app:cold:b": []byte("2")}, nil
	})
	must(t, err)
	// A refresh stores over what is there.
	must(t, c.Set(ctx, "app:early", []byte("old"), time.Hour))
	early := holdfast.LoadOptions{EarlyRefresh: 1e-9}
	redistest.WaitFor(t, patience, "a refresh", func() bool {
		e, err := c.GetOrLoadWith(ctx, "app:early", time.Hour, early, func(context.Context, *holdfast.Entry) (holdfast.Loaded, error) {
			return holdfast.Loaded{Value: []byte("new")}, nil
		})
		return err == nil && string(e.Value) == "new"
	})
	typed := holdfast.NewTyped(c, holdfast.JSON[map[string]int]())
	must(t, typed.Set(ctx, "app:typed", map[string]int{"a": 1}, time.Hour))
	_, err = typed.Get(ctx, "app:typed")
	must(t, err)
	must(t, c.Check(ctx))

	cl := c.Client()
	b := cl.B()
	must(t, cl.Do(ctx, b.Set().Key("app:client").Value("v").ExSeconds(60).Build()).Error())
	must(t, cl.Do(ctx, b.Get().Key("app:client").Build()).Error())
	must(t, cl.Do(ctx, b.Mget().Key("app:client", "app:set").Build()).Error())
	must(t, cl.Do(ctx, b.Pexpire().Key("app:client").Milliseconds(30000).Build()).Error())
	must(t, cl.Do(ctx, b.Pttl().Key("app:client").Build()).Error())
	must(t, cl.Do(ctx, b.Exists().Key("app:client").Build()).Error())
	must(t, cl.Do(ctx, b.Del().Key("app:client").Build()).Error())
	must(t, cl.DoCache(ctx, b.Get().Key("app:set").Cache(), time.Minute).Error())
}

package holdfast_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// commandsRun is the number of times that the server has run a command.
func commandsRun(s *redistest.Server, name string) (n int) {
	for line := range strings.Lines(s.MustDo("INFO", "commandstats")) {
		fmt.Sscanf(line, "cmdstat_"+name+":calls=%d,", &n)
	}
	return n
}

func TestGetManyReadsByOneMGETAPipeline(t *testing.T) {
	s := redistest.Start(t)
	ctx := context.Background()
	keys, items := many(600)
	writer, reader := open(t, at(s.Addr())), open(t, at(s.Addr()))
	ready(t, writer)
	ready(t, reader)
	must(t, writer.SetMany(ctx, items, time.Hour))
	gets := commandsRun(s, "get")
	found, err := reader.GetMany(ctx, append(keys, "absent")...)
	must(t, err)
	if len(found) != len(keys) {
		t.Errorf("%d of %d were found", len(found), len(keys))
	}
	for key, want := range items {
		e, err := reader.Lookup(ctx, key)
		if string(found[key]) != string(want) || err != nil || e.Tier != holdfast.Local || e.TTL > time.Hour || e.TTL < 59*time.Minute {
			t.Fatalf("%s: %q, then %+v, %v", key, found[key], e, err)
		}
	}
	// The first pipeline of a batch has 32 reads, all others have 256.
	if n := commandsRun(s, "mget"); n != 4 {
		t.Errorf("%d MGET, want 4", n)
	}
	if n := commandsRun(s, "get") - gets; n != 0 {
		t.Errorf("%d GET beside them", n)
	}
}

func TestGetManyAsksAgainWhereAnMGETIsNoAnswer(t *testing.T) {
	s := redistest.Start(t)
	ctx := context.Background()
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~app:*", "~holdfast:*", "+@all")
	for _, tt := range []struct {
		name  string
		rule  []string
		keys  []string
		fails string // the key that has an error
	}{
		{"a list", nil, []string{"app:a", "app:list", "app:b", "app:absent"}, "app:list"},
		{"a key that may not be read", nil, []string{"app:a", "their:a", "app:b"}, "their:a"},
		{"MGET may not be used", []string{"-mget"}, []string{"app:a", "app:absent", "app:b"}, ""},
		{"PTTL may not be used", []string{"-pttl"}, []string{"app:a", "app:list", "app:b", "app:absent"}, "app:list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.MustDo("FLUSHALL")
			s.MustDo(append([]string{"ACL", "SETUSER", "app", "+@all"}, tt.rule...)...)
			s.MustDo("MSET", "app:a", "1", "app:b", "2", "their:a", "3")
			s.MustDo("RPUSH", "app:list", "e")
			o := at(s.Addr())
			o.Redis.Username, o.Redis.Password = "app", "pw"
			o.Tracking.UntrackedTTL, o.Local.MaxTTL = time.Millisecond, time.Millisecond
			c := open(t, o)
			ready(t, c)
			for range 3 {
				<-time.After(5 * time.Millisecond) // the copies are not fresh any more
				found, err := c.GetMany(ctx, tt.keys...)
				if len(found) != 2 || string(found["app:a"]) != "1" || string(found["app:b"]) != "2" {
					t.Errorf("found %q", found)
				}
				if tt.fails == "" {
					must(t, err)
				} else if e, ok := err.(*holdfast.Error); !ok || e.Key != tt.fails || e.Op != "getmany" {
					t.Errorf("error %v", err)
				}
			}
			if st := c.Stats(); c.Health().State != holdfast.Up || st.BreakerOpens != 0 {
				t.Errorf("%+v, %+v", c.Health(), st)
			}
		})
	}
}

func TestGetManyAsksAgainWhereAnMGETIsAnsweredByNonsense(t *testing.T) {
	for name, answer := range map[string]func(p *server.Peer){
		"a string":            func(p *server.Peer) { p.WriteInline("nonsense") },
		"nil":                 func(p *server.Peer) { p.WriteNull() },
		"too few values":      func(p *server.Peer) { p.WriteStrings([]string{"nonsense"}) },
		"numbers":             func(p *server.Peer) { p.WriteLen(2); p.WriteInt(3); p.WriteInt(4) },
		"errors for the keys": func(p *server.Peer) { p.WriteLen(2); p.WriteError("ERR no"); p.WriteError("ERR no") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVirtual(t)
				c := open(t, v.options())
				ready(t, c)
				v.redis.Set("a", "1")
				v.redis.Set("b", "2")
				v.redis.Server().SetPreHook(func(p *server.Peer, cmd string, _ ...string) bool {
					if cmd == "MGET" {
						answer(p)
					}
					return cmd == "MGET"
				})
				found, err := c.GetMany(context.Background(), "a", "b")
				if err != nil || len(found) != 2 || string(found["a"]) != "1" || string(found["b"]) != "2" {
					t.Errorf("%q, %v", found, err)
				}
			})
		})
	}
}

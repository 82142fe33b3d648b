package holdfast

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// The table of commands is checked against what a real server says of its own.

// movable are commands whose keys are not where a number says.
var movable = []string{
	"EVAL return(1) 2 k1 k2 a1", "EVALSHA 0 1 k1 a1", "FCALL f 1 k1 a1", "EVAL_RO return(1) 1 k1", "FCALL_RO f 2 k1 k2",
	"EVALSHA_RO 0 1 k1", "SINTERCARD 2 k1 k2 LIMIT 3", "ZDIFF 2 k1 k2", "ZINTER 2 k1 k2 WITHSCORES", "ZINTERCARD 1 k1",
	"ZUNION 2 k1 k2", "LMPOP 2 k1 k2 LEFT", "ZMPOP 1 k1 MIN", "BLMPOP 1 2 k1 k2 LEFT", "BZMPOP 1 1 k1 MAX",
	"ZUNIONSTORE d 2 k1 k2 WEIGHTS 1 2", "ZINTERSTORE d 1 k1", "ZDIFFSTORE d 2 k1 k2", "XREAD COUNT 2 STREAMS k1 k2 0 0",
	"XREAD BLOCK 10 STREAMS k1 $", "XREADGROUP GROUP g c COUNT 1 STREAMS k1 k2 > >",
	"XREADGROUP GROUP streams block STREAMS k1 >", "SORT k1 BY w STORE d", "SORT_RO k1",
	"GEORADIUS k1 1 2 3 m STORE d", "GEORADIUSBYMEMBER k1 m 3 m STOREDIST d", "MIGRATE h 1 k1 0 10",
	"MIGRATE h 1 k1 0 10 COPY", "OBJECT ENCODING k1", "MEMORY USAGE k1 SAMPLES 1", "XINFO STREAM k1", "XGROUP CREATE k1 g 0",
	"BITOP AND d k1 k2", "COPY k1 k2 REPLACE", "MSETNX k1 v k2 v", "MSET k1 v k2 v", "BLPOP k1 k2 1",
}

func TestTheTableOfCommandsSaysWhatRedisSays(t *testing.T) {
	s := redistest.Start(t)
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	all, err := c.Do(ctx, c.B().Command().Build()).ToArray()
	if err != nil {
		t.Fatal(err)
	}
	lines, some := slices.Clone(movable), strings.Fields("k1 k2 k3 k4 k5 k6 k7")
	for _, row := range all {
		fields, err := row.ToArray()
		if err != nil {
			t.Fatal(err)
		}
		name, _ := fields[0].ToString()
		flags, _ := fields[2].AsStrSlice()
		name = strings.ToUpper(name)
		k, known := redisCommands[name]
		if k.reads && slices.Contains(flags, "write") {
			t.Errorf("%s may write", name)
		}
		if slices.Contains(flags, "blocking") && k.verb != verbBlock && name != "XREAD" && name != "XREADGROUP" {
			t.Errorf("%s waits at Redis, with %+v", name, k)
		}
		first, _ := fields[3].AsInt64()
		if known && first > 0 && k.where == keyless && k.verb != verbReceive {
			t.Errorf("%s has a key, the %d. argument", name, first)
		}
		if first > 0 && !slices.Contains(flags, "movablekeys") {
			for n := 1; n < len(some); n++ {
				lines = append(lines, name+" "+strings.Join(some[:n], " "))
			}
		}
	}
	checked := 0
	for _, line := range lines {
		args := strings.Fields(line)
		want, err := c.Do(ctx, c.B().Arbitrary("COMMAND", "GETKEYS").Args(args...).Build()).AsStrSlice()
		if err != nil {
			continue // so many arguments are not in order
		}
		checked++
		name := strings.ToUpper(args[0])
		_, known := redisCommands[name]
		k := commandOf(name, args)
		got := k.keys(args)
		for _, key := range want {
			if !slices.Contains(got, key) {
				t.Errorf("%s: the keys are %v; the table says %v", line, want, got)
			}
		}
		if k.where != keysAnywhere && len(got) != len(want) {
			t.Errorf("%s: the keys are %v; the table says %v", line, want, got)
		}
		if home, ok := k.home(args); known && (!ok || !slices.Contains(want, home)) {
			t.Errorf("%s: the keys are %v; it would go where %q is", line, want, home)
		}
	}
	if checked < 150 {
		t.Errorf("only %d commands were checked", checked)
	}
	t.Logf("%d commands checked", checked)
}

func TestCommandsThatMakeNoSenseHaveKeysAllTheSame(t *testing.T) {
	for _, line := range []string{
		"EVAL", "EVAL s", "EVAL s x k", "EVAL s 9 k", "EVAL s -1 k", "ZUNIONSTORE", "ZUNIONSTORE d", "ZUNIONSTORE d 7 k",
		"XREAD", "XREAD STREAMS", "XREAD STREAMS k", "XREAD BLOCK", "MIGRATE", "MIGRATE a", "BITOP", "BITOP AND", "OBJECT",
		"OBJECT HELP", "MEMORY DOCTOR", "BLPOP", "BLPOP k", "SINTERCARD", "SINTERCARD 99999999999999999999 k", "MSETNX",
		"GET", "COPY k", "CLIENT", "SCRIPT", "DEBUG", "NOSUCH", "LMPOP 2",
	} {
		args := strings.Fields(line)
		k := commandOf(args[0], args)
		for _, key := range k.keys(args) {
			if !slices.Contains(args[1:], key) {
				t.Errorf("%s: the key %q is no argument", line, key)
			}
		}
		k.home(args)
	}
}

// A command that waits on the shared connection would hold up all callers.
func TestACommandThatWaitsIsKnownByItsArguments(t *testing.T) {
	for line, waits := range map[string]bool{
		"XREAD BLOCK 0 STREAMS k $": true, "xread count 1 block 0 streams k $": true, "XREAD STREAMS block $": false,
		"XREADGROUP GROUP streams c BLOCK 0 STREAMS k >": true, "XREADGROUP GROUP block block STREAMS k >": false,
		"XREADGROUP COUNT 1 GROUP g streams NOACK BLOCK 0 STREAMS k >": true, "XREAD COUNT": false, "XREADGROUP GROUP": false,
	} {
		args := strings.Fields(line)
		if got := commandOf(upper(args[0]), args).verb == verbBlock; got != waits {
			t.Errorf("%s waits: %v", line, got)
		}
	}
}

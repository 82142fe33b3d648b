package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tap is a writer that calls back when a text was written.
type tap struct {
	mu   sync.Mutex
	text bytes.Buffer
	on   string
	then func()
}

func (t *tap) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(b)
	if t.then != nil && strings.Contains(t.text.String(), t.on) {
		t.then()
		t.then = nil
	}
	return len(b), nil
}

func (t *tap) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// unhurried keeps a busy machine from deciding a test about something else.
const unhurried = "-allowance=2s"

func TestTheDemoPassesAndPrintsItsTablesAndTheVerdictIn80Columns(t *testing.T) {
	t.Parallel()
	var stdout, stderr tap
	code := run(t.Context(), []string{"demo", "-scale=0.2", unhurried}, &stdout, &stderr)
	out := stdout.String()
	if code != exitOK || stderr.String() != "" {
		t.Fatalf("exit code %d, stderr %q, stdout:\n%s", code, stderr.String(), out)
	}
	rows := regexp.MustCompile(`(?m)^ *\d+\.\ds (up|killed|hung) +(up|down|-) .*(\d|-)$`)
	if n := len(rows.FindAllString(out, -1)); n != 3*12 {
		t.Errorf("%d rows, want 36", n)
	}
	for line := range strings.Lines(out) {
		if n := len(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{
		`(?m)^ .* killed +down `,
		`(?m)^ .* hung +down `,
		`(?m)^ .* up +up `,
		`holdfast: 0 of [1-9][0-9,]* calls failed, slowest [0-9.,]+ ms, [1-9]\d* dials\n  \(allowed: 0 failed, 50ms \+ 2s `,
		`every one of 2,000 keys holds its last write\n  \([1-9][0-9,]* values, [1-9]\d* deleted, \d+ expired\)`,
		`plain rueidis, same outage: [1-9][0-9,]* of [1-9][0-9,]* calls failed,\n  slowest [0-9.,]+ ms, [1-9][0-9,]* dials\.`,
		`rueidis with DoCache, same outage: [1-9][0-9,]* of [1-9][0-9,]* calls failed,`,
		`(?m)^verdict: holdfast held$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("nothing matches %s", want)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("there are escape sequences in what is no terminal")
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestAKeyThatSomebodyElseChangedMakesTheVerdictBad(t *testing.T) {
	t.Parallel()
	server := embedForTest(t)
	server.server.RequireAuth("secret")
	database := server.server.DB(3)
	database.Set("not the demo's", "untouched")
	var stderr tap
	changed := ""
	stdout := tap{on: "\njournal: ", then: func() {
		for _, key := range database.Keys() {
			if strings.Contains(key, ":a:") {
				changed = key
				database.Set(key, "somebody else's")
				return
			}
		}
	}}
	url := "redis://:secret@" + server.server.Addr() + "/3"
	code := run(t.Context(), []string{"demo", "-scale=0.05", unhurried, "-redis", url}, &stdout, &stderr)
	out := stdout.String()
	if code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	for _, want := range []string{"verdict: holdfast did not hold", changed + ` `, `holds "somebody else's"`, "only 1,9"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	for _, key := range database.Keys() {
		if key != "not the demo's" && !strings.Contains(key, ":probe:") {
			t.Errorf("the demo left %q behind", key)
		}
	}
	if got, _ := database.Get("not the demo's"); got != "untouched" {
		t.Errorf("the demo changed a key of others to %q", got)
	}
	if strings.Contains(out+stderr.String(), "secret") {
		t.Error("the password was printed")
	}
	if t.Failed() {
		t.Log(out, stderr.String())
	}
}

func TestAnInterruptedDemoEndsWith130AndDeletesItsKeys(t *testing.T) {
	t.Parallel()
	for _, when := range []string{" killed ", " hung ", "plain rueidis", "rueidis with DoCache"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			server := embedForTest(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdout, stderr := tap{on: when, then: cancel}, tap{}
			args := []string{"demo", "-scale=0.05", "-redis=redis://" + server.server.Addr()}
			if code := run(ctx, args, &stdout, &stderr); code != exitInterrupted {
				t.Errorf("exit code %d, want %d; %s", code, exitInterrupted, stderr.String())
			}
			if strings.Contains(stdout.String(), "verdict") {
				t.Error("there is a verdict")
			}
			for _, key := range server.server.Keys() {
				if !strings.Contains(key, ":probe:") {
					t.Errorf("it left %q behind", key)
				}
			}
		})
	}
}

func TestAServerThatIsNotThereIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	server, err := embed()
	if err != nil {
		t.Fatal(err)
	}
	addr := server.server.Addr()
	server.close()
	var stdout, stderr tap
	code := run(t.Context(), []string{"demo", "-redis", "redis://:secret@" + addr}, &stdout, &stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), addr) || strings.Contains(stderr.String(), "secret") {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
}

func TestACommandLineThatMakesNoSenseIsAnsweredWithItsFault(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"no command", "", exitUsage, "", "usage: holdfast <command>"},
		{"an unknown command", "serve", exitUsage, "", `unknown command "serve"`},
		{"help", "-h", exitOK, "usage: holdfast <command>", ""},
		{"help by name", "help", exitOK, "demo ", ""},
		{"help on the demo", "demo -h", exitOK, "-allowance", ""},
		{"an unknown flag", "demo -nonsense", exitUsage, "", "-nonsense"},
		{"an argument", "demo now", exitUsage, "", `unexpected argument "now"`},
		{"no callers", "demo -callers 0", exitUsage, "", "-callers is 0: it must be from 1 to 256"},
		{"too many callers", "demo -callers 257", exitUsage, "", "-callers is 257"},
		{"callers that are no number", "demo -callers many", exitUsage, "", "-callers"},
		{"a scale of nothing", "demo -scale 0", exitUsage, "", "-scale is 0: it must be from 0.05 to 100"},
		{"a scale that is no number", "demo -scale NaN", exitUsage, "", "-scale is NaN"},
		{"a huge scale", "demo -scale 1e9", exitUsage, "", "-scale is 1e+09"},
		{"a negative allowance", "demo -allowance -1s", exitUsage, "", "-allowance is -1s: it must not be negative"},
		{"two faults", "demo -scale 0 -callers 0", exitUsage, "", "-callers is 0: it must be from 1 to 256\n-scale is 0"},
		{"tls", "demo -redis rediss://:secret@h:6379", exitUsage, "", "-redis: the demo proxies plain TCP to one server only, not TLS"},
		{"a socket", "demo -redis unix:///redis.sock", exitUsage, "", "-redis: the demo proxies plain TCP to one server only, not a unix socket"},
		{"sentinel", "demo -redis redis://h?master_set=m", exitUsage, "", "-redis: the demo proxies plain TCP to one server only, not Sentinel"},
		{"two servers", "demo -redis redis://h?addr=i", exitUsage, "", "-redis: the demo proxies plain TCP to one server only, not 2 addresses"},
		{"another scheme", "demo -redis http://h", exitUsage, "", "-redis: redis: invalid URL scheme: http"},
		{"a broken url", "demo -redis redis://:secret@h:port", exitUsage, "", "-redis: invalid port"},
		{"a broken database", "demo -redis redis://:secret@h/x", exitUsage, "", "-redis: redis: invalid database number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr tap
			if code := run(t.Context(), strings.Fields(c.args), &stdout, &stderr); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, s := range []struct {
				name      string
				got, want string
			}{{"stdout", stdout.String(), c.stdout}, {"stderr", stderr.String(), c.stderr}} {
				if !strings.Contains(s.got, s.want) || (s.want == "") != (s.got == "") {
					t.Errorf("%s is %q; it should hold %q", s.name, s.got, s.want)
				}
				if strings.Contains(s.got, "secret") {
					t.Errorf("%s shows the password: %q", s.name, s.got)
				}
			}
		})
	}
}

func embedForTest(t *testing.T) *embedded {
	t.Helper()
	server, err := embed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.close)
	return server
}

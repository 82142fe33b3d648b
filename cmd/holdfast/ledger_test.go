package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestAKeyIsJudgedByItsLastWrite(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) owed {
		return owed{value: "v", expires: true, earliest: now.Add(d), latest: now.Add(d)}
	}
	seen := func(value string, left int64) sight {
		return sight{value: value, found: true, left: left, asked: now, answered: now}
	}
	gone := sight{left: noKey, asked: now, answered: now}
	set, deleted := owed{value: "v"}, owed{deleted: true}
	for _, c := range []struct {
		name string
		owed owed
		seen sight
		want string // part of the complaint, "" for none
		good proof
	}{
		{"a value is there", set, seen("v", noExpiry), "", proof{held: 1}},
		{"an older value is there", set, seen("u", noExpiry), `holds "u"; it should hold "v"`, proof{}},
		{"a value is missing", set, gone, "is missing", proof{}},
		{"a value would expire", set, seen("v", 5), "would expire", proof{}},
		{"a deleted key is gone", deleted, gone, "", proof{deleted: 1}},
		{"a deleted key is there", deleted, seen("v", noExpiry), "was deleted", proof{}},
		{"a value with a ttl is there", at(time.Minute), seen("v", 60000), "", proof{held: 1}},
		{"a value with a ttl has gone in time", at(-time.Second), gone, "", proof{expired: 1}},
		{"a value with a ttl has gone too early", at(time.Minute), gone, "is missing", proof{}},
		{"a value has outlived its ttl", at(-time.Minute), seen("v", 5), "after its expiry", proof{}},
		{"a value has lost its ttl", at(time.Minute), seen("v", noExpiry), "has lost its expiry", proof{}},
		{"the last write failed", owed{value: "v", unsure: true}, seen("u", noExpiry), "", proof{unsure: 1}},
		{"a key was never written", owed{}, gone, "the ledger is broken", proof{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p proof
			p.enter("k", c.owed, c.seen)
			complaint := strings.Join(p.wrong, "\n")
			if (c.want == "") != (complaint == "") || !strings.Contains(complaint, c.want) {
				t.Errorf("the complaint is %q, want %q", complaint, c.want)
			}
			if p.held != c.good.held || p.deleted != c.good.deleted || p.expired != c.good.expired || p.unsure != c.good.unsure {
				t.Errorf("counted %+v, want %+v", p, c.good)
			}
		})
	}
}

func TestAWrongValueAtTheServerIsFound(t *testing.T) {
	server := embedForTest(t)
	client, err := server.endpoint().direct()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	keys, ledger := make([]string, 600), make([]owed, 600)
	for i := range keys {
		keys[i], ledger[i] = "k"+thousands(int64(i)), owed{value: "v"}
		server.server.Set(keys[i], "v")
	}
	p, err := prove(t.Context(), client, keys, ledger)
	if err != nil || !p.good() || p.held != 600 {
		t.Fatalf("%+v, %v; want 600 keys held", p, err)
	}
	ledger[599].value = "another"
	p, err = prove(t.Context(), client, keys, ledger)
	if err != nil || p.good() || p.held != 599 || len(p.wrong) != 1 {
		t.Fatalf("%+v, %v; want one wrong", p, err)
	}
	if reasons := judge(outcome{tally: tally{calls: 1}}, p, 0); len(reasons) != 2 || !strings.Contains(reasons[1], "k599 holds") {
		t.Errorf("the verdict's reasons are %q", reasons)
	}
}

func TestAServerThatCannotBeReadProvesNothing(t *testing.T) {
	server := embedForTest(t)
	client, err := server.endpoint().direct()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server.server.SetError("LOADING not yet")
	if _, err := prove(t.Context(), client, []string{"k"}, []owed{{deleted: true}}); err == nil {
		t.Error("no error")
	}
}

func TestTheVerdictIsBadForEachReasonOfItsOwn(t *testing.T) {
	good := outcome{tally: tally{calls: 10}}
	for _, c := range []struct {
		name string
		edit func(*outcome, *proof)
		want string
	}{
		{"nothing is wrong", func(*outcome, *proof) {}, ""},
		{"a call failed", func(o *outcome, _ *proof) { o.failed, o.failure = 1, errors.New("oh no") }, "failed: 1, one with: oh no"},
		{"a call overran", func(o *outcome, _ *proof) { o.overran = 1 }, "took longer than 50ms + 100ms: 1"},
		{"nothing was called", func(o *outcome, _ *proof) { o.calls = 0 }, "nothing was called"},
		{"a key is wrong", func(_ *outcome, p *proof) { p.wrong = []string{"k is missing"} }, "k is missing"},
		{"many keys are wrong", func(_ *outcome, p *proof) { p.wrong = make([]string, 1005) }, "and 1,000 more"},
		{"a key is unsure", func(_ *outcome, p *proof) { p.unsure = 1 }, "cannot be judged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, p := good, proof{held: 2000}
			c.edit(&o, &p)
			reasons := strings.Join(judge(o, p, 100*time.Millisecond), "\n")
			if (c.want == "") != (reasons == "") || !strings.Contains(reasons, c.want) {
				t.Errorf("the reasons are %q, want %q", reasons, c.want)
			}
		})
	}
}

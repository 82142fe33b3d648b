package wal

import (
	"bytes"
	"fmt"
	"testing"
)

func TestTheDeathOfTheMachineIsADoubtUnlessEverythingWasForcedToTheDisk(t *testing.T) {
	for _, policy := range policies {
		for _, closed := range []bool{false, true} {
			for _, unnamed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/closed=%v/unnamed=%v", policy, closed, unnamed), func(t *testing.T) {
					for seed := range uint64(20) {
						fs := newMemFS()
						fs.unnamed = unnamed
						l, _, _ := mustOpen(t, fs, Options{Sync: policy})
						mustPut(t, l, "a", 1, "1")
						mustClose(t, l)
						l, _, _ = mustOpen(t, fs, Options{Sync: policy}) // "closed" is not for ever
						mustPut(t, l, "a", 2, "2")
						want := ""
						if closed {
							mustClose(t, l)
						} else if policy != SyncAlways && !unnamed {
							want = "the machine went down"
						}
						next := fs.unplugged(newRand(seed))
						if !closed {
							close(l.stop)
							l.workers.Wait()
						}
						l, got, report := mustOpen(t, next, Options{Sync: policy})
						wantDoubt(t, report.Doubt, want)
						if (closed || policy == SyncAlways) && got["a"] != "2" {
							t.Fatalf("found %s", brief(got))
						}
						wantDoubt(t, doubtOf(t, copyOf(next)), map[bool]string{true: noMarker}[want != ""])
						if err := l.Compact(all(got, 0)); err != nil {
							t.Fatal(err)
						}
						wantDoubt(t, doubtOf(t, copyOf(next)), "")
						mustClose(t, l)
					}
				})
			}
		}
	}
}

// Records of a policy that did not force them are on the disk when the next one
// says that everything is.
func TestAStricterPolicyForcesWhatALaxerOneHasLeft(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncInterval, SyncAlways} {
		for seed := range uint64(20) {
			fs := newMemFS()
			l, _, _ := mustOpen(t, fs, Options{SegmentBytes: 60})
			want := make(map[string]string)
			for i := range 6 {
				want[fmt.Sprint(i)] = "v"
				mustPut(t, l, fmt.Sprint(i), 1, "v")
			}
			fs = fs.killed()
			l, _, _ = mustOpen(t, fs, Options{Sync: policy})
			if policy == SyncInterval {
				mustClose(t, l)
			}
			got, report := contentsOf(t, fs.unplugged(newRand(seed)))
			wantContents(t, got, want)
			wantDoubt(t, report.Doubt, "")
			if len(report.Damage) > 0 {
				t.Fatal(report)
			}
		}
	}
}

func TestAMarkerThatIsMissingOrGarbageIsADoubtAndNothingElse(t *testing.T) {
	sound := marker{policy: SyncAlways, boot: "start 0"}.append(nil)
	future := bytes.Clone(sound)
	future[8] = 3
	policy := bytes.Clone(sound)
	policy[16] = 9
	policy = putSum(policy)
	closed := bytes.Clone(sound)
	closed[17] = 2
	closed = putSum(closed)
	tests := map[string]struct {
		data []byte
		want string
	}{
		"missing":            {nil, noMarker},
		"empty":              {[]byte{}, "not a marker"},
		"foreign":            {[]byte("do not trust this\n"), "not a marker"},
		"a future version":   {future, "format version 3, known is 2"},
		"an unknown policy":  {policy, "of an unknown kind"},
		"an unknown state":   {closed, "of an unknown kind"},
		"huge":               {make([]byte, 1<<20), "not a marker"},
		"too long":           {putSum(append(bytes.Clone(sound), make([]byte, 100)...)), "of a wrong length"},
		"sound":              {sound, ""},
		"a start of no name": {marker{}.append(nil), ""},
	}
	for cut := range sound {
		tests[fmt.Sprintf("cut at %d", cut)] = struct {
			data []byte
			want string
		}{sound[:cut], markerName}
		flipped := bytes.Clone(sound)
		flipped[cut] ^= 1
		tests[fmt.Sprintf("flipped at %d", cut)] = struct {
			data []byte
			want string
		}{flipped, markerName}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			files := threeLogs(t)
			delete(files, markerName)
			if tt.data != nil {
				files[markerName] = tt.data
			}
			fs := holding(files)
			l, got, report := mustOpen(t, fs, Options{})
			wantContents(t, got, map[string]string{"a": "a", "b": "b", "c": "c"})
			wantDoubt(t, report.Doubt, tt.want)
			if len(report.Damage) > 0 || l.Err() != nil {
				t.Error(report, l.Err())
			}
			mustPut(t, l, "d", 1, "d")
			mustClose(t, l)
			wantDoubt(t, doubtOf(t, fs), map[bool]string{true: noMarker}[tt.want != ""])
		})
	}
}

func putSum(b []byte) []byte {
	sum := markerSum(b)
	for i := range 4 {
		b[12+i] = byte(sum >> (8 * i))
	}
	return b
}

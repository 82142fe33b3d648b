package link

import (
	"strings"
	"testing"
)

// The slots are those that CLUSTER KEYSLOT of a real server gives.
func TestAKeyHasTheSlotThatRedisGivesIt(t *testing.T) {
	for key, want := range map[string]int{
		"":                     0,
		"foo":                  12182,
		"123456789":            12739,
		"{user1000}.following": 3443,
		"{user1000}.followers": 3443,
		"foo{}{bar}":           8363,
		"foo{{bar}}zap":        4015,
		"foo{bar}{zap}":        5061,
		"bar":                  5061,
		"{}":                   15257,
		"a{b":                  13340,
		"}a{":                  11710,
		"\x00\xff":             7920,
	} {
		if got := SlotOf(key); got != want {
			t.Errorf("%q: slot %d, want %d", key, got, want)
		}
	}
}

func TestRedirectionsAreRead(t *testing.T) {
	for _, tt := range []struct {
		text string
		want redirection
	}{
		{"MOVED 3999 127.0.0.1:6381", redirection{slot: 3999, addr: "127.0.0.1:6381"}},
		{"ASK 0 10.0.0.1:1", redirection{ask: true, addr: "10.0.0.1:1"}},
		{"MOVED 16383 :7001", redirection{slot: 16383, addr: "same:7001"}},
		{"MOVED 1 fd00::1:6379", redirection{slot: 1, addr: "[fd00::1]:6379"}},
		{"MOVED 1 [fd00::1]:6379", redirection{slot: 1, addr: "[fd00::1]:6379"}},
		{"MOVED 1 redis.example:6379", redirection{slot: 1, addr: "redis.example:6379"}},
	} {
		if got, err := readRedirection(tt.text, "same"); err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v; want %+v", tt.text, got, err, tt.want)
		}
	}
	for _, text := range []string{
		"MOVED", "MOVED 1", "MOVED 1 ", "MOVED x a:1", "MOVED -1 a:1", "MOVED 16384 a:1", "MOVED 1 a", "MOVED 1 a:1 b",
		"ASK 99999999999999999999 a:1", "MOVED 1 ?:1", "MOVED 1 a:", "MOVED 1 a:redis", "MOVED 1 a:0", "MOVED 1 a:65536", "MOVED 1 a:-1", "MOVED 1 " + strings.Repeat("x", 1000),
	} {
		if got, err := readRedirection(text, "same"); err == nil {
			t.Errorf("%.40q was taken for %+v", text, got)
		}
	}
}

// Any text of a server is an address and a slot, or an error.
func FuzzReadRedirection(f *testing.F) {
	f.Add("MOVED 3999 127.0.0.1:6381")
	f.Add("ASK 1 ::1:1")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := readRedirection(text, "same")
		if err == nil && (r.slot < 0 || r.slot >= slotCount || r.addr == "") {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

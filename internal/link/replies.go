package link

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// The time for which a reply of Redis may be kept.

// Life is the remaining life of a key, and of the fields that a reply shows.
type Life struct {
	TTL    time.Duration // 0 for no expiry
	Open   bool          // the expiry is not known: PTTL is refused
	Absent bool          // there is no such key, or PTTL failed: TTL is over at once
}

// LifeOf decodes the reply to PTTL.
func LifeOf(pttl rueidis.RedisResult, s *Session) (l Life) {
	ms, err := pttl.AsInt64()
	l.Open = err != nil && rediserr.Classify(context.Background(), err) == rediserr.Command
	s.Lacks.Note(lackPTTL, l.Open)
	switch {
	case l.Open:
	case err != nil || ms == keyAbsent:
		l.Absent, l.TTL = true, time.Nanosecond
	case ms >= 0:
		l.TTL = max(Millis(ms), time.Nanosecond)
	}
	return l
}

// ReplyCommands appends a read command, PTTL of its key, and HPTTL of the fields that it names.
func ReplyCommands(b rueidis.Builder, it *Item, args, fields []string, cmds []rueidis.Completed) []rueidis.Completed {
	cmds = append(cmds, b.Arbitrary(args...).ReadOnly(), pttlCommand(b, it.Key))
	if len(fields) > 0 && it.Session.FieldsExpire() {
		cmds = append(cmds, FieldsCommand(b, it.Key, fields))
	}
	return cmds
}

// FieldsCommand asks for the remaining lives of fields of a hash.
func FieldsCommand(b rueidis.Builder, key string, fields []string) rueidis.Completed {
	return b.Arbitrary("HPTTL", key, "FIELDS", strconv.Itoa(len(fields))).Args(fields...).ReadOnly()
}

// FieldsExpire reports whether fields of a hash may expire by themselves, as far as it is known.
func (s *Session) FieldsExpire() bool { return !s.Lacks.has(lackHPTTL) }

// EndWithFields shortens the life to that of the field that expires first. It returns false if the
// reply to HPTTL does not tell that, or if a field that the reply shows has expired since. shown tells
// whether the reply shows the ith field.
func (l *Life) EndWithFields(hpttl rueidis.RedisResult, shown func(i int) bool, s *Session) bool {
	all, err := hpttl.AsIntSlice()
	if rueidis.IsRedisNil(err) {
		return l.Absent // there is no such key now
	}
	if err != nil {
		unknown := strings.Contains(strings.ToLower(err.Error()), "unknown command")
		s.Lacks.Note(lackHPTTL, unknown)
		return unknown
	}
	for i, ms := range all {
		if ms == fieldAbsent && shown(i) {
			return false
		}
		if left := max(Millis(ms), time.Nanosecond); ms >= 0 && (l.TTL == 0 || left < l.TTL) {
			l.TTL = left
		}
	}
	return true
}

package goredis

import (
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// Conversions of replies to the types of go-redis' commands. A value is what go-redis makes
// of the same reply, of RESP2 or RESP3, and shares nothing that a caller may write to.

type message = rueidis.RedisMessage

// errMisfit is the error of a reply that the command's type cannot hold.
var errMisfit = errors.New("goredis: the reply does not fit the type of the command")

// set passes the converted reply to store.
func set[T any](store func(T), convert func(message) (T, error), m message) error {
	v, err := convert(m)
	if err != nil {
		return errMisfit
	}
	store(v)
	return nil
}

// listOf converts an array. A missing element is the zero value.
func listOf[T any](convert func(message) (T, error)) func(message) ([]T, error) {
	return func(m message) ([]T, error) {
		elements, err := m.ToArray()
		if err != nil {
			return nil, err
		}
		all := make([]T, len(elements))
		for i, e := range elements {
			if e.IsNil() {
				continue
			}
			if all[i], err = convert(e); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
}

// anything converts a reply to the type that it has.
func anything(m message) (any, error) {
	switch {
	case m.IsInt64():
		return m.ToInt64()
	case m.IsFloat64():
		return m.ToFloat64()
	case m.IsBool():
		return m.ToBool()
	case m.IsArray():
		return listOf(anything)(m)
	case m.IsMap():
		return anyMap(m)
	}
	return text(m)
}

func anyMap(m message) (any, error) {
	found, err := m.ToMap()
	if err != nil {
		return nil, err
	}
	all := make(map[any]any, len(found))
	for key, v := range found {
		if v.IsNil() {
			all[key] = nil
		} else if all[key], err = anything(v); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func text(m message) (string, error) { return m.ToString() }

// ownText returns a copy, because a caller of the command's Bytes may modify it.
func ownText(m message) (string, error) {
	s, err := text(m)
	return strings.Clone(s), err
}

func number(m message) (int64, error) { return m.AsInt64() }

func float(m message) (float64, error) { return m.AsFloat64() }

func truth(m message) (bool, error) {
	switch {
	case m.IsBool():
		return m.ToBool()
	case m.IsInt64():
		n, err := m.ToInt64()
		return n == 1, err
	}
	s, err := text(m)
	return s == "OK", err
}

// members converts an array to a set.
func members(m message) (map[string]struct{}, error) {
	elements, err := m.ToArray()
	if err != nil {
		return nil, err
	}
	all := make(map[string]struct{}, len(elements))
	for _, e := range elements {
		s, err := text(e)
		if err != nil {
			return nil, err
		}
		all[s] = struct{}{}
	}
	return all, nil
}

func textMap(m message) (map[string]string, error) { return m.AsStrMap() }

// scored converts members with scores: an array of pairs, or of members and scores in turn.
func scored(m message) ([]redis.Z, error) {
	found, err := m.AsZScores()
	if err != nil {
		return nil, err
	}
	all := make([]redis.Z, len(found))
	for i, z := range found {
		all[i] = redis.Z{Member: z.Member, Score: z.Score}
	}
	return all, nil
}

func rankWithScore(m message) (r redis.RankScore, err error) {
	parts, err := arrayOf(2, m)
	if err != nil {
		return r, err
	}
	if r.Rank, err = number(parts[0]); err == nil {
		r.Score, err = float(parts[1])
	}
	return r, err
}

// streamMessage converts an array of an ID and an array of fields and values.
func streamMessage(m message) (x redis.XMessage, err error) {
	parts, err := arrayOf(2, m)
	if err != nil {
		return x, err
	}
	if x.ID, err = text(parts[0]); err != nil {
		return x, err
	}
	pairs, err := listOf(text)(parts[1])
	if err != nil || len(pairs)%2 != 0 {
		return x, errMisfit
	}
	x.Values = make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		x.Values[pairs[i]] = pairs[i+1]
	}
	return x, nil
}

func position(m message) (*redis.GeoPos, error) {
	at, err := coordinates(m)
	return &at, err
}

func coordinates(m message) (at redis.GeoPos, err error) {
	parts, err := arrayOf(2, m)
	if err != nil {
		return at, err
	}
	if at.Longitude, err = float(parts[0]); err == nil {
		at.Latitude, err = float(parts[1])
	}
	return at, err
}

// place converts a name, or a location.
func place(m message) (redis.GeoLocation, error) {
	if m.IsArray() {
		return location(m)
	}
	name, err := text(m)
	return redis.GeoLocation{Name: name}, err
}

// location converts an array of a name and what was asked for: the distance, the hash and
// the coordinates, which have different types.
func location(m message) (l redis.GeoLocation, err error) {
	parts, err := m.ToArray()
	if err != nil || len(parts) == 0 {
		return l, errMisfit
	}
	l.Name, err = text(parts[0])
	for _, p := range parts[1:] {
		if err != nil {
			break
		}
		switch {
		case p.IsInt64():
			l.GeoHash, err = p.ToInt64()
		case p.IsArray():
			var at redis.GeoPos
			at, err = coordinates(p)
			l.Longitude, l.Latitude = at.Longitude, at.Latitude
		default:
			l.Dist, err = float(p)
		}
	}
	return l, err
}

// arrayOf returns the elements of an array of n.
func arrayOf(n int, m message) ([]message, error) {
	all, err := m.ToArray()
	if err == nil && len(all) != n {
		err = errMisfit
	}
	return all, err
}

// jsonText converts a JSON text.
func jsonText(m message) (string, error) {
	s, err := text(m)
	if s == "" {
		err = errMisfit
	}
	return s, err
}

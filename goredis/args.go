package goredis

import (
	"encoding"
	"fmt"
	"net"
	"strconv"
	"time"
)

// encode converts the arguments to the bytes that go-redis sends for them. Strings are
// not copied, all other types are.
func encode(args []any) ([]string, error) {
	all := make([]string, len(args))
	for i, arg := range args {
		s, err := encodeArg(arg)
		if err != nil {
			return nil, err
		}
		all[i] = s
	}
	return all, nil
}

// encodeArg accepts the types that go-redis accepts, and no others: a type that merely
// has one of them as its kind must implement a marshaler.
func encodeArg(arg any) (string, error) {
	switch v := arg.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case []byte:
		return string(v), nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case int8, int16, int32, uint, uint8, uint16, uint32, uint64, uintptr:
		return fmt.Sprint(v), nil
	case float32:
		return strconv.FormatFloat(float64(v), 'f', -1, 64), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case bool:
		if v {
			return "1", nil
		}
		return "0", nil
	case time.Time:
		return v.Format(time.RFC3339Nano), nil
	case time.Duration:
		return strconv.FormatInt(v.Nanoseconds(), 10), nil
	}
	if v, ok := pointee(arg); ok {
		return encodeArg(v)
	}
	switch v := arg.(type) {
	case encoding.BinaryMarshaler:
		b, err := v.MarshalBinary()
		return string(b), err
	case net.IP:
		return string(v), nil
	}
	return "", fmt.Errorf("redis: can't marshal %T (implement encoding.BinaryMarshaler)", arg)
}

// pointee returns the value behind a pointer to one of go-redis' types: the zero value if
// the pointer is nil.
func pointee(arg any) (any, bool) {
	switch p := arg.(type) {
	case *string:
		return value(p), true
	case *int:
		return value(p), true
	case *int8:
		return value(p), true
	case *int16:
		return value(p), true
	case *int32:
		return value(p), true
	case *int64:
		return value(p), true
	case *uint:
		return value(p), true
	case *uint8:
		return value(p), true
	case *uint16:
		return value(p), true
	case *uint32:
		return value(p), true
	case *uint64:
		return value(p), true
	case *uintptr:
		return value(p), true
	case *float32:
		return value(p), true
	case *float64:
		return value(p), true
	case *bool:
		return value(p), true
	case *time.Time:
		return value(p), true
	case *time.Duration:
		return value(p), true
	}
	return nil, false
}

func value[T any](p *T) any {
	if p == nil {
		return *new(T)
	}
	return *p
}

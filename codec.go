package holdfast

import (
	"encoding"
	"encoding/json"
)

// Codec turns values into what Redis stores and back. What it stores is all that
// is stored: other clients read and write the same keys if they agree on it.
//
// The bytes given to Decode are shared: it must not write to them, but may keep
// them. What it returns may be shared between callers of a Typed; see there. What
// Encode returns is copied. Both are called from any goroutine, several at once. An
// error, or a panic, of Decode is a miss; one of Encode is the writer's error.
type Codec[V any] interface {
	Encode(V) ([]byte, error)
	Decode([]byte) (V, error)
}

// JSON is a Codec by encoding/json.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(v V) ([]byte, error) { return json.Marshal(v) }

func (jsonCodec[V]) Decode(b []byte) (v V, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}

// Bytes is the Codec that changes nothing.
func Bytes() Codec[[]byte] { return bytesCodec{} }

type bytesCodec struct{}

func (bytesCodec) Encode(v []byte) ([]byte, error) { return v, nil }
func (bytesCodec) Decode(b []byte) ([]byte, error) { return b, nil }

// String is a Codec of strings as they are, in any encoding.
func String() Codec[string] { return stringCodec{} }

type stringCodec struct{}

func (stringCodec) Encode(v string) ([]byte, error) { return []byte(v), nil }
func (stringCodec) Decode(b []byte) (string, error) { return string(b), nil }

// Binary is a Codec of types that marshal themselves: those of which the pointer is
// an encoding.BinaryMarshaler and an encoding.BinaryUnmarshaler. Only the type itself
// is named: Binary[netip.Addr]().
func Binary[V any, P interface {
	*V
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}]() Codec[V] {
	return binaryCodec[V, P]{}
}

type binaryCodec[V any, P interface {
	*V
	encoding.BinaryMarshaler
	encoding.BinaryUnmarshaler
}] struct{}

func (binaryCodec[V, P]) Encode(v V) ([]byte, error) { return P(&v).MarshalBinary() }

func (binaryCodec[V, P]) Decode(b []byte) (v V, err error) {
	err = P(&v).UnmarshalBinary(b)
	return v, err
}

// CodecFuncs is a Codec of two functions. So any library of formats fits, without
// being a dependency of this one. Protobuf:
//
//	holdfast.CodecFuncs(
//		func(u *pb.User) ([]byte, error) { return proto.Marshal(u) },
//		func(b []byte) (*pb.User, error) {
//			u := new(pb.User)
//			return u, proto.Unmarshal(b, u)
//		})
//
// MessagePack, for a struct User:
//
//	holdfast.CodecFuncs(
//		func(u User) ([]byte, error) { return msgpack.Marshal(u) },
//		func(b []byte) (u User, err error) {
//			err = msgpack.Unmarshal(b, &u)
//			return u, err
//		})
//
// It panics if one of them is nil.
func CodecFuncs[V any](encode func(V) ([]byte, error), decode func([]byte) (V, error)) Codec[V] {
	if encode == nil || decode == nil {
		panic("holdfast: CodecFuncs needs both functions")
	}
	return funcCodec[V]{encode, decode}
}

type funcCodec[V any] struct {
	encode func(V) ([]byte, error)
	decode func([]byte) (V, error)
}

func (c funcCodec[V]) Encode(v V) ([]byte, error) { return c.encode(v) }
func (c funcCodec[V]) Decode(b []byte) (V, error) { return c.decode(b) }

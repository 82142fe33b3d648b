package holdfast

import (
	"encoding"
	"encoding/json"
)

// Codec encodes values as the bytes that Redis stores, and decodes them. Nothing else
// is stored, so other clients can read and write the same keys with the same encoding.
//
// The bytes given to Decode are shared: it must not write to them, but may keep
// them. The value that it returns may be shared between callers; see Typed. The bytes
// that Encode returns are copied. Both must be safe for concurrent use. An error or a
// panic of Decode is a miss; one of Encode is an error of the call that writes.
type Codec[V any] interface {
	Encode(V) ([]byte, error)
	Decode([]byte) (V, error)
}

// JSON returns a Codec that uses encoding/json.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(v V) ([]byte, error) { return json.Marshal(v) }

func (jsonCodec[V]) Decode(b []byte) (v V, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}

// Bytes returns the Codec that stores bytes unchanged.
func Bytes() Codec[[]byte] { return bytesCodec{} }

type bytesCodec struct{}

func (bytesCodec) Encode(v []byte) ([]byte, error) { return v, nil }
func (bytesCodec) Decode(b []byte) ([]byte, error) { return b, nil }

// String returns the Codec that stores the bytes of a string unchanged.
func String() Codec[string] { return stringCodec{} }

type stringCodec struct{}

func (stringCodec) Encode(v string) ([]byte, error) { return []byte(v), nil }
func (stringCodec) Decode(b []byte) (string, error) { return string(b), nil }

// Binary returns a Codec for a type whose pointer is an encoding.BinaryMarshaler and an
// encoding.BinaryUnmarshaler. Only the type itself is given: Binary[netip.Addr]().
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

// CodecFuncs returns a Codec made of two functions. It serves for any encoding library
// without making that a dependency of this package. Protobuf:
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
// It panics if a function is nil.
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

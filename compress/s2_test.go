package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/klauspost/compress/s2"
)

func noise(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func TestWhatIsStoredIsCompressedOnlyWhereItPays(t *testing.T) {
	text := bytes.Repeat([]byte("holdfast "), 1000)
	odd := append([]byte(magic), noise(20)...)
	for _, tt := range []struct {
		name  string
		value []byte
		min   int
		want  string // what the stored form begins with; "": it is the value
	}{
		{"empty", []byte{}, 0, ""},
		{"below the size", text[:99], 100, ""},
		{"at the size", text[:100], 100, magic + "s"},
		{"large", text, 100, magic + "s"},
		{"does not shrink", noise(5000), 100, ""},
		{"a negative size", text, -1, magic + "s"},
		{"begins like ours", odd, 100, magic + "p" + string(odd)},
		{"is just magic", []byte(magic), 0, magic + "p" + magic},
		{"begins like ours and shrinks", append([]byte(magic), text...), 100, magic + "s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := S2(holdfast.Bytes(), tt.min)
			before := bytes.Clone(tt.value)
			b, err := c.Encode(tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" && !bytes.Equal(b, tt.value) || !strings.HasPrefix(string(b), tt.want) {
				t.Errorf("stored as %.40q, want %.40q", b, tt.want)
			}
			if len(b) > len(tt.value)+len(magic)+1 {
				t.Errorf("%d bytes became %d", len(tt.value), len(b))
			}
			got, err := c.Decode(b)
			if err != nil || !bytes.Equal(got, tt.value) {
				t.Errorf("decoded as %.40q, %v", got, err)
			}
			if !bytes.Equal(before, tt.value) {
				t.Error("the value was written to")
			}
		})
	}
}

func TestWhatIsNoValueIsAnErrorAndCostsNoMemory(t *testing.T) {
	claims := func(n uint64) string { return string(binary.AppendUvarint([]byte(magic+"s"), n)) }
	good, err := S2(holdfast.Bytes(), 0).Encode(bytes.Repeat([]byte("x"), 1000))
	if err != nil {
		t.Fatal(err)
	}
	for name, stored := range map[string]string{
		"nothing behind the magic":  magic,
		"an unknown form":           magic + "z",
		"no block":                  magic + "s",
		"a block cut short":         string(good[:len(good)-1]),
		"a block that goes on":      string(good) + "x",
		"claims a little too much":  claims(MaxDecoded + 1),
		"claims more than there is": claims(1 << 31),
		"claims the impossible":     claims(1<<64 - 1),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := S2(holdfast.Bytes(), 0).Decode([]byte(stored))
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Error("decoded")
			}
			allocated := after.TotalAlloc - before.TotalAlloc
			if allocated > 1<<20 {
				t.Errorf("%d bytes allocated", allocated)
			}
		})
	}
}

// A bomb: a small block that is honest about being large.
func TestABombIsNotDecoded(t *testing.T) {
	block := s2.Encode(nil, make([]byte, MaxDecoded+1))
	if len(block) > MaxDecoded/100 {
		t.Fatalf("no bomb: %d bytes", len(block))
	}
	_, err := S2(holdfast.Bytes(), 0).Decode(append([]byte(magic+"s"), block...))
	if !errors.Is(err, errTooLarge) {
		t.Errorf("%v", err)
	}
}

func TestWhatIsTooLargeToBeDecodedIsNotCompressed(t *testing.T) {
	value := make([]byte, MaxDecoded+1)
	c := S2(holdfast.Bytes(), 0)
	b, err := c.Encode(value)
	if err != nil || len(b) != len(value) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := c.Decode(b); err != nil || len(got) != len(value) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestCompressionCanBeTurnedOnForKeysThatAreThere(t *testing.T) {
	cache, err := holdfast.New(holdfast.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	ctx := context.Background()
	type page struct{ Body string }
	before := holdfast.NewTyped(cache, holdfast.JSON[page]())
	after := holdfast.NewTyped(cache, S2(holdfast.JSON[page](), 1000))
	large := page{strings.Repeat("holdfast ", 1000)}

	if err := before.Set(ctx, "old", large, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got, err := after.Get(ctx, "old"); err != nil || got != large {
		t.Errorf("from before: %.20q, %v", got.Body, err)
	}
	if err := after.Set(ctx, "new", large, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got, err := after.Get(ctx, "new"); err != nil || got != large {
		t.Errorf("compressed: %.20q, %v", got.Body, err)
	}
	if stored, err := cache.Get(ctx, "new"); err != nil || len(stored) > 1000 {
		t.Errorf("%d bytes are stored, %v", len(stored), err)
	}
	// And where it is turned off again, what is compressed is a miss.
	if _, err := before.Get(ctx, "new"); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("without compression: %v", err)
	}
}

func TestANilCodecIsRefusedAtOnce(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it was not")
		}
	}()
	S2[string](nil, 0)
}

func FuzzDecode(f *testing.F) {
	c := S2(holdfast.Bytes(), 0)
	for _, v := range [][]byte{nil, []byte("plain"), bytes.Repeat([]byte("x"), 1000), []byte(magic)} {
		b, err := c.Encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, stored []byte) {
		v, err := c.Decode(stored)
		if err != nil {
			return
		}
		again, err := c.Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Decode(again); err != nil || !bytes.Equal(got, v) {
			t.Fatalf("%q became %q, %v", v, got, err)
		}
	})
}

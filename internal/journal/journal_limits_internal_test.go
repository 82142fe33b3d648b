package journal

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// Many sets that do not fit are tried at once: what is only tried neither shows in the
// gauge nor costs a set that fits its value.
func TestBytesThatAreOnlyTriedAreNeverCounted(t *testing.T) {
	const most = 1 << 20
	j := New(Config{MaxKeys: 1000, MaxBytes: most})
	large := strings.Repeat("x", most)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			key := fmt.Sprint("large", g)
			for i := range 100 {
				j.Put(hashed(key), set(key, large[:most-100*(i%2)], uint64(i+1)))
				if n := j.Bytes.Load(); n > most {
					t.Errorf("%d bytes, over %d", n, most)
					return
				}
			}
		})
	}
	wg.Wait()
}

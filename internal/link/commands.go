package link

import (
	"strconv"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
)

// The commands of a read and of a Set. They do not name their keys to rueidis, which would compute
// the slot of each. A session has one server, so nobody asks for the slot.

// readName and setName are the names of a read and of a Set in the id of a suspect.
const (
	readName = "GET\x00PTTL"
	setName  = "SET"
)

func getCommand(b rueidis.Builder, key string) rueidis.Completed {
	return b.Arbitrary("GET", key).ReadOnly()
}

func pttlCommand(b rueidis.Builder, key string) rueidis.Completed {
	return b.Arbitrary("PTTL", key).ReadOnly()
}

// keyAbsent is the reply to PTTL of a key that does not exist.
const keyAbsent = -2

// fieldAbsent is HPTTL's reply for a field that does not exist.
const fieldAbsent = -2

// SetCommand builds the SET of the plain value, which redis-cli GET shows unchanged (law 8).
func SetCommand(b rueidis.Builder, key string, data []byte, ttl time.Duration) rueidis.Completed {
	set := b.Arbitrary("SET", key, ViewString(data))
	if ttl != 0 {
		set = set.Args("PX", strconv.FormatInt(ttl.Milliseconds(), 10))
	}
	return Kept(set.Build(), len(data))
}

// Kept pins a large command, so that rueidis does not reuse it. A server may refuse a large command
// before it has read it to the end. rueidis takes the reply for the end of the command, which it
// may still be writing.
func Kept(cmd rueidis.Completed, size int) rueidis.Completed {
	if size < KeptSize {
		return cmd
	}
	return cmd.Pin()
}

// KeptSize is the smallest possible proto-max-bulk-len.
const KeptSize = 1 << 20

// ViewString returns a string that shares the bytes. They are never changed or reused: a command
// that timed out may still be written to the connection.
func ViewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

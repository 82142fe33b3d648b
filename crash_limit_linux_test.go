package holdfast_test

import (
	"os/signal"
	"syscall"
)

// limitFileSize lets no file of this process grow over so many bytes, or ends
// that: a disk that is full, as far as this process can tell.
func limitFileSize(n int64) error {
	signal.Ignore(syscall.SIGXFSZ)
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	if n >= 0 {
		l.Cur = uint64(n)
	}
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l)
}

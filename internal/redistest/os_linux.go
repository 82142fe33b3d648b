package redistest

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// diesWithParent makes the kernel kill the child when the thread that started it ends, so
// that a crashed test binary leaves no servers behind.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// isStopped reports whether a SIGSTOP has taken effect, which happens some time after the
// signal was sent.
func isStopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, ok := bytes.Cut(b, []byte(") "))
	return ok && len(state) > 0 && state[0] == 'T'
}

package holdfast

import (
	"fmt"
	"slices"
)

// allowed is Options.AllowAddress. It is asked before anything is sent to an address
// that a server named.
type allowed struct {
	ask    func(addr string) bool
	anyway []string // the options name them
}

// check returns why the address may not be dialled, nil where it may.
func (a allowed) check(addr string) (err error) {
	if a.ask == nil || slices.Contains(a.anyway, addr) {
		return nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("holdfast: Options.AllowAddress panicked, so %q is refused: %.200v", addr, r)
		}
	}()
	if !a.ask(addr) {
		return fmt.Errorf("holdfast: Options.AllowAddress refuses %q, which a server named", addr)
	}
	return nil
}

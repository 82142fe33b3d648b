package holdfast

import (
	"fmt"
	"slices"
)

// allowed is Options.AllowAddress. It is asked before anything is sent to an address
// that a server named.
type allowed struct {
	ask     func(addr string) bool
	anyway  []string // the options name them
	workers *group
}

// check returns why the address may not be dialled, nil where it may.
func (a allowed) check(addr string) error {
	if a.ask == nil || slices.Contains(a.anyway, addr) {
		return nil
	}
	ok := false
	if err := a.workers.call("allow", "Options.AllowAddress", func() { ok = a.ask(addr) }); err != nil {
		return fmt.Errorf("%w, so %q is refused", err, addr)
	}
	if !ok {
		return fmt.Errorf("holdfast: Options.AllowAddress refuses %q, which a server named", addr)
	}
	return nil
}

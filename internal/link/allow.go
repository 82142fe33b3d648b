package link

import (
	"fmt"
	"slices"

	"github.com/holdfast-cache/holdfast/internal/group"
)

// allowed calls Options.AllowAddress for each address that a server names, before anything is sent
// to it.
type allowed struct {
	ask     func(addr string) bool
	anyway  []string // addresses of the options, always allowed
	workers *group.Group
}

// check returns the reason why the address may not be dialled, or nil. It blocks until AllowAddress
// has returned.
func (a allowed) check(addr string) error {
	if a.ask == nil || slices.Contains(a.anyway, addr) {
		return nil
	}
	ok := false
	if err := a.workers.Call("allow", "Options.AllowAddress", func() { ok = a.ask(addr) }); err != nil {
		return fmt.Errorf("%w, so %q is refused", err, addr)
	}
	if !ok {
		return fmt.Errorf("holdfast: Options.AllowAddress refuses %q, which a server named", addr)
	}
	return nil
}

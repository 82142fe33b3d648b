package holdfast

import (
	"slices"
	"sync/atomic"

	"github.com/redis/rueidis"
)

// invalidationListener hears of changed keys. The method does not block.
type invalidationListener interface {
	add(keys []rueidis.RedisMessage)
}

// listeners is the list of those that hear of invalidations. It is read without a lock, because the
// reader is the goroutine that reads the connection.
type listeners struct {
	all atomic.Pointer[[]invalidationListener]
}

func (ls *listeners) any() bool {
	all := ls.all.Load()
	return all != nil && len(*all) > 0
}

func (ls *listeners) add(l invalidationListener) {
	ls.change(func(all []invalidationListener) []invalidationListener { return append(all, l) })
}

func (ls *listeners) remove(l invalidationListener) {
	ls.change(func(all []invalidationListener) []invalidationListener {
		return slices.DeleteFunc(all, func(other invalidationListener) bool { return other == l })
	})
}

// change replaces the list by the result of f, which gets a copy.
func (ls *listeners) change(f func([]invalidationListener) []invalidationListener) {
	for {
		old := ls.all.Load()
		var all []invalidationListener
		if old != nil {
			all = slices.Clone(*old)
		}
		if all = f(all); ls.all.CompareAndSwap(old, &all) {
			return
		}
	}
}

// onInvalidation passes on changed keys, nil for any key. It does not block.
func (ls *listeners) onInvalidation(keys []rueidis.RedisMessage) {
	if all := ls.all.Load(); all != nil {
		for _, l := range *all {
			l.add(keys)
		}
	}
}

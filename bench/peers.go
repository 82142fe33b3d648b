package bench

import (
	"fmt"
	"slices"

	"github.com/holdfast-cache/holdfast/bench/worker"
)

// The peers' names, in the order of the tables.
const (
	holdfastLeased = "holdfast"
	holdfastFree   = "holdfast, no lease"
	flightsOnly    = "singleflight + rueidis"
	sturdycRedis   = "sturdyc + rueidis"
	leases         = "leases as rueidisaside's"
	// libraryLeases is a program of its own: see the directory rueidisaside.
	libraryLeases = "rueidisaside v1.0.25"
)

func peers() []string {
	return []string{holdfastLeased, holdfastFree, flightsOnly, sturdycRedis, leases, libraryLeases}
}

// open opens the peer that the setup names.
func open(s worker.Setup) (worker.Peer, error) {
	switch s.Peer {
	case holdfastLeased:
		return openHoldfast(s, true)
	case holdfastFree:
		return openHoldfast(s, false)
	case flightsOnly:
		return openFlights(s)
	case sturdycRedis:
		return openSturdyc(s)
	case leases:
		return openLeasing(s)
	}
	return nil, fmt.Errorf("no peer %q among %q", s.Peer, slices.DeleteFunc(peers(), func(p string) bool { return p == libraryLeases }))
}

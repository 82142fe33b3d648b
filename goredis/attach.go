package goredis

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
)

// failoverAddr is go-redis' address of a client that asks sentinels.
const failoverAddr = "FailoverClient"

// Attach puts the cache before a go-redis client: a *redis.Client, also one of
// redis.NewFailoverClient, or a *redis.ClusterClient. Call it once, before the client is
// used. It sets Options().ContextTimeoutEnabled, without which go-redis waits on a socket
// for as long as Options().ReadTimeout says, and calls AddHook. It does no I/O and does
// not block.
//
// The cache and the client must use the same Redis. Attach returns an error for the
// differences that it can detect: another address (a different spelling counts as
// another); another database; sentinels on one side only; a cache without a Redis; a
// *redis.Ring, which spreads its keys over servers that know nothing of each other; a client
// of redis.NewFailoverClusterClient, which does not show where it goes. The caller closes
// the client and the cache; commands after Cache.Close get holdfast.ErrClosed.
func Attach(rdb redis.UniversalClient, cache *holdfast.Cache, opts ...Option) error {
	if cache == nil {
		return errors.New("goredis: the cache is nil")
	}
	o := cache.Options()
	if len(o.Redis.InitAddress) == 0 {
		return errors.New("goredis: the cache has no Redis: its Redis.InitAddress is empty")
	}
	h := &hook{cache: cache, client: cache.Client(), timeout: o.Timeout, noTTL: o.DefaultTTL == 0, started: time.Now()}
	for _, opt := range opts {
		opt(h)
	}
	switch rdb := rdb.(type) {
	case *redis.Client:
		if err := sameServer(rdb.Options(), o); err != nil {
			return err
		}
		h.db = rdb.Options().DB
		h.resp3 = rdb.Options().Protocol != 2 && !o.Redis.AlwaysRESP2
		rdb.Options().ContextTimeoutEnabled = true
		rdb.AddHook(h)
	case *redis.ClusterClient:
		if err := sameCluster(rdb.Options(), o); err != nil {
			return err
		}
		h.resp3 = rdb.Options().Protocol != 2 && !o.Redis.AlwaysRESP2
		rdb.Options().ContextTimeoutEnabled = true
		h.nodes = true
		rdb.AddHook(h)
		// The nodes have clients of their own, and only those dial.
		rdb.OnNewNode(func(node *redis.Client) { node.AddHook(nodeHook{dialGuard{h}}) })
	case *redis.Ring:
		return errors.New("goredis: a Ring spreads its keys over several servers: the cache knows only one of them")
	default:
		return fmt.Errorf("goredis: cannot attach to a %T: pass a *redis.Client or a *redis.ClusterClient", rdb)
	}
	return nil
}

func sameServer(r *redis.Options, o holdfast.Options) error {
	sentinel := o.Redis.Sentinel.MasterSet != ""
	switch {
	case r.DB != o.Redis.SelectDB:
		return fmt.Errorf("goredis: the client uses database %d, and the cache %d (Redis.SelectDB)", r.DB, o.Redis.SelectDB)
	case r.Addr == failoverAddr && !sentinel:
		return errors.New("goredis: the client asks sentinels for its server: set Redis.Sentinel.MasterSet of the cache, too")
	case r.Addr == failoverAddr:
		return nil // its address does not show the sentinels
	case sentinel:
		return errors.New("goredis: the cache asks sentinels for its server: make the client with redis.NewFailoverClient")
	case o.Mode == holdfast.ModeCluster:
		return errors.New("goredis: the cache's Mode is cluster: make the client with redis.NewClusterClient")
	case !slices.ContainsFunc(o.Redis.InitAddress, func(addr string) bool { return canonical(addr) == canonical(r.Addr) }):
		return fmt.Errorf("goredis: the client goes to %s, and the cache to %v: write the address in the same way, should they be the same",
			r.Addr, o.Redis.InitAddress)
	}
	return nil
}

func sameCluster(r *redis.ClusterOptions, o holdfast.Options) error {
	if r.ClusterSlots != nil && len(r.Addrs) == 0 {
		return errors.New("goredis: the client finds its servers by a function, as one of redis.NewFailoverClusterClient does, and shows neither them nor its database: use redis.NewFailoverClient")
	}
	if o.Redis.Sentinel.MasterSet != "" || o.Mode == holdfast.ModeStandalone {
		return errors.New("goredis: the client is one of a cluster, and the cache is not")
	}
	for _, addr := range r.Addrs {
		if slices.ContainsFunc(o.Redis.InitAddress, func(own string) bool { return canonical(own) == canonical(addr) }) {
			return nil
		}
	}
	return fmt.Errorf("goredis: the client knows the cluster by %v, and the cache by %v: have them share an address",
		r.Addrs, o.Redis.InitAddress)
}

// canonical normalizes an address for comparison.
func canonical(addr string) string {
	addr = strings.TrimPrefix(addr, "unix://")
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	host = strings.ToLower(host)
	if ip := net.ParseIP(host); host == "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

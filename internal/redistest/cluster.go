package redistest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// Cluster is a redis cluster of real processes.
type Cluster struct {
	tb    testing.TB
	nodes []*Server
	ids   map[*Server]string
}

// StartCluster runs a cluster of masters that share the hash slots evenly, each
// with replicasPerMaster replicas. Nodes take each other for dead after one
// second, and a slot without a node does not stop the rest. It returns when
// every node knows all others, says that the cluster is fine, and the replicas
// are in sync, usually after three to five seconds; after a minute it fails the
// test. Everything ends with the test.
func StartCluster(tb testing.TB, masters, replicasPerMaster int) *Cluster {
	tb.Helper()
	if masters < 1 || replicasPerMaster < 0 {
		tb.Fatalf("redistest: a cluster of %d masters with %d replicas each", masters, replicasPerMaster)
	}
	c := &Cluster{tb: tb, ids: make(map[*Server]string)}
	args := append([]string{
		"--cluster-enabled", "yes",
		"--cluster-node-timeout", "1000",
		"--cluster-require-full-coverage", "no",
		// Replicas that change masters by themselves would surprise tests.
		"--cluster-allow-replica-migration", "no",
	}, replicationArgs...)
	for range masters * (1 + replicasPerMaster) {
		s := Start(tb, args...)
		c.nodes = append(c.nodes, s)
		c.ids[s] = s.MustDo("CLUSTER", "MYID")
	}
	c.assignSlots(masters)
	c.meet()
	c.await("all nodes to know each other", func() error {
		return c.all(func(s *Server) error { return knows(s, len(c.nodes)) })
	})
	replicas := make([][]*Server, masters)
	for i, s := range c.nodes[masters:] {
		s.MustDo("CLUSTER", "REPLICATE", c.ids[c.nodes[i%masters]])
		replicas[i%masters] = append(replicas[i%masters], s)
	}
	for i, of := range replicas {
		c.await("the replicas to be in sync", func() error { return inSync(c.nodes[i], of) })
	}
	c.await("all nodes to say that the cluster is fine", func() error {
		return c.all(func(s *Server) error { return c.fine(s, masters) })
	})
	return c
}

// assignSlots gives each master its share and an epoch of its own, so that the
// masters need not settle conflicts over epochs first.
func (c *Cluster) assignSlots(masters int) {
	c.tb.Helper()
	for i, s := range c.nodes {
		s.MustDo("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		if i < masters {
			first, next := i*slotCount/masters, (i+1)*slotCount/masters
			s.MustDo("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(next-1))
		}
	}
}

// meet introduces everybody to the first node; the rest is their gossip.
func (c *Cluster) meet() {
	c.tb.Helper()
	for _, s := range c.nodes[1:] {
		c.nodes[0].MustDo("CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(s.Port()))
	}
}

func (c *Cluster) await(what string, check func() error) {
	c.tb.Helper()
	await(c.tb, what, c.nodes, check)
}

func (c *Cluster) all(check func(*Server) error) error {
	for _, s := range c.nodes {
		if err := check(s); err != nil {
			return err
		}
	}
	return nil
}

// nodeLine is one line of CLUSTER NODES.
type nodeLine struct {
	id    string
	flags map[string]bool
	epoch int
	slots []string
	raw   string
}

func nodeLines(s *Server) ([]nodeLine, error) {
	out, err := s.call("CLUSTER", "NODES")
	if err != nil {
		return nil, err
	}
	var lines []nodeLine
	for raw := range strings.Lines(out.text) {
		f := strings.Fields(raw)
		if len(f) < 8 {
			return nil, fmt.Errorf("%s says of a node %q", s.Addr(), raw)
		}
		l := nodeLine{id: f[0], flags: make(map[string]bool), slots: f[8:], raw: raw}
		for flag := range strings.SplitSeq(f[2], ",") {
			l.flags[flag] = true
		}
		if l.epoch, err = strconv.Atoi(f[6]); err != nil {
			return nil, fmt.Errorf("%s says of a node %q", s.Addr(), raw)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// owns says whether the node serves the slot; slots on the move are listed in
// brackets and do not count.
func (l nodeLine) owns(slot int) bool {
	for _, r := range l.slots {
		if strings.HasPrefix(r, "[") {
			continue
		}
		from, to, ok := strings.Cut(r, "-")
		if !ok {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 == nil && err2 == nil && first <= slot && slot <= last {
			return true
		}
	}
	return false
}

// knows returns nil when a node has met n nodes, itself included.
func knows(s *Server, n int) error {
	lines, err := nodeLines(s)
	if err != nil {
		return err
	}
	if len(lines) != n {
		return fmt.Errorf("%s knows %d of %d nodes", s.Addr(), len(lines), n)
	}
	for _, l := range lines {
		for _, bad := range []string{"handshake", "noaddr", "fail", "fail?"} {
			if l.flags[bad] {
				return fmt.Errorf("%s says of a node %q", s.Addr(), l.raw)
			}
		}
	}
	return nil
}

// fine returns nil when a node sees the whole cluster in its final shape.
func (c *Cluster) fine(s *Server, masters int) error {
	if err := knows(s, len(c.nodes)); err != nil {
		return err
	}
	lines, err := nodeLines(s)
	if err != nil {
		return err
	}
	replicas := 0
	for _, l := range lines {
		if l.flags["slave"] {
			replicas++
		}
	}
	if want := len(c.nodes) - masters; replicas != want {
		return fmt.Errorf("%s sees %d of %d replicas", s.Addr(), replicas, want)
	}
	info, err := s.call("CLUSTER", "INFO")
	if err != nil {
		return err
	}
	for _, want := range []string{
		"cluster_state:ok",
		fmt.Sprintf("cluster_slots_ok:%d", slotCount),
		fmt.Sprintf("cluster_known_nodes:%d", len(c.nodes)),
		fmt.Sprintf("cluster_size:%d", masters),
	} {
		if !strings.Contains(info.text, want+"\r\n") {
			return fmt.Errorf("%s does not say %s", s.Addr(), want)
		}
	}
	return nil
}

// Addrs returns the addresses of all nodes, in the order of Nodes. It does not
// block.
func (c *Cluster) Addrs() []string { return addrs(c.nodes) }

// Nodes returns the nodes: first the first masters, then the replicas of the
// first, the second and so on of them, in turn; whatever their roles are now.
// It does not block.
func (c *Cluster) Nodes() []*Server { return append([]*Server(nil), c.nodes...) }

// NodeFor returns the master that serves the key, and fails the test when there
// is none. Every running node is asked what it serves itself; it blocks for 5
// seconds at most per node.
func (c *Cluster) NodeFor(key string) *Server {
	c.tb.Helper()
	return c.owner(Slot(key))
}

// owner believes the node with the highest epoch if several claim a slot: a
// master that is back after a failover does so until it hears of it.
func (c *Cluster) owner(slot int) *Server {
	c.tb.Helper()
	var found *Server
	epoch := -1
	for _, s := range c.nodes {
		if !s.responsive() {
			continue
		}
		lines, err := nodeLines(s)
		if err != nil {
			continue
		}
		for _, l := range lines {
			if l.flags["myself"] && l.flags["master"] && l.epoch > epoch && l.owns(slot) {
				found, epoch = s, l.epoch
			}
		}
	}
	if found == nil {
		c.tb.Fatalf("redistest: no running node serves slot %d", slot)
	}
	return found
}

// MoveSlot moves a slot with its keys to another master, the way a cluster is
// resharded: commands may be answered with ASK meanwhile and with MOVED
// afterwards. It returns when every running node knows the new owner, usually
// within a second, and fails the test on any error or after a minute.
func (c *Cluster) MoveSlot(slot int, to *Server) {
	c.tb.Helper()
	from := c.owner(slot)
	if from == to {
		return
	}
	n := strconv.Itoa(slot)
	to.MustDo("CLUSTER", "SETSLOT", n, "IMPORTING", c.ids[from])
	from.MustDo("CLUSTER", "SETSLOT", n, "MIGRATING", c.ids[to])
	c.moveKeys(n, from, to)
	// The new owner goes first: were the old one told first, it would send
	// clients to a node that still refuses them.
	to.MustDo("CLUSTER", "SETSLOT", n, "NODE", c.ids[to])
	from.MustDo("CLUSTER", "SETSLOT", n, "NODE", c.ids[to])
	c.await("every node to know the new owner of slot "+n, func() error {
		return c.all(func(s *Server) error { return seesOwner(s, slot, c.ids[to]) })
	})
}

func (c *Cluster) moveKeys(slot string, from, to *Server) {
	c.tb.Helper()
	for {
		out, err := from.call("CLUSTER", "GETKEYSINSLOT", slot, "100")
		if err != nil {
			c.tb.Fatalf("redistest: listing the keys of slot %s on %s: %v", slot, from.Addr(), err)
		}
		keys := out.strings()
		if len(keys) == 0 {
			return
		}
		from.MustDo(append([]string{
			"MIGRATE", "127.0.0.1", strconv.Itoa(to.Port()), "", "0", "5000", "KEYS",
		}, keys...)...)
	}
}

// seesOwner returns nil when a node has the owner of the slot right, and for
// nodes that do not answer anyway.
func seesOwner(s *Server, slot int, id string) error {
	if !s.responsive() {
		return nil
	}
	lines, err := nodeLines(s)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.owns(slot) && l.id != id {
			return fmt.Errorf("%s thinks that slot %d is with %s", s.Addr(), slot, l.id)
		}
		if l.owns(slot) {
			return nil
		}
	}
	return fmt.Errorf("%s knows nobody with slot %d", s.Addr(), slot)
}

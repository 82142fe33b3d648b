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
// test. Everything ends with the test, which is a long one: see Long.
func StartCluster(tb testing.TB, masters, replicasPerMaster int) *Cluster {
	tb.Helper()
	need(tb)
	Long(tb)
	return StartClusterForSmoke(tb, masters, replicasPerMaster)
}

// StartClusterForSmoke is StartCluster for the one test of a cluster that runs always.
func StartClusterForSmoke(tb testing.TB, masters, replicasPerMaster int) *Cluster {
	tb.Helper()
	need(tb)
	if masters < 1 || replicasPerMaster < 0 {
		tb.Fatalf("redistest: a cluster of %d masters with %d replicas each", masters, replicasPerMaster)
	}
	c := &Cluster{tb: tb, ids: make(map[*Server]string)}
	// Replicas that change masters by themselves would disturb tests.
	still, err := since7("--cluster-allow-replica-migration", "no")
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	args := append([]string{
		"--cluster-enabled", "yes",
		"--cluster-node-timeout", "1000",
		"--cluster-require-full-coverage", "no",
	}, append(still, replicationArgs...)...)
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

// assignSlots gives each master its share of the slots, and each node an epoch of its
// own, so that the masters need not resolve conflicts over epochs first.
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

// meet introduces all nodes to the first one; gossip does the rest.
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
	id     string
	flags  map[string]bool
	master string // "-" for a master
	epoch  int
	slots  []string
	raw    string
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
		l := nodeLine{id: f[0], flags: make(map[string]bool), master: f[3], slots: f[8:], raw: raw}
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

// owns reports whether the node serves the slot. Slots that are being moved are listed in
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

// knows returns nil if a node has met n nodes, itself included.
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

// fine returns nil if a node sees the whole cluster in its final form.
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
	return infoSays(s,
		"cluster_state:ok",
		fmt.Sprintf("cluster_slots_ok:%d", slotCount),
		fmt.Sprintf("cluster_known_nodes:%d", len(c.nodes)),
		fmt.Sprintf("cluster_size:%d", masters))
}

// infoSays returns nil if CLUSTER INFO of a node has all these lines.
func infoSays(s *Server, lines ...string) error {
	info, err := s.call("CLUSTER", "INFO")
	if err != nil {
		return err
	}
	for _, want := range lines {
		if !strings.Contains(info.text, want+"\r\n") {
			return fmt.Errorf("%s does not say %s", s.Addr(), want)
		}
	}
	return nil
}

// Addrs returns the addresses of all nodes, in the order of Nodes. It does not
// block.
func (c *Cluster) Addrs() []string { return addrs(c.nodes) }

// Nodes returns the nodes, regardless of their present roles: first the first masters,
// then the replicas of the first, the second and so on of them, in turn. It does not
// block.
func (c *Cluster) Nodes() []*Server { return append([]*Server(nil), c.nodes...) }

// ID returns the node id of a server, for CLUSTER SETSLOT and the like. It does not
// block.
func (c *Cluster) ID(s *Server) string { return c.ids[s] }

// NodeFor returns the master that serves the key, and fails the test if there is none. It
// asks every running node for the slots that it serves, and blocks for at most 5 seconds
// per node.
func (c *Cluster) NodeFor(key string) *Server {
	c.tb.Helper()
	return c.mustOwn(Slot(key))
}

// Owner is NodeFor for a test that waits for a failover: it returns nil if no running
// node serves the key.
func (c *Cluster) Owner(key string) *Server { return c.owner(Slot(key)) }

func (c *Cluster) mustOwn(slot int) *Server {
	c.tb.Helper()
	s := c.owner(slot)
	if s == nil {
		c.tb.Fatalf("redistest: no running node serves slot %d", slot)
	}
	return s
}

// owner returns the node with the highest epoch if several claim a slot: a master that
// returns after a failover claims its slots until it learns of the failover.
func (c *Cluster) owner(slot int) *Server {
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
	return found
}

// Configure sets a parameter on every running node. It blocks for 5 seconds at
// most per node.
func (c *Cluster) Configure(name, value string) {
	c.tb.Helper()
	for _, s := range c.nodes {
		if s.responsive() {
			s.MustDo("CONFIG", "SET", name, value)
		}
	}
}

// AwaitServed blocks until every running node reports that the cluster is fine and that
// all slots are served; after a minute it fails the test.
func (c *Cluster) AwaitServed() {
	c.tb.Helper()
	c.await("all slots to be served", func() error {
		return c.all(func(s *Server) error {
			if !s.responsive() {
				return nil
			}
			return infoSays(s, "cluster_state:ok", fmt.Sprintf("cluster_slots_ok:%d", slotCount))
		})
	})
}

// Failover makes a replica take over from its master without a loss; the master becomes
// its replica. It returns when every running node knows the new master and the old one is
// in sync, usually after a second; after a minute it fails the test.
func (c *Cluster) Failover(replica *Server) {
	c.tb.Helper()
	var master *Server
	slot := -1
	lines, err := nodeLines(replica)
	if err != nil {
		c.tb.Fatalf("redistest: %v", err)
	}
	for _, l := range lines {
		if !l.flags["myself"] {
			continue
		}
		for _, m := range lines {
			if m.id == l.master && len(m.slots) > 0 {
				first, _, _ := strings.Cut(m.slots[0], "-")
				slot, _ = strconv.Atoi(first)
				master = c.byID(m.id)
			}
		}
	}
	if master == nil || slot < 0 {
		c.tb.Fatalf("redistest: %s is nobody's replica", replica.Addr())
	}
	c.await("the replica to take over", func() error {
		if out, err := replica.Do("CLUSTER", "FAILOVER"); err != nil {
			// Once it is a master, it refuses a second FAILOVER.
			if err := c.all(func(s *Server) error { return seesOwner(s, slot, c.ids[replica]) }); err == nil {
				return inSync(replica, []*Server{master})
			}
			return fmt.Errorf("%s: %w", out, err)
		}
		return fmt.Errorf("%s was told just now", replica.Addr())
	})
}

func (c *Cluster) byID(id string) *Server {
	for s, known := range c.ids {
		if known == id {
			return s
		}
	}
	return nil
}

// MoveSlot moves a slot with its keys to another master, as in a reshard: meanwhile
// commands may be answered with ASK, and afterwards with MOVED. It returns when every
// running node knows the new owner, usually within a second, and fails the test on any
// error or after a minute.
func (c *Cluster) MoveSlot(slot int, to *Server) {
	c.tb.Helper()
	if m := c.BeginMove(slot, to); m != nil {
		m.AllKeys()
		m.End()
	}
}

// Move is a slot that is being moved from one master to another.
type Move struct {
	c        *Cluster
	slot     int
	from, to *Server
}

// BeginMove does the first third of MoveSlot: from now on the slot's owner answers with
// ASK for keys that it does not have. It returns nil if the slot is there already, and
// fails the test on any error; it blocks for some milliseconds.
func (c *Cluster) BeginMove(slot int, to *Server) *Move {
	c.tb.Helper()
	from := c.mustOwn(slot)
	if from == to {
		return nil
	}
	n := strconv.Itoa(slot)
	to.MustDo("CLUSTER", "SETSLOT", n, "IMPORTING", c.ids[from])
	from.MustDo("CLUSTER", "SETSLOT", n, "MIGRATING", c.ids[to])
	return &Move{c: c, slot: slot, from: from, to: to}
}

// Keys moves the given keys. It blocks for at most 5 seconds.
func (m *Move) Keys(keys ...string) {
	m.c.tb.Helper()
	m.from.MustDo(append([]string{
		"MIGRATE", "127.0.0.1", strconv.Itoa(m.to.Port()), "", "0", "5000", "KEYS",
	}, keys...)...)
}

// AllKeys moves all keys that the old owner still has. It blocks until they are moved.
func (m *Move) AllKeys() {
	m.c.tb.Helper()
	for {
		out, err := m.from.call("CLUSTER", "GETKEYSINSLOT", strconv.Itoa(m.slot), "100")
		if err != nil {
			m.c.tb.Fatalf("redistest: listing the keys of slot %d on %s: %v", m.slot, m.from.Addr(), err)
		}
		keys := out.strings()
		if len(keys) == 0 {
			return
		}
		m.Keys(keys...)
	}
}

// End assigns the slot to the new owner. It returns when every running node knows, and
// fails the test on any error, for example if keys were left behind.
func (m *Move) End() {
	m.c.tb.Helper()
	n := strconv.Itoa(m.slot)
	// The new owner goes first. In the other order the old owner would send clients to a
	// node that still refuses them.
	m.to.MustDo("CLUSTER", "SETSLOT", n, "NODE", m.c.ids[m.to])
	m.from.MustDo("CLUSTER", "SETSLOT", n, "NODE", m.c.ids[m.to])
	m.c.awaitOwner(m.slot, m.to)
}

func (c *Cluster) awaitOwner(slot int, to *Server) {
	c.tb.Helper()
	c.await(fmt.Sprintf("every node to know the new owner of slot %d", slot), func() error {
		epoch, err := epochOf(to, c.ids[to])
		if err != nil {
			return err
		}
		return c.all(func(s *Server) error {
			if err := seesOwner(s, slot, c.ids[to]); err != nil || !s.responsive() {
				return err
			}
			// A node that has not heard of this epoch would take the same one when the slot moves
			// on to it, and the others would not believe it.
			if seen, err := epochOf(s, c.ids[to]); err != nil || seen != epoch {
				return fmt.Errorf("%s has not heard of the owner's epoch %d: %d, %v", s.Addr(), epoch, seen, err)
			}
			return nil
		})
	})
}

// epochOf returns the configuration epoch of a node, as another node or the node itself knows it.
func epochOf(s *Server, id string) (int, error) {
	lines, err := nodeLines(s)
	if err != nil {
		return 0, err
	}
	for _, l := range lines {
		if l.id == id {
			return l.epoch, nil
		}
	}
	return 0, fmt.Errorf("%s does not know node %s", s.Addr(), id)
}

// Evict moves every slot of a master, with the keys, to another, as if the node were
// retired: all slots are moved at the same time. The node stays, a master without slots.
// It returns when every running node knows, after a few seconds, and fails the test on
// any error.
func (c *Cluster) Evict(from, to *Server) {
	c.tb.Helper()
	slots, err := slotsOf(from)
	if err != nil || len(slots) == 0 {
		c.tb.Fatalf("redistest: the slots of %s: %v, %v", from.Addr(), slots, err)
	}
	each := func(on *Server, words ...string) {
		c.tb.Helper()
		cmds := make([][]string, len(slots))
		for i, slot := range slots {
			cmds[i] = append([]string{"CLUSTER", "SETSLOT", strconv.Itoa(slot)}, words...)
		}
		if err := on.pipeline(cmds); err != nil {
			c.tb.Fatalf("redistest: CLUSTER SETSLOT %v on %s: %v", words, on.Addr(), err)
		}
	}
	each(to, "IMPORTING", c.ids[from])
	each(from, "MIGRATING", c.ids[to])
	out, err := from.call("KEYS", "*")
	if err != nil {
		c.tb.Fatalf("redistest: listing the keys on %s: %v", from.Addr(), err)
	}
	bySlot := map[int][]string{}
	for _, key := range out.strings() {
		bySlot[Slot(key)] = append(bySlot[Slot(key)], key)
	}
	for slot, keys := range bySlot {
		(&Move{c: c, slot: slot, from: from, to: to}).Keys(keys...)
	}
	each(to, "NODE", c.ids[to])
	each(from, "NODE", c.ids[to])
	c.awaitOwner(slots[0], to)
	c.awaitOwner(slots[len(slots)-1], to)
}

// slotsOf returns the slots that a node claims to serve.
func slotsOf(s *Server) ([]int, error) {
	lines, err := nodeLines(s)
	if err != nil {
		return nil, err
	}
	var slots []int
	for _, l := range lines {
		for slot := range slotCount {
			if l.flags["myself"] && l.owns(slot) {
				slots = append(slots, slot)
			}
		}
	}
	return slots, nil
}

// seesOwner returns nil if a node knows the owner of the slot, and for nodes that are not
// running or paused.
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

package local

import (
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// A stored reply is an entry of its own: the reply of Redis to a read command other than GET. The
// policy judges each by itself, as it judges values. All replies of a key belong to one version of
// the key, which the key's replySet counts: an invalidation or an own write ends all of them at
// once, whatever their number.

// replySet has the stored replies of one key. The holder of the stripe's lock changes it; readers
// look at the version only.
type replySet struct {
	place   uint64        // of the key
	version atomic.Uint64 // of the key: replies of an earlier one have ended
	scope   *EpochScope
	epoch   uint32 // in which the replies were read
	end     int64  // of the life of all of the replies
	bytes   int64

	oldest, newest *Reply // a list; a reply that was used becomes the newest before it would go
}

// Reply is the head of a stored reply, a ReplyAs[V]. It is attached to its entry as a decoded value
// is.
type Reply struct {
	Decoded
	set          *replySet
	version      uint64
	place        uint64 // of its slot
	used         atomic.Bool
	older, newer *Reply
}

// ReplyAs is a stored reply.
type ReplyAs[V any] struct {
	Reply
	Value V
}

const (
	// endedAtOnce bounds the ended replies that are removed, and the used ones that are passed over,
	// while a reply is stored.
	endedAtOnce = 64

	// replyBytes is the size of a Reply without its value.
	replyBytes = int64(unsafe.Sizeof(Reply{}))

	// largestReply is more than an entry may take.
	largestReply = 1 << 30

	// setBytes is the size of a replySet and of its place in the stripe's map.
	setBytes = int64(unsafe.Sizeof(replySet{})) + 32
)

// reply returns the reply that the entry stands for, or nil.
func (e *Entry) reply() *Reply {
	if e == nil || !keyhash.IsExtended(e.check) {
		return nil
	}
	return (*Reply)(unsafe.Pointer(e.decoded.Load()))
}

// ended reports whether the key may have another value than when the reply was given.
func (r *Reply) ended() bool { return r.version != r.set.version.Load() }

// CommandHash returns the hash of a command on a key, given without the key. It leads to the key's
// stripe, so one lock and one version guard the key and the replies.
func (l *Tier) CommandHash(key keyhash.Hash, args []string, keyAt int) keyhash.Hash {
	h := key
	for i, arg := range args {
		if i != keyAt {
			h = l.keys.Extend(h, arg)
		}
	}
	h.Place = max(h.Place, stripeCount)&^(stripeCount-1) | key.Place&(stripeCount-1)
	return h
}

// StoredReply returns the entry and the value of a stored reply, fresh or not, or nil for both. It
// does not block. V is the type that the reply was stored with.
func StoredReply[V any](l *Tier, command keyhash.Hash) (*Entry, *V) {
	e := l.Get(command)
	r := e.reply()
	if r == nil || r.ended() {
		return nil, nil
	}
	if !r.used.Load() {
		r.used.Store(true)
	}
	return e, &(*ReplyAs[V])(unsafe.Pointer(r)).Value
}

// FillReply stores the reply to a command on the key, as Fill stores a value. size is the number of
// bytes that the value keeps on the heap beside itself. A reply that is too large ends the one before it.
func FillReply[V any](l *Tier, key, command keyhash.Hash, value V, size int64, t Token, f Freshness) bool {
	size += replyBytes + int64(unsafe.Sizeof(value))
	r := &ReplyAs[V]{Value: value}
	r.Size, r.place = int32(min(size, largestReply)), command.Place
	e := NewEntry("", nil, f)
	e.check = command.Check
	e.decoded.Store(&r.Decoded)

	s, k, _ := l.lock(key)
	defer l.unlock(s, command)
	at := s.find(command.Place)
	if old := at.reply(command); !s.fillable(k, t) {
		// The caller gets this reply, so no later call may get an older one.
		if old.olderThan(k, f.Confirmed) {
			l.replace(s, at, nil)
		}
		return false
	} else if old != nil && old.Confirmed.Load() > f.Confirmed && !old.reply().ended() {
		return false
	}
	set := s.replySetOf(key.Place)
	set.enter(t, f.Confirmed)
	set.end = max(set.end, f.Expires)
	r.set, r.version = set, set.version.Load()
	if set.holdsOnly(command.Place) {
		r.Size += int32(setBytes)
	}
	fits := l.put(s, at, command, e)
	l.boundReplies(s, set)
	s.dropIfEmpty(set)
	return fits
}

// reply returns the entry of a stored reply, or nil. The slot may be nil.
func (s *slot) reply(command keyhash.Hash) *Entry {
	if s == nil {
		return nil
	}
	return s.of(command)
}

// replySetOf returns the set of the replies of a key, a new one if there is none.
func (s *stripe) replySetOf(place uint64) *replySet {
	if set := s.replies[place]; set != nil {
		return set
	}
	if s.replies == nil {
		s.replies = map[uint64]*replySet{}
	}
	set := &replySet{place: place}
	s.replies[place] = set
	return set
}

// holdsOnly reports whether the set has no reply beside the one at that place. Such a reply counts
// with the set.
func (set *replySet) holdsOnly(place uint64) bool {
	return set.oldest == nil || set.oldest == set.newest && set.oldest.place == place
}

// enter is called before an answer is stored that was read at the given time, under the token. Replies
// of an earlier epoch end, and so do replies whose time is over: they may be of an earlier version of
// the key, and must not be served after the answer.
func (set *replySet) enter(t Token, read int64) {
	if set.scope != t.Scope || set.epoch != t.Epoch || set.end <= read {
		set.scope, set.epoch = t.Scope, t.Epoch
		set.advance()
	}
}

// enterReplies is enter for the replies of a key, if it has any.
func (s *stripe) enterReplies(h keyhash.Hash, t Token, read int64) {
	if set := s.replies[h.Place]; set != nil {
		set.enter(t, read)
	}
}

// advance ends the replies.
func (set *replySet) advance() {
	set.version.Add(1)
	set.end = 0
}

// changed records that the key may have another value from now on: answers that were read before
// are not stored, and the stored replies of the key end. It returns the sequence number of the
// change. The caller holds the stripe.
func (s *stripe) changed(h keyhash.Hash) (seq uint64) {
	if set := s.replies[h.Place]; set != nil {
		set.advance()
	}
	return s.version.Add(1)
}

// invalidated is changed for an invalidation. Replies whose time is over do not end: as with copies,
// the server may be announcing just that, and Outage.ServeStaleFor may still use them.
func (s *stripe) invalidated(h keyhash.Hash, now int64) {
	if set := s.replies[h.Place]; set == nil || now < set.end {
		s.changed(h)
		return
	}
	s.version.Add(1)
}

// boundReplies removes replies of the set that have ended, and the least used ones as long as all
// of them take more than one entry may. The caller holds the stripe.
func (l *Tier) boundReplies(s *stripe, set *replySet) {
	for removed, passed := 0, 0; set.oldest != nil; {
		r := set.oldest
		switch ended := r.ended(); {
		case ended && removed < endedAtOnce:
			removed++
		case set.bytes <= l.maxEntry:
			return
		case !ended && passed < endedAtOnce && r.used.Swap(false):
			passed++
			set.unlink(r)
			set.link(r)
			continue
		}
		l.replace(s, s.find(r.place), nil)
	}
}

// replaceReply keeps the sets of replies in step with the index. The caller holds the stripe.
func (s *stripe) replaceReply(old, e *Entry) {
	if r := e.reply(); r != nil {
		r.set.link(r)
		r.set.bytes += e.size()
	}
	if r := old.reply(); r != nil {
		r.set.unlink(r)
		r.set.bytes -= old.size()
		s.dropIfEmpty(r.set)
	}
}

func (s *stripe) dropIfEmpty(set *replySet) {
	if set.oldest == nil && s.replies[set.place] == set {
		delete(s.replies, set.place)
	}
}

// link makes the reply the newest of the set.
func (set *replySet) link(r *Reply) {
	r.older, r.newer = set.newest, nil
	if set.newest == nil {
		set.oldest = r
	} else {
		set.newest.newer = r
	}
	set.newest = r
}

func (set *replySet) unlink(r *Reply) {
	if r.older == nil {
		set.oldest = r.newer
	} else {
		r.older.newer = r.newer
	}
	if r.newer == nil {
		set.newest = r.older
	} else {
		r.newer.older = r.older
	}
	r.older, r.newer = nil, nil
}

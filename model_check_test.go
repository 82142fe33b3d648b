package holdfast_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// model is what may be read, and what Redis may hold, going by what callers were
// told and by what others wrote. It knows nothing of how the Cache works. The
// callers of one key come one after the other; others write when they like.
//
// What it holds the Cache to:
//   - After a write of ours returned nil, nothing older is read: only its value,
//     what others wrote since it began, or a miss. Where Redis loses what it had
//     acknowledged, what it holds then is as if another had written it.
//   - When the journal is done, Redis holds ours, theirs or nothing: the value of
//     our last write, the last of somebody else's, and of the two none that the
//     other has replaced.
//   - What others wrote after our last write returned is not overwritten by it.
//   - A delete that was the last that anybody did to a key has been done.
//   - A set that nobody disputes is there, until its time runs out.
type model struct {
	rule holdfast.ConflictRule

	mu   sync.Mutex
	keys map[string]*modelKey
}

type modelKey struct {
	mine   *modelWrite     // our last write that was accepted
	now    *modelWrite     // the one under way
	may    map[string]bool // what may be read beside a miss
	theirs string          // what others left there last, "" for nothing
	others []otherWrite    // since our last write began

	seen      map[string]bool // all values that it had
	known     bool            // Redis had a lasting value when last heard of, and is the same since
	overruled bool            // what others did last is newer than ours, and can be told from it
	ambiguous bool            // a write of ours may have run at any time since

	disputed bool // somebody else wrote since we knew what Redis holds, or it lost data
	unsure   bool // a write of ours that was not accepted may have been done
	queued   bool // what is in the journal, if anything is, is our last write
	kept     bool // our last set is to be there, if it is not disputed
	blind    bool // the local copy is gone, and with it what was known of Redis
	drops    int  // how often the Cache said that it could not keep a write

	// A Touch that got no answer may run late, and nothing takes it back: what is
	// written meanwhile may end with it, or not at all.
	touches []time.Duration

	readers map[*modelRead]bool
}

// modelWrite is a write of ours; value is "" for a delete.
type modelWrite struct {
	value string
	began time.Time
	ends  time.Time // not before that its time runs out; zero for never
	gone  time.Time // and certainly by then
	drops int       // of the key, when it began
}

// otherWrite is somebody else's.
type otherWrite struct {
	value string
	ended time.Time // zero: under way
}

// modelRead is a read under way: what may be read at any time of it may be its answer.
type modelRead struct {
	key string
	may map[string]bool
}

// modelSlack is by how much longer a value may live in Redis than it was meant to:
// its time counts from when the command ran.
const modelSlack = 10 * time.Second

// modelRounding is by how much less: what is left of it is told in milliseconds.
const modelRounding = 20 * time.Millisecond

func newModel(rule holdfast.ConflictRule) *model {
	return &model{rule: rule, keys: map[string]*modelKey{}}
}

func (m *model) key(name string) *modelKey {
	k := m.keys[name]
	if k == nil {
		k = &modelKey{may: map[string]bool{}, seen: map[string]bool{}, readers: map[*modelRead]bool{}}
		m.keys[name] = k
	}
	return k
}

// allow adds what may be read.
func (k *modelKey) allow(value string) {
	if value == "" {
		return
	}
	k.may[value] = true
	for r := range k.readers {
		r.may[value] = true
	}
}

// begin is a write of ours that is about to be made; "" is a delete.
func (m *model) begin(key, value string, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	w := &modelWrite{value: value, began: time.Now(), drops: k.drops}
	if ttl > 0 {
		w.ends = w.began.Add(ttl)
	}
	k.now = w
	k.seen[value] = true
	for r := range k.readers {
		r.may[value] = true
	}
}

// accepted is that write, returned with nil. journaled: Redis has not acknowledged
// it, and may have got it (sent) or not. whole: what is journaled has its value.
func (m *model) accepted(key string, journaled, sent, whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	w := k.now
	if !w.ends.IsZero() {
		w.gone = time.Now().Add(w.ends.Sub(w.began) + modelSlack)
	}
	for _, ttl := range k.touches {
		w.maybe(w.began, ttl)
	}
	k.now, k.mine, k.unsure = nil, w, false
	k.queued, k.overruled = journaled, false
	k.ambiguous = k.ambiguous || journaled && sent
	k.known = w.value != "" && w.ends.IsZero() && (k.known || !journaled && !k.disputed)
	k.blind = k.blind && journaled
	k.kept = !journaled || whole && !k.blind && k.drops == w.drops
	since := k.others[:0]
	for _, o := range k.others {
		if o.ended.IsZero() || !o.ended.Before(w.began) {
			since = append(since, o)
		}
	}
	k.others = since
	if !journaled {
		k.disputed = len(since) > 0
	}
	k.may = map[string]bool{}
	k.allow(w.value)
	for _, o := range since {
		k.allow(o.value)
	}
	// Kept where it conflicts, another's value may stay although it is older.
	if m.rule == holdfast.ConflictKeep && journaled && w.value != "" {
		if k.disputed {
			k.allow(k.theirs)
		}
		if k.blind { // even one of an earlier process, by who was never connected
			k.unsure = true
			for value := range k.seen {
				k.allow(value)
			}
		}
	}
}

// failed is that write, returned with an error. done: it may have been done all
// the same.
func (m *model) failed(key string, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	if done {
		k.allow(k.now.value)
		k.unsure, k.ambiguous = true, true
	}
	k.blind, k.known = true, false
	k.now = nil
}

// undone is a write of ours that was not made, or is taken back. sent: it went to
// Redis, so what we wrote before was no longer in the journal.
func (m *model) undone(key string, sent bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	k.now = nil
	k.known = k.known && !sent
	k.queued = k.queued && !sent
}

// dropped is told that a write could not be kept.
func (m *model) dropped(d holdfast.Drop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.key(d.Key); d.Reason != holdfast.DropSuperseded {
		k.drops++
		k.kept = k.kept && d.Reason == holdfast.DropRefused
	}
}

// touched is our last write given another end; done is whether that is certain.
func (m *model) touched(key string, began time.Time, ttl time.Duration, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	k.known = false
	if !done {
		k.touches = append(k.touches, ttl)
	}
	w := k.mine
	switch {
	case w == nil:
	case !done:
		w.maybe(began, ttl)
	case ttl == 0:
		w.ends, w.gone = time.Time{}, time.Time{}
	default:
		w.ends, w.gone = began.Add(ttl), time.Now().Add(ttl+modelSlack)
	}
}

// maybe gives the write an end that it may have, or not.
func (w *modelWrite) maybe(began time.Time, ttl time.Duration) {
	if ttl == 0 {
		w.gone = time.Time{}
		return
	}
	if ends := began.Add(ttl); w.ends.IsZero() || ends.Before(w.ends) {
		w.ends = ends
	}
	if gone := time.Now().Add(ttl + modelSlack); !w.gone.IsZero() && gone.After(w.gone) {
		w.gone = gone
	}
}

// other makes somebody else's write: do is called while it is under way. "" is a
// delete.
func (m *model) other(key, value string, ttl time.Duration, do func()) {
	m.mu.Lock()
	k := m.key(key)
	last := k.mine
	over := last != nil && k.now == nil && value != "" && ttl == 0 && !k.seen[value]
	over = over || last != nil && k.now == nil && value == "" && k.known
	k.seen[value] = true
	k.disputed, k.known, k.overruled = true, false, false
	k.allow(value)
	k.others = append(k.others, otherWrite{value: value})
	m.mu.Unlock()
	do()
	m.mu.Lock()
	defer m.mu.Unlock()
	k.theirs = value
	k.overruled = over && k.now == nil && k.mine == last
	for i := range k.others {
		if k.others[i].value == value && k.others[i].ended.IsZero() {
			k.others[i].ended = time.Now()
			break
		}
	}
}

// lost says that Redis lost what it held, and holds value now. queued: something of
// ours had not been acknowledged, and is still to be replayed.
func (m *model) lost(key, value string, queued bool) {
	m.mu.Lock()
	k := m.key(key)
	k.seen[value], k.known, k.overruled = true, false, false
	queued = queued && k.queued
	if queued && value != "" {
		k.disputed = true // it is not what was there when it was last looked at
	}
	m.mu.Unlock()
	if !queued {
		m.other(key, value, time.Hour, func() {})
	}
}

// moved says that another server holds now what this one held.
func (m *model) moved(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	k.known = false
	k.overruled = k.overruled && k.theirs != ""
}

// forgot says that the local tier is gone.
func (m *model) forgot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keys {
		k.blind, k.known = true, false
	}
}

// reading begins a read; answered ends it.
func (m *model) reading(key string) *modelRead {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	r := &modelRead{key: key, may: map[string]bool{}}
	for v := range k.may {
		r.may[v] = true
	}
	if k.now != nil {
		r.may[k.now.value] = true
	}
	k.readers[r] = true
	return r
}

func (m *model) answered(r *modelRead, value string, found bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(r.key)
	delete(k.readers, r)
	switch {
	case !found:
		return nil
	case !r.may[value] || value == "":
		return fmt.Errorf("read %s = %.10q, which is older or was never there; %s", r.key, value, k.describe())
	case k.expired(value):
		return fmt.Errorf("read %s = %.10q, whose time has run out; %s", r.key, value, k.describe())
	}
	return nil
}

// expired says whether the value can only be a write of ours that has expired.
func (k *modelKey) expired(value string) bool {
	w := k.mine
	if w == nil || w.value != value || w.gone.IsZero() || !time.Now().After(w.gone) || value == k.theirs {
		return false
	}
	return !slices.ContainsFunc(k.others, func(o otherWrite) bool { return o.value == value })
}

// holds judges what Redis holds for a key that the journal has not, or is done with.
func (m *model) holds(key, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	w := k.mine
	switch {
	case value != "" && !k.may[value]:
		return fmt.Errorf("redis holds %s = %.10q, which was replaced; %s", key, value, k.describe())
	case value != "" && !k.unsure && value != k.theirs && (w == nil || value != w.value):
		return fmt.Errorf("redis holds %s = %.10q, which was replaced by both; %s", key, value, k.describe())
	case value != "" && k.overruled && m.rule != holdfast.ConflictOverwrite && !k.ambiguous && w != nil && value == w.value:
		return fmt.Errorf("redis holds %s = %.10q, which has overwritten what others wrote later; %s", key, value, k.describe())
	case value != "" && k.expired(value):
		return fmt.Errorf("redis holds %s = %.10q, whose time has run out; %s", key, value, k.describe())
	case value == "" && w != nil && w.value != "" && k.kept && !k.unsure && !k.disputed &&
		(w.ends.IsZero() || time.Until(w.ends) > modelRounding):
		return fmt.Errorf("redis lost %s: nobody else wrote it; %s", key, k.describe())
	}
	return nil
}

// rest takes what Redis holds as what is known of the key, now that all is settled.
func (m *model) rest(key, value string, lasts bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.key(key)
	if k.disputed || k.unsure || k.mine == nil || k.mine.value != value {
		k.mine, k.theirs = nil, value // or of the same bytes, with another end
	} else {
		k.theirs = ""
	}
	k.may, k.others, k.touches = map[string]bool{}, nil, nil
	k.unsure, k.disputed, k.blind, k.overruled, k.ambiguous = false, false, false, false, false
	k.known = value != "" && lasts
	k.allow(value)
}

func (k *modelKey) describe() string {
	mine := "nothing of ours"
	if w := k.mine; w != nil {
		mine = fmt.Sprintf("ours is %.10q", w.value)
	}
	var may []string
	for v := range k.may {
		may = append(may, fmt.Sprintf("%.10q", v))
	}
	slices.Sort(may)
	return fmt.Sprintf("%s, theirs %.10q, allowed %s; disputed %t, unsure %t, kept %t, blind %t, overruled %t, ambiguous %t",
		mine, k.theirs, strings.Join(may, " "), k.disputed, k.unsure, k.kept, k.blind, k.overruled, k.ambiguous)
}

// failures gives the errors of a write to its keys: all of them, or some.
func failures(err error, keys []string) map[string]error {
	failed := map[string]error{}
	var walk func(err error)
	walk = func(err error) {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, one := range many.Unwrap() {
				walk(one)
			}
			return
		}
		var one *holdfast.Error
		if errors.As(err, &one) && one.Key != "" {
			failed[one.Key] = err
			return
		}
		for _, key := range keys {
			failed[key] = err
		}
	}
	if err != nil {
		walk(err)
	}
	return failed
}

package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// modelCaller makes calls and tells the model of them. The writes of one key must
// come one after the other.
type modelCaller struct {
	c *holdfast.Cache
	m *model

	log  func(format string, args ...any)
	fail func(error)
	told func()                       // waits until the hooks have been told of what was done, if it can
	sent func(key, value string) bool // whether a SET of it may have reached Redis

	whole bool // the journal keeps values
}

// do makes the call, if it is one.
func (r *modelCaller) do(op modelOp) bool {
	switch op.kind {
	case opSet, opSetMany, opDelete, opSetHurried:
		r.write(op)
	case opAdd:
		r.add(op)
	case opTouch:
		r.touch(op)
	case opGet:
		r.get(op.keys[0])
	case opGetMany:
		r.getMany(op.keys)
	default:
		return false
	}
	return true
}

// write makes a set or a delete of one key or several.
func (r *modelCaller) write(op modelOp) {
	ctx := context.Background()
	if op.kind == opSetHurried {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, op.wait)
		defer cancel()
	}
	for _, key := range op.keys {
		r.log("%s: %v", key, op)
		r.m.begin(key, op.value, op.ttl)
	}
	before := r.c.Stats().Journaled
	var err error
	switch op.kind {
	case opDelete:
		err = r.c.Delete(ctx, op.keys...)
	case opSetMany:
		items := map[string][]byte{}
		for _, key := range op.keys {
			items[key] = []byte(op.value)
		}
		err = r.c.SetMany(ctx, items, op.ttl)
	default:
		err = r.c.Set(ctx, op.keys[0], []byte(op.value), op.ttl)
	}
	some := r.c.Stats().Journaled != before // and if it is others', no harm is done
	r.told()
	failed := failures(err, op.keys)
	for _, key := range op.keys {
		r.wrote(key, op.value, some, failed[key])
	}
}

// wrote takes what a write of one key returned.
func (r *modelCaller) wrote(key, value string, journaled bool, err error) {
	r.log("%s: wrote %.10q: %v, journaled %t", key, value, err, journaled)
	switch {
	case err == nil:
		r.m.accepted(key, journaled, value == "" || r.sent(key, value), r.whole)
	case errors.Is(err, context.DeadlineExceeded):
		r.m.failed(key, true)
	case errors.Is(err, holdfast.ErrJournalFull):
		r.m.failed(key, value == "" || r.sent(key, value))
	default:
		r.fail(fmt.Errorf("write of %s: %w", key, err))
	}
}

func (r *modelCaller) add(op modelOp) {
	key := op.keys[0]
	r.m.begin(key, op.value, op.ttl)
	added, err := r.c.Add(context.Background(), key, []byte(op.value), op.ttl)
	r.told()
	r.log("%s: added %.10q: %t, %v", key, op.value, added, err)
	switch {
	case added:
		r.wrote(key, op.value, false, nil)
	case errors.Is(err, holdfast.ErrJournalFull):
		r.wrote(key, op.value, true, err)
	case err == nil, errors.Is(err, holdfast.ErrUnavailable):
		r.m.undone(key, r.sent(key, op.value))
	default:
		r.fail(fmt.Errorf("add of %s: %w", key, err))
	}
}

func (r *modelCaller) touch(op modelOp) {
	began := time.Now()
	err := r.c.Touch(context.Background(), op.keys[0], op.ttl)
	r.log("%s: touched: %v", op.keys[0], err)
	if err != nil && !errors.Is(err, holdfast.ErrMiss) && !errors.Is(err, holdfast.ErrUnavailable) {
		r.fail(fmt.Errorf("touch of %s: %w", op.keys[0], err))
	}
	if !errors.Is(err, holdfast.ErrMiss) {
		r.m.touched(op.keys[0], began, op.ttl, err == nil)
	}
}

func (r *modelCaller) get(key string) {
	read := r.m.reading(key)
	e, err := r.c.Lookup(context.Background(), key)
	r.log("%s: got %.10q, %v, %v", key, e.Value, e.Tier, err)
	if err != nil && !errors.Is(err, holdfast.ErrMiss) {
		r.fail(fmt.Errorf("get of %s: %w", key, err))
	}
	r.fail(r.m.answered(read, string(e.Value), err == nil))
}

func (r *modelCaller) getMany(keys []string) {
	var reads []*modelRead
	for _, key := range keys {
		reads = append(reads, r.m.reading(key))
	}
	found, err := r.c.GetMany(context.Background(), keys...)
	r.fail(err)
	for i, key := range keys {
		value, ok := found[key]
		r.fail(r.m.answered(reads[i], string(value), ok))
	}
}

package link

import "context"

// AwaitLink waits for a session of the link that find returns, as long as an attempt may bring one
// (see Moment). It waits within the budget of a call that began at now, and calls find again after
// each attempt, because the first one may find a cluster. If the gate is open, or no attempt can be
// waited for, it returns at once. waited reports whether it waited.
func (r *Remote) AwaitLink(ctx context.Context, now int64, first bool, find func() *Link) (l *Link, waited bool) {
	l = find()
	if l.Gate.Load() != nil {
		return l, false
	}
	l.Use()
	m := l.window(first)
	if m == nil {
		return l, false
	}
	bounded, cancel := r.Bound(ctx, now)
	defer cancel()
	for m != nil {
		select {
		case <-m.over:
		case <-bounded.Done():
			return l, true
		}
		if l = find(); l.Gate.Load() != nil {
			return l, true
		}
		m = l.window(first)
	}
	return l, true
}

// AwaitKey is AwaitLink for the link of key, for a call that found no session. It returns true if
// the call must look again: there is a session now, or it waited.
func (r *Remote) AwaitKey(ctx context.Context, now int64, first bool, key string) (again bool) {
	l, waited := r.AwaitLink(ctx, now, first, func() *Link { return r.routes.Link(r.routes.Of(key)) })
	return waited || l.Gate.Load() != nil
}

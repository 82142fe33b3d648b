package goredis

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Reads are most of the calls of a cache. If they are made by go-redis' own methods, they
// take a short path: nothing is encoded, no command is built, no reply is parsed.

// plainGet returns the key of a GET.
func plainGet(cmd *redis.StringCmd) (string, bool) {
	args := cmd.Args()
	if len(args) != 2 || args[0] != "get" {
		return "", false
	}
	key, ok := args[1].(string)
	return key, ok
}

// get answers a GET. The value is a copy, because a caller of the command's Bytes may
// modify it.
func (h *hook) get(ctx context.Context, cmd *redis.StringCmd, key string) error {
	v, err := h.cache.Get(ctx, key)
	if err == nil {
		cmd.SetVal(string(v))
	} else {
		err = replyError(err, "")
	}
	cmd.SetErr(err)
	return err
}

// plainMGet returns the keys of an MGET.
func plainMGet(cmd *redis.SliceCmd) ([]string, bool) {
	args := cmd.Args()
	if len(args) < 2 || args[0] != "mget" {
		return nil, false
	}
	keys := make([]string, len(args)-1)
	for i, arg := range args[1:] {
		key, ok := arg.(string)
		if !ok {
			return nil, false
		}
		keys[i] = key
	}
	return keys, true
}

// mget answers an MGET. It returns false if GetMany failed: for a key that is not a
// string, MGET returns nil and GetMany an error.
func (h *hook) mget(ctx context.Context, cmd *redis.SliceCmd, keys []string) bool {
	found, err := h.cache.GetMany(ctx, keys...)
	if err != nil {
		return false
	}
	all := make([]any, len(keys))
	for i, key := range keys {
		if v, ok := found[key]; ok {
			all[i] = string(v)
		}
	}
	cmd.SetVal(all)
	cmd.SetErr(nil)
	return true
}

// plainGets returns the keys of a pipeline that consists of GETs only.
func plainGets(cmds []redis.Cmder) ([]string, bool) {
	var keys []string
	for _, cmd := range cmds {
		get, ok := cmd.(*redis.StringCmd)
		if !ok {
			return nil, false
		}
		key, ok := plainGet(get)
		if !ok {
			return nil, false
		}
		if keys == nil {
			keys = make([]string, 0, len(cmds))
		}
		keys = append(keys, key)
	}
	return keys, len(keys) > 0
}

// gets answers such a pipeline. It returns false if GetMany failed, because then each
// command must get its own error.
func (h *hook) gets(ctx context.Context, cmds []redis.Cmder, keys []string) (first error, done bool) {
	found, err := h.cache.GetMany(ctx, keys...)
	if err != nil {
		return nil, false
	}
	for i, key := range keys {
		get := cmds[i].(*redis.StringCmd)
		if v, ok := found[key]; ok {
			get.SetVal(string(v))
			get.SetErr(nil)
			continue
		}
		get.SetErr(redis.Nil)
		first = redis.Nil
	}
	return first, true
}

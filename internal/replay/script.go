package replay

import (
	"context"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Script compares and writes inside Redis, where no other client can write in
// between. Each key of KEYS has four values in ARGV:
//
//	1  set, keep, overwrite: replay a set under ConflictDelete, ConflictKeep or
//	   ConflictOverwrite
//	   delete: replay a delete, or a set that has expired
//	   reset, redelete: the second check, which only compensates our own late writes
//	2  the value
//	3  its remaining life in ms, 0 for no expiry
//	4  the expected state: digests of the base and of our own late values, and
//	   "absent" where a missing key is no conflict; in a second check, where one of
//	   our own late writes may have deleted the key, or its value may have expired
//
// It returns for each key a verdict, or the error of Redis for that key alone. Redis before
// version 7 puts the script's line before such an error, and the script removes it.
//
// A set that finds the key missing, and should not, changes nothing and returns GONE. Only
// the moment of the answer bounds when the script ran: until then the previous value may
// have expired.
//
// A set that finds another writer's value changes nothing either. If it deleted the value
// and its answer were lost, the next try would find nothing, and so would a set that runs
// late. Both could take that for no conflict.
//
// The script reads with GETEX, which counts as a write. Redis before 7.2 remembers, for a
// connection that tracks its reads, all keys of a script at each read within it; that took
// twice as long as all the rest. GET is used where GETEX is missing (before 6.2) or not
// permitted. GET is also used until the script has written a set, and deletes come last:
// Redis checks for free memory before a write only while the script has written nothing.
const Script = `
local DONE, UNDONE, GONE, LEFT, THEIRS, LATER = 1, 2, 3, 4, 5, 6
local looked, wrote, getex, full = 0, false, true, nil

local function refused(reply) return type(reply) == 'table' and reply['err'] end
local function noString(reply) return string.find(refused(reply) or '', 'WRONGTYPE', 1, true) end

local function answer(reply, otherwise)
  if noString(reply) then return LEFT end
  local err = refused(reply)
  if not err then return otherwise end
  return {err = (string.gsub(err, '^@user_script: ?%d+: %-', ''))}
end

local function look(key)
  if getex and wrote then
    local value = redis.pcall('GETEX', key)
    if noString(value) or not refused(value) then return value end
    getex = false
  end
  return redis.pcall('GET', key)
end

local function delete(key, otherwise) return answer(redis.pcall('DEL', key), otherwise) end

local function set(key, value, ttl, ...)
  local reply
  if ttl == '0' then
    reply = redis.pcall('SET', key, value, ...)
  else
    reply = redis.pcall('SET', key, value, 'PX', ttl, ...)
  end
  local err = refused(reply)
  if reply and not err then wrote = true end
  if err and string.find(err, 'OOM', 1, true) then full = reply end
  return reply
end

local function write(key, value, ttl) return answer(set(key, value, ttl), DONE) end

local function lengthen(key, ttl)
  if ttl == '0' then return answer(redis.pcall('PERSIST', key), DONE) end
  return answer(redis.pcall('PEXPIRE', key, ttl), DONE)
end

local function replay(key, op, value, ttl, ours)
  if op == 'delete' then
    local length = redis.pcall('STRLEN', key)
    if refused(length) then return answer(length) end
    return delete(key, DONE)
  end
  if full and op ~= 'redelete' then return answer(full) end
  if op ~= 'redelete' and string.find(ours, 'absent', 1, true) then
    local reply = set(key, value, ttl, 'NX')
    if reply then return answer(reply, DONE) end
  end
  local now = look(key)
  if refused(now) then return answer(now) end
  if now then looked = looked + #now end
  if op == 'overwrite' then return write(key, value, ttl) end
  if op ~= 'redelete' and now == value then return lengthen(key, ttl) end
  if now and ours ~= '' and string.find(ours, redis.sha1hex(now), 1, true) then
    if op == 'redelete' then return delete(key, UNDONE) end
    return write(key, value, ttl)
  end
  if op == 'redelete' or op == 'reset' and now then return DONE end
  if not now then return GONE end
  if op == 'keep' then return LEFT end
  return THEIRS
end

local answers = {}
local function all(deletes)
  for i = 1, #KEYS do
    local op = ARGV[4*i-3]
    if (op == 'delete' or op == 'redelete') == deletes then
      if looked > 524288 then
        answers[i] = LATER
      else
        answers[i] = replay(KEYS[i], op, ARGV[4*i-2], ARGV[4*i-1], ARGV[4*i])
      end
    end
  end
end
all(false)
all(true)
return answers
`

// Check is the run of the script that finds out whether the server runs it. It changes
// nothing.
var Check = link.ScriptCheck{
	Script: link.NewScript(Script), Args: []string{"redelete", "", "0", ""},
	Check: func(reply rueidis.RedisResult) error {
		verdicts, err := reply.ToArray()
		if err != nil || len(verdicts) != 1 {
			return rediserr.ErrNonsense
		}
		return ReadAnswer(verdicts[0]).Err
	},
}

// Redis serves no other client while a script runs, so one script has few keys and few
// bytes. It also stops by itself after it has read half a megabyte, because the values in
// Redis may be larger than those to be written.
const (
	scriptKeys  = 16
	scriptBytes = 64 << 10
)

// verdict is the script's result for a key.
type verdict int64

const (
	verdictDone   verdict = iota + 1 // Redis has the wanted state
	verdictUndone                    // our own late value was there, and is deleted
	verdictGone                      // the key is absent, although a value was expected
	verdictLeft                      // another writer's value is there and stays
	verdictTheirs                    // another writer's value is there and is to be deleted
	verdictLater                     // nothing was done: the script had read enough
)

// answer is the result of a task: the error, or the verdict if there is none.
type answer struct {
	verdict verdict
	Err     error
}

// numberReply returns the error of a reply that must be a number.
func numberReply(reply rueidis.RedisResult) error {
	if err := reply.Error(); err != nil && !rueidis.IsRedisNil(err) {
		return err
	}
	if _, err := reply.ToInt64(); err != nil {
		return rediserr.ErrNonsense
	}
	return nil
}

// okReply returns the error of a reply that must be OK.
func okReply(reply rueidis.RedisResult) error {
	if err := reply.Error(); err != nil && !rueidis.IsRedisNil(err) {
		return err
	}
	if text, err := reply.ToString(); err != nil || text != "OK" {
		return rediserr.ErrNonsense
	}
	return nil
}

// send sends the tasks and returns an answer for each.
//
// If the server has lost the script, it is loaded again, and only the tasks that did not
// run for that reason are sent once more: others may have been redirected. Tasks that the
// script did not reach, or that were refused together, are sent again in scripts of their
// own, because one of them may be the cause.
func (r *Replayer) send(ctx context.Context, s *link.Session, tasks []journal.Task, asking bool) []answer {
	perScript := scriptKeys
	if r.routes.Cluster.Load() != nil {
		// The keys of a script must be of one slot, and even those may be on different
		// nodes while the slot moves.
		perScript = 1
	}
	out := make([]answer, len(tasks))
	all := r.sendPlain(ctx, s, tasks, asking, out)
	if len(all) == 0 {
		return out
	}
	p := &scripts{r, s, asking, tasks, out}
	if alone := p.send(ctx, all, perScript); len(alone) > 0 {
		p.send(ctx, alone, 1)
	}
	return out
}

// scripts is a set of tasks on their way to a server, and the server's answers.
type scripts struct {
	*Replayer
	session *link.Session
	asking  bool
	tasks   []journal.Task
	answers []answer
}

// send sends the tasks at the given indexes, up to perScript of them in one script, and
// loads the script if it is missing. It returns the tasks that are to be tried alone.
func (p *scripts) send(ctx context.Context, at []int, perScript int) (alone []int) {
	missing, alone := p.sendOnce(ctx, at, perScript)
	if len(missing) > 0 && p.load(ctx, missing) {
		_, more := p.sendOnce(ctx, missing, perScript)
		alone = append(alone, more...)
	}
	return alone
}

// load loads the script into the server, and reports whether that succeeded. If the server
// refused the command, the answer NOSCRIPT stays. After another error the tasks get that
// error, and are sent in a later round.
func (p *scripts) load(ctx context.Context, missing []int) bool {
	if p.session.Manner == dial.MannerMinimal {
		return false // the server would close the connection
	}
	load := p.session.Client.B().ScriptLoad().Script(Script).Build()
	err := p.do(ctx, p.session, []rueidis.Completed{load}, false)[0].Error()
	if err == nil {
		return true
	}
	if rediserr.Classify(context.Background(), err) != rediserr.Command {
		for _, i := range missing {
			p.answers[i] = answer{Err: err}
		}
	}
	return false // after a refusal the answer NOSCRIPT stays
}

// sendOnce records the answers, and returns the tasks that found no script and the tasks
// that are to be tried alone.
func (p *scripts) sendOnce(ctx context.Context, at []int, perScript int) (missing, alone []int) {
	cmds, bounds := p.commands(at, perScript)
	from := 0
	for i, reply := range p.do(ctx, p.session, cmds, p.asking) {
		part := at[from:bounds[i]]
		from = bounds[i]
		err := reply.Error()
		verdicts, shape := reply.ToArray()
		if rueidis.IsRedisNil(err) || err == nil && (shape != nil || len(verdicts) != len(part)) {
			err = rediserr.ErrNonsense
		}
		if err != nil {
			for _, j := range part {
				p.answers[j] = answer{Err: err}
			}
			switch {
			case strings.HasPrefix(err.Error(), "NOSCRIPT"):
				missing = append(missing, part...)
			case len(part) > 1 && refusesSome(err):
				alone = append(alone, part...)
			}
			continue
		}
		for k, j := range part {
			if p.answers[j] = ReadAnswer(verdicts[k]); p.answers[j].verdict == verdictLater {
				alone = append(alone, j)
			}
		}
	}
	return missing, alone
}

// refusesSome reports whether an error may be about one of the keys of a script.
func refusesSome(err error) bool {
	c := rediserr.Classify(context.Background(), err)
	return c == rediserr.Command || c == rediserr.Unknown
}

// ReadAnswer reads the script's result for one key.
func ReadAnswer(m rueidis.RedisMessage) answer {
	if err := m.Error(); err != nil && !rueidis.IsRedisNil(err) {
		return answer{Err: err}
	}
	v, err := m.ToInt64()
	if err != nil || v < int64(verdictDone) || v > int64(verdictLater) {
		return answer{Err: rediserr.ErrNonsense}
	}
	return answer{verdict: verdict(v)}
}

// do sends the commands in one pipeline. It needs no slot of the bulkhead.
func (r *Replayer) do(ctx context.Context, s *link.Session, cmds []rueidis.Completed, asking bool) []rueidis.RedisResult {
	ticket := s.Tickets.Add(1)
	if asking {
		cmds = link.WithAsking(s.Client.B(), cmds)
	}
	sent := r.clock.Now()
	replies := s.Client.DoMulti(ctx, cmds...)
	s.Took(link.KindReplay, sent)
	if asking {
		replies = link.WithoutAsking(replies)
	}
	if replies[len(replies)-1].NonRedisError() == nil {
		s.Answered(ticket)
	}
	return replies
}

// commands builds the scripts for the tasks at the given indexes. The i-th script has the
// tasks up to, but without, at[bounds[i]].
func (p *scripts) commands(at []int, perScript int) (cmds []rueidis.Completed, bounds []int) {
	n := (len(at) + perScript - 1) / perScript
	cmds, bounds = make([]rueidis.Completed, 0, n), make([]int, 0, n)
	keys, args := make([]string, 0, perScript), make([]string, 0, 4*perScript)
	now, b, bytes := p.clock.Now(), p.session.Client.B(), 0
	for i, j := range at {
		t := &p.tasks[j]
		t.SentAt = now // a task that is sent again was not done before
		op, v, ttl := t.Operation(now, p.rule)
		keys = append(keys, t.Key)
		args = append(args, op, link.ViewString(v), strconv.FormatInt(ttl.Milliseconds(), 10), t.ExpectedStates(p.session.Server, now))
		bytes += len(t.Key) + len(v)
		if len(keys) == perScript || bytes >= scriptBytes || i == len(at)-1 {
			cmds = append(cmds, link.Kept(b.Evalsha().Sha1(Check.Digest).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build(), bytes))
			bounds = append(bounds, i+1)
			keys, args, bytes = keys[:0], args[:0], 0
		}
	}
	return cmds, bounds
}

// Package rediserr says what an error of Redis means, and makes its text fit to be shown.
package rediserr

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/rueidis"
)

// ErrNonsense is the error for a reply that is no error and that Redis does not give to
// such a command: it comes from another program, or belongs to another command. Like an
// unknown error text it says nothing about the command, which may have run.
var ErrNonsense = errors.New("holdfast: the answer to a replay makes no sense")

// Class is the meaning of an outcome for the circuit and for the write that met it.
type Class uint8

const (
	OK           Class = iota // Redis answered; a nil reply is an answer
	Command                   // the error is about this command alone, and is its answer
	WriteRefused              // Redis refuses every write; reads go on
	Busy                      // a script runs too long; Redis refuses all but a few commands
	Down                      // Redis is away, mute, or refuses this client
	Unknown                   // the reply's text is not known: a probe decides what it is about
	Canceled                  // the caller gave up; no news of Redis
	Redirect                  // this node of the cluster does not have the key
)

// Classify gives an error of a command its class. ctx is the caller's own, without the
// budget: rueidis returns the same context error for a used-up budget and for a caller that
// gave up, and only the caller's context tells the two apart. Texts that need more than a
// class are matched beside it: by RefusesCommand and TooLarge here, and where a handshake, a
// probe or a script has replies of its own.
func Classify(ctx context.Context, err error) Class {
	if err == nil || rueidis.IsRedisNil(err) {
		return OK
	}
	var re *rueidis.RedisError
	if errors.As(err, &re) {
		return classifyReply(re.Error())
	}
	if errors.Is(err, ErrNonsense) {
		return Unknown
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if ctx.Err() != nil {
			return Canceled
		}
	}
	return Down
}

// replyClasses maps the code at the beginning of an error reply to its class.
//
// Here and in commandTexts, Command is for texts that Redis or Valkey is known to send
// about one command. Any other text may come from a proxy whose backend is away, or from a
// service whose quota is used up, so a probe decides what it is about.
var replyClasses = map[string]Class{
	"READONLY":   WriteRefused, // a replica
	"MISCONF":    WriteRefused, // a failed snapshot stops writes
	"OOM":        WriteRefused, // maxmemory with noeviction
	"NOREPLICAS": WriteRefused, // min-replicas-to-write

	"MOVED": Redirect,
	"ASK":   Redirect,

	"BUSY": Busy, // a script or a module's function runs; not BUSYKEY, BUSYGROUP

	"LOADING":     Down,
	"MASTERDOWN":  Down,
	"CLUSTERDOWN": Down,
	"TRYAGAIN":    Down,
	"NOAUTH":      Down,
	"WRONGPASS":   Down,
	"DENIED":      Down, // protected mode

	"WRONGTYPE":    Command,
	"NOPERM":       Command,
	"NOSCRIPT":     Command,
	"EXECABORT":    Command,
	"CROSSSLOT":    Command,
	"BUSYKEY":      Command,
	"BUSYGROUP":    Command,
	"NOGROUP":      Command,
	"NOTBUSY":      Command, // SCRIPT KILL of nothing
	"UNKILLABLE":   Command,
	"UNBLOCKED":    Command,
	"NOPROTO":      Command, // HELLO
	"INVALIDOBJ":   Command, // HyperLogLog
	"INPROG":       Command, // FAILOVER
	"NOGOODSLAVE":  Command,
	"NOQUORUM":     Command, // a sentinel
	"NOMASTERLINK": Command, // SYNC
	"IOERR":        Command, // MIGRATE
	"NOKEY":        Command,
}

// commandTexts are the beginnings of the error texts about one command that have no code of
// their own, behind "ERR ", of Redis 2.8 to 8 and Valkey. Case is ignored. None of them is so
// short that the text of a system error begins with it ("Invalid argument", "Connection
// refused"): proxies pass such texts on.
var commandTexts = []string{
	// The command and its shape.
	"unknown command", "unknown subcommand", "wrong number of", "syntax error",
	"unsupported option", "unsupported unit", "unrecognized option", "unrecognized argument",
	"invalid arguments specified", "invalid number of arguments", "invalid command specified",
	"command not allowed inside a transaction", "this redis command is not allowed from",
	"this valkey command is not allowed from", "this command is not allowed from",
	"multi calls can not be nested", "exec without multi", "discard without multi",
	"watch inside multi", "can't execute '",
	"debug command not allowed", "module command not allowed",

	// Numbers, ends of life, and options.
	"value is not an integer", "value is not a valid float", "value is not a float", "value is out of range",
	"value is negative", "value must be", "index out of range", "offset is out of range", "count is out of range",
	"count can't be", "count must be", "limit can't be", "limit should be", "rank can't be", "maxlen can't be",
	"minmatchlen", "timeout is not", "timeout is negative", "timeout is out of range", "invalid timeout",
	"invalid expire time", "invalid ttl value", "invalid idletime", "invalid freq", "nx and xx", "xx and nx",
	"gt, lt", "nx and gt", "increment or decrement would overflow", "increment would produce",
	"decrement would overflow", "increment is not", "hash value is not", "resulting score is not", "weight value is not",
	"min or max", "bit offset is not", "bit is not", "bit is out of range", "the bit argument must be", "bitop not must be", "bitfield_ro only",
	"invalid bitfield", "invalid overflow", "invalid cursor", "numkeys", "number of keys can't", "number of fields must be",
	"at least 1 input key", "no keys specified", "need numeric", "radius cannot be", "height or width", "invalid longitude",
	"could not decode", "exactly one of", "dump payload", "bad data format",
	"string exceeds maximum allowed size", "elements are too large", "insufficient memory, transient",

	// The key.
	"no such key", "source and destination objects are the same", "target key name is busy", "an lfu maxmemory",
	"an lru maxmemory", "the specified key", "key is too", "value is too", "if you want both",

	// The database, the cluster, and permissions.
	"db index is out of range", "invalid db index", "invalid first db", "invalid second db", "out of range database",
	"select is not allowed", "move is not allowed", "swapdb is not allowed", "copying to another database", "this instance has cluster support disabled",
	"invalid slot", "invalid or out of range slot", "unknown node", "no such client", "no such user", "invalid client",
	"client names cannot", "auth <password> called without", "client sent auth",

	// Scripts and functions. classifyReply looks for the error inside a script's apart.
	"error running script", "error compiling", "user_script", "@user_script:", "the user executing the script", "script killed", "write commands are not allowed",
	"write commands not allowed", "function not found", "library '", "library not found", "library names can only", "engine '",
	"function load", "function with", "function names", "no matching script", "can not execute a script", "the user executing the script", "@user_script", "acl failure in script", "unknown redis command called from", "script attempted", "wrong script",

	// Streams.
	"the id specified in", "the id argument", "invalid stream id", "the xgroup", "the stream has", "unbalanced xread", "unbalanced 'xread", "unbalanced list of streams",
	"the > id", "the $ id", "the + id", "invalid min-idle-time", "invalid retrycount", "invalid time option", "invalid idle option",

	// Subscriptions, tracking, the protocol.
	"only (p|s)", "client tracking", "client caching", "prefix option", "the client id you want redirect",
	"optin and optout", "you can't specify both", "you can't switch", "both optin and optout", "protocol version is not",
	"protocol error: ", "unknown attribute",

	// Of hosted services: the command is too large.
	"max request size exceeded", "max single record size exceeded",
}

// commandText reports whether a text begins with one of commandTexts. Behind the beginning
// there may be arguments of the command, which are the caller's and no news of Redis.
func commandText(text string) bool {
	for _, t := range commandTexts {
		if len(text) >= len(t) && strings.EqualFold(text[:len(t)], t) {
			return true
		}
	}
	return false
}

func classifyReply(text string) Class {
	code, rest, _ := strings.Cut(text, " ")
	switch {
	case code == "CLUSTERDOWN" && strings.HasPrefix(rest, "Hash slot"):
		return Redirect // no node has that slot; the others are served
	case code == "CLUSTERDOWN" && strings.Contains(rest, "only accepts read commands"):
		return WriteRefused
	}
	if c, ok := replyClasses[code]; ok {
		return c
	}
	text = strings.TrimPrefix(text, "ERR ") // mostly rueidis has removed it
	if strings.HasPrefix(text, "max number of clients") {
		return Down
	}
	if strings.HasPrefix(text, "Error running script") {
		// Redis before 7 wraps the error of a command in a script: "Error running script
		// (...): @user_script: 1: -READONLY You can't write ...".
		for code, c := range replyClasses {
			if c == WriteRefused && strings.Contains(text, " -"+code+" ") {
				return c
			}
		}
	}
	if commandText(text) {
		return Command
	}
	return Unknown
}

// IsReply reports whether an error is a reply of the server, and not the lack of one.
func IsReply(err error) bool {
	var re *rueidis.RedisError
	return errors.As(err, &re)
}

// RefusesCommand reports whether Redis refuses a command to this user for all keys: it does
// not know the command, or the user has no permission for it.
func RefusesCommand(err error) bool {
	if err == nil || Classify(context.Background(), err) != Command {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "NOPERM") && strings.Contains(text, " to run the ") ||
		strings.Contains(text, "The user executing the script can't run") || strings.HasPrefix(text, "unknown command")
}

// TooLarge reports whether Redis refused a command for the size of its key or value.
func TooLarge(err error) bool {
	if err == nil || Classify(context.Background(), err) != Command {
		return false
	}
	text := strings.ToLower(err.Error())
	for _, t := range []string{
		"string exceeds maximum allowed size", "protocol error: invalid bulk length", "protocol error: too big",
		"max request size exceeded", "max single record size exceeded", "key is too", "value is too", "elements are too large",
	} {
		if strings.HasPrefix(text, t) {
			return true
		}
	}
	return false
}

// GaveUp reports whether an error says that the wait for a reply has ended, and not why.
func GaveUp(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

package holdfast

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The layers are checked here: between the packages of the module by their
// imports, within the root by the uses of declarations.

// layer is a group of root files and the layers that it may use beside itself.
type layer struct {
	name  string
	uses  []string
	files []string
}

// layers go from the lowest to the highest; a layer uses lower ones alone. The api is the
// vocabulary of all. The typed and the drop-in interface stand on the core and do not know each
// other.
var layers = []layer{
	{"api", nil, []string{
		"breaker.go", "doc.go", "entry.go", "errors.go", "health.go", "hooks.go", "journal.go", "local.go", "options.go", "stats.go", "user_code.go",
	}},
	{"core", []string{"api"}, []string{
		"beside.go", "cache.go", "closing.go", "commands.go", "held.go", "lease.go", "lifecycle.go", "listeners.go", "load.go",
		"load_many.go", "loading.go", "open.go", "redis.go", "refresh.go", "request.go", "write.go", "write_vs_load.go",
	}},
	{"typed", []string{"api", "core"}, []string{
		"codec.go", "typed.go", "typed_load.go", "typed_many.go",
	}},
	{"drop-in", []string{"api", "core"}, []string{
		"client.go", "client_cached.go", "client_dedicated.go", "client_hooks.go", "client_keys.go", "client_listen.go",
		"client_own.go", "client_pass.go", "client_read.go", "client_recycle.go", "client_reply.go", "client_run.go", "client_write.go",
	}},
}

// rooms are the packages under internal and what each may import beside the standard
// library.
var rooms = map[string][]string{
	"internal/clock": nil,
	"internal/dial": append(inRoom("clock", "group", "rediserr", "resp"),
		"github.com/redis/rueidis"),
	"internal/flight":       inRoom("keyhash"),
	"internal/group":        nil,
	"internal/house":        nil,
	"internal/house/report": inRoom("house"),
	"internal/inflight":     nil,
	"internal/journal":      inRoom("clock", "keyhash", "wal"),
	"internal/keyhash":      nil,
	"internal/latency":      nil,
	"internal/link": append(inRoom("clock", "dial", "group", "inflight", "latency", "local", "rediserr"),
		"github.com/redis/rueidis"),
	"internal/local":     append(inRoom("clock", "inflight", "keyhash"), "github.com/dgraph-io/ristretto/v2"),
	"internal/rediserr":  {"github.com/redis/rueidis"},
	"internal/redistest": nil,
	"internal/replay": append(inRoom("clock", "dial", "group", "journal", "keyhash", "link", "rediserr"),
		"github.com/redis/rueidis"),
	"internal/resp":    nil,
	"internal/scratch": nil,
	"internal/wal":     nil,
}

// inRoom returns the import paths of packages under internal.
func inRoom(names ...string) (paths []string) {
	for _, name := range names {
		paths = append(paths, modulePath+"/internal/"+name)
	}
	return paths
}

func TestInternalPackagesImportWhatTheirRoomAllows(t *testing.T) {
	there := map[string]bool{}
	walk(t, func(path string) {
		if dir := filepath.ToSlash(filepath.Dir(path)); strings.HasPrefix(dir, "internal/") && strings.HasSuffix(path, ".go") {
			there[dir] = true
		}
	})
	for dir := range there {
		allowed, ok := rooms[dir]
		if !ok {
			t.Errorf("%s is not in the table of rooms", dir)
			continue
		}
		for _, s := range sources(t, dir, notTest) {
			for _, path := range s.imports() {
				if (thirdParty(path) || strings.HasPrefix(path, modulePath)) && !slices.Contains(allowed, path) {
					t.Errorf("%s imports %s", s.path, path)
				}
			}
		}
	}
	for dir := range rooms {
		if !there[dir] {
			t.Errorf("the table of rooms names %s, which is not there", dir)
		}
	}
}

func TestLayersUseLowerOnesAlone(t *testing.T) {
	below, of := map[string]bool{}, map[string]layer{}
	for _, l := range layers {
		for _, lower := range l.uses {
			if !below[lower] {
				t.Errorf("the layer %s uses %s, which is not below it", l.name, lower)
			}
		}
		below[l.name] = true
		for _, file := range l.files {
			if of[file].name != "" {
				t.Errorf("%s is in two layers", file)
			}
			of[file] = l
		}
	}
	p := root(t)
	there := map[string]bool{}
	for _, file := range p.Files {
		there[file.Name] = true
		if of[file.Name].name == "" {
			t.Errorf("%s is in no layer; add it to one in the table above", file.Name)
		}
	}
	for file := range of {
		if !there[file] {
			t.Errorf("the table of layers names %s, which is not there", file)
		}
	}
	for _, u := range p.Uses() {
		from, to := of[u.From], of[u.To]
		if from.name != to.name && !slices.Contains(from.uses, to.name) {
			t.Errorf("%s (%s) uses %s of %s (%s), which is upwards or sideways; move the declaration, or pass what is needed from above",
				u.From, from.name, u.Decl, u.To, to.name)
		}
	}
}

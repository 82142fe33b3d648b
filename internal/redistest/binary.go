package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
)

// serverVariable names the program that is run as server and as sentinel instead of the
// redis-server in PATH: a path, or a name in PATH ("valkey-server").
const serverVariable = "HOLDFAST_REDIS_SERVER"

func binary() string {
	if program := os.Getenv(serverVariable); program != "" {
		return program
	}
	return "redis-server"
}

// versionOutput matches the output of --version: "Redis server v=7.0.15 sha=...".
var versionOutput = regexp.MustCompile(`v=(\d+)\.(\d+)`)

// Version returns the major and minor version of the program that Start runs. If there is
// no program, it skips or fails the test as Start does. It blocks until the program has
// printed its version.
func Version(tb testing.TB) (major, minor int) {
	tb.Helper()
	need(tb)
	major, minor, err := serverVersion()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	return major, minor
}

func serverVersion() (major, minor int, err error) {
	out, err := exec.Command(binary(), "--version").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("asking %s for its version: %w", binary(), err)
	}
	m := versionOutput.FindSubmatch(out)
	if m == nil {
		return 0, 0, fmt.Errorf("%s --version tells no version: %q", binary(), out)
	}
	if major, err = strconv.Atoi(string(m[1])); err != nil {
		return 0, 0, err
	}
	minor, err = strconv.Atoi(string(m[2]))
	return major, minor, err
}

// since7 returns args, or none if the server is older than 7.0 and would refuse them. The
// redis-server in PATH is assumed to be newer.
func since7(args ...string) ([]string, error) {
	if os.Getenv(serverVariable) == "" {
		return args, nil
	}
	major, _, err := serverVersion()
	if err != nil || major < 7 {
		return nil, err
	}
	return args, nil
}

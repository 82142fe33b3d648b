// Command holdfast demonstrates the holdfast cache client in an outage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	exitOK          = 0
	exitFailed      = 1 // the verdict is bad, or the demo could not run
	exitUsage       = 2
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once, in case the clean end hangs.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `usage: holdfast <command> [flags]

commands:
  demo   put one load through one outage with holdfast, with plain rueidis and
         with rueidis' own client-side cache, and print what the callers saw

"holdfast demo -h" lists the flags.
`

// run runs the program and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "demo":
		return runDemo(ctx, args[1:], stdout, stderr)
	case "-h", "-help", "--help", "help":
		fmt.Fprint(stdout, usage)
		return exitOK
	default:
		fmt.Fprintf(stderr, "holdfast: unknown command %q\n\n%s", args[0], usage)
		return exitUsage
	}
}

func runDemo(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parseDemo(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "holdfast demo: %v\nsee \"holdfast demo -h\"\n", err)
		return exitUsage
	}
	good, err := demonstrate(ctx, cfg, printer{out: stdout, styled: terminal(stdout)})
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "holdfast demo: interrupted")
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(stderr, "holdfast demo: %v\n", err)
		return exitFailed
	case !good:
		return exitFailed
	}
	return exitOK
}

// config holds the flags of demo.
type config struct {
	server    endpoint
	callers   int
	scale     float64
	allowance time.Duration
}

const (
	maxCallers = 256
	minScale   = 0.05
	maxScale   = 100
)

// parseDemo parses the flags of demo. Requested help goes to stdout.
func parseDemo(args []string, stdout io.Writer) (config, error) {
	cfg := config{}
	var url string
	flags := flag.NewFlagSet("holdfast demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&url, "redis", "", "`URL` of a server to use, such as redis://user:password@host:6379/0;\nwithout it the demo brings a small server of its own")
	flags.IntVar(&cfg.callers, "callers", 16, "goroutines that call the cache")
	flags.Float64Var(&cfg.scale, "scale", 1, "stretches each client's 12 seconds by this `factor`")
	flags.DurationVar(&cfg.allowance, "allowance", 100*time.Millisecond, "how far beyond its budget a holdfast call may be measured, for the sake\nof a loaded machine, before the verdict is bad")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, "usage: holdfast demo [flags]\n\n")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
	}
	if err != nil {
		return cfg, err
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if flags.NArg() > 0 {
		bad("unexpected argument %q", flags.Arg(0))
	}
	if cfg.callers < 1 || cfg.callers > maxCallers {
		bad("-callers is %d: it must be from 1 to %d", cfg.callers, maxCallers)
	}
	if !(cfg.scale >= minScale && cfg.scale <= maxScale) { // written so that NaN is bad, too
		bad("-scale is %v: it must be from %v to %v", cfg.scale, minScale, maxScale)
	}
	if cfg.allowance < 0 {
		bad("-allowance is %v: it must not be negative", cfg.allowance)
	}
	if url != "" {
		if cfg.server, err = parseEndpoint(url); err != nil {
			bad("-redis: %w", err)
		}
	}
	return cfg, errors.Join(errs...)
}

// terminal reports whether w accepts escape sequences.
func terminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	if term := os.Getenv("TERM"); term == "" || strings.EqualFold(term, "dumb") {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

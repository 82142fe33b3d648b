package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// jobVariable is the environment variable that makes this program the process of a
// contender. It holds a job, as JSON.
const jobVariable = "HOLDFAST_SPEED_JOB"

// plan is a run of the program.
type plan struct {
	rows  []row
	turns int
	quick bool
	svg   string // a directory, or ""
	out   io.Writer
	log   io.Writer
}

// result has the measurements of the processes of a row.
type result struct {
	row    row
	points []point                       // in the order of the table
	found  map[string][]map[point]sample // by contender, then by turn; nil where one failed
	failed []string
}

// run measures all rows, or until the context ends. The report of a row is written when the row has been measured.
func (p *plan) run(ctx context.Context) error {
	about, err := describe(p)
	if err != nil {
		return err
	}
	fmt.Fprint(p.out, about)
	failed := 0
	for _, r := range p.rows {
		res, err := p.measure(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		failed += len(res.failed)
		res.write(p.out)
		if p.svg == "" {
			continue
		}
		for _, c := range res.charts() {
			if err := os.WriteFile(filepath.Join(p.svg, "speed-"+c.file+".svg"), c.svg(), 0o644); err != nil {
				return err
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d measurements failed", failed)
	}
	return nil
}

// measure lets the contenders of a row take turns.
func (p *plan) measure(ctx context.Context, r row) (*result, error) {
	res := &result{row: r, found: map[string][]map[point]sample{}}
	turns := p.turns
	if r.turns > 0 {
		turns = min(turns, r.turns)
	}
	if p.quick {
		turns = 1
	}
	var s *server
	if r.redis {
		var err error
		if s, err = startServer(ctx); err != nil {
			return nil, err
		}
		defer s.stop()
	}
	began := time.Now()
	for turn := range turns {
		for i := range r.contenders {
			c := r.contenders[(i+turn)%len(r.contenders)] // another one goes first in each turn
			j := &job{Row: r.name, Contender: c.name, Quick: p.quick}
			if s != nil {
				j.Addr = s.addr
				preset := 0
				if r.preset != nil {
					preset = r.preset(j)
				}
				if err := s.prepare(preset); err != nil {
					return nil, err
				}
			}
			all, err := delegate(ctx, j)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				res.failed = append(res.failed, fmt.Sprintf("%s, turn %d: %v", c.name, turn+1, err))
				fmt.Fprintf(p.log, "%s: %s\n", r.name, res.failed[len(res.failed)-1])
			}
			res.add(c.name, all)
		}
		fmt.Fprintf(p.log, "%s: turn %d of %d after %v\n", r.name, turn+1, turns, time.Since(began).Round(time.Second))
	}
	return res, nil
}

// add takes in a turn of a contender. One that has failed has no samples.
func (r *result) add(contender string, all []sample) {
	byPoint := map[point]sample{}
	for _, s := range all {
		byPoint[s.point] = s
		if !slices.Contains(r.points, s.point) {
			r.points = append(r.points, s.point)
		}
	}
	r.found[contender] = append(r.found[contender], byPoint)
}

// delegate runs a job in a process of its own.
func delegate(ctx context.Context, j *job) ([]sample, error) {
	order, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(order))
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %.500s", err, bytes.TrimSpace(says.Bytes()))
	}
	var all []sample
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("%w in %.200q", err, out.String())
	}
	return all, nil
}

// work is the process of a contender. It returns the exit status.
func work(out, says io.Writer) int {
	if err := carryOut(out); err != nil {
		fmt.Fprintln(says, err)
		return 1
	}
	return 0
}

func carryOut(out io.Writer) error {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv(jobVariable)), &j); err != nil {
		return fmt.Errorf("%s: %w", jobVariable, err)
	}
	for _, r := range rows() {
		if r.name != j.Row {
			continue
		}
		for _, c := range r.contenders {
			if c.name != j.Contender {
				continue
			}
			all, err := c.measure(&j)
			if err != nil {
				return err
			}
			return json.NewEncoder(out).Encode(all)
		}
	}
	return fmt.Errorf("no contender %q of a row %q", j.Contender, j.Row)
}

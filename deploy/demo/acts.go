package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

const (
	replicas  = 6
	prefix    = "demo." // of the stack's containers
	actLimit  = 90 * time.Second
	afterglow = time.Second // of load after an act, in which late failures show
)

// result of an act.
type result struct {
	act, outcome string
	took         time.Duration
	requests     string
	failed       []error
}

// play plays the acts in order; a failed one ends the demo.
func (s *stage) play(ctx context.Context) error {
	acts := []struct {
		title string
		do    func(context.Context) (result, error)
	}{
		{"First deploy: six instances of v1 over three hosts", s.firstDeploy},
		{"Rolling update v1 → v2 under load", s.update},
		{"Update v2 → v3, which never becomes healthy: automatic rollback", s.failedUpdate},
		{"Update v2 → v4, with the leader killed in the middle", s.killedLeader},
	}
	stop := func() {}
	defer func() { stop() }()
	for i, act := range acts {
		if i == 1 {
			var err error
			if stop, err = s.startLoad(ctx); err != nil {
				return err
			}
		}
		s.v.head("%s", act.title)
		if s.load != nil {
			s.load.Reset()
		}
		start := time.Now()
		actCtx, cancel := context.WithTimeout(ctx, actLimit)
		r, err := act.do(actCtx)
		cancel()
		r.act = act.title
		if r.took == 0 {
			r.took = time.Since(start)
		}
		if err != nil {
			r.failed = append(r.failed, err)
		}
		s.results = append(s.results, r)
		if err := errors.Join(r.failed...); err != nil {
			if r.outcome != "" {
				s.v.say("%s", r.outcome)
			}
			s.v.say("%s", s.v.red("did not hold: "+err.Error()))
			return fmt.Errorf("%q did not hold: %w", act.title, err)
		}
		s.v.say("%s", s.v.green(r.outcome))
	}
	return nil
}

// firstDeploy has no load yet, because there is nothing that could answer.
func (s *stage) firstDeploy(ctx context.Context) (result, error) {
	mark := s.witness.Mark()
	start := time.Now()
	code, err := s.apply(ctx, "v1")
	r := result{took: time.Since(start), requests: "–"}
	if err != nil {
		return r, err
	}
	version, err := s.answers(ctx)
	r.failed = append(r.failed, err, expect(code == 0, "musterctl ended with %d", code), expect(version == "v1", "the proxy leads to %q", version),
		s.runs(ctx, "v1"), s.createdOnce(ctx, mark))
	r.outcome = "6 instances of v1 are ready, and the proxy leads to them"
	return r, nil
}

func (s *stage) update(ctx context.Context) (result, error) {
	mark := s.witness.Mark()
	start := time.Now()
	code, err := s.apply(ctx, "v2")
	r := result{took: time.Since(start)}
	if err != nil {
		return r, err
	}
	r.failed = append(r.failed, expect(code == 0, "musterctl ended with %d", code), s.runs(ctx, "v2"), s.createdOnce(ctx, mark))
	s.count(ctx, &r)
	r.outcome = "v2 runs, each container was created once; " + r.requests
	return r, nil
}

func (s *stage) failedUpdate(ctx context.Context) (result, error) {
	start := time.Now()
	code, err := s.apply(ctx, "v3")
	r := result{took: time.Since(start)}
	if err != nil {
		return r, err
	}
	type run struct{ ID, State string }
	runs, err := fleet.Items[run](ctx, s.m, "run", "list")
	rolledBack := len(runs) > 0 && slices.ContainsFunc(runs, func(r run) bool { return r.State == "RUN_STATE_ROLLED_BACK" })
	r.failed = append(r.failed, err, expect(code == 1, "musterctl ended with %d, want 1", code), expect(rolledBack, "no run was rolled back: %v", runs),
		s.runs(ctx, "v2"))
	report := s.count(ctx, &r)
	r.failed = append(r.failed, expect(report.Versions["v3"] == 0, "v3 was asked %d times", report.Versions["v3"]))
	r.outcome = "v3 was taken back by itself, and v2 never stopped serving; " + r.requests
	return r, nil
}

// killedLeader kills the leader when two of the new containers run.
func (s *stage) killedLeader(ctx context.Context) (result, error) {
	leader, err := s.m.Leader(ctx)
	if err != nil {
		return result{}, err
	}
	mark := s.witness.Mark()
	start := time.Now()
	applied := make(chan error, 1)
	code := -1
	go func() {
		var err error
		code, err = s.apply(ctx, "v4")
		applied <- err
	}()
	killErr := s.witness.Await(ctx, mark, "start", prefix, 2)
	if killErr == nil {
		killErr = leader.Kill()
		s.v.say("%s", s.v.bold(fmt.Sprintf("kill -9 of the leader, %s (%d), with %d of 6 new containers created", leader.Name, leader.PID(),
			len(s.witness.Names(mark, "create", prefix)))))
	}
	err = <-applied
	r := result{took: time.Since(start)}
	if err := errors.Join(err, killErr); err != nil {
		return r, err
	}
	next, err := s.m.Leader(ctx)
	if err != nil {
		return r, err
	}
	r.failed = append(r.failed, expect(code == 0, "musterctl ended with %d", code), expect(next.Name != leader.Name, "%s still leads", leader.Name),
		s.runs(ctx, "v4"), s.createdOnce(ctx, mark))
	s.count(ctx, &r)
	if err := leader.Restart(); err != nil {
		return r, err
	}
	r.failed = append(r.failed, s.m.Voters(ctx, 3))
	r.outcome = fmt.Sprintf("%s took over from %s, v4 runs, each container was created once; %s came back as a follower; %s",
		next.Name, leader.Name, leader.Name, r.requests)
	return r, nil
}

func expect(held bool, format string, args ...any) error {
	if held {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// apply applies the stack in a version, shows the progress, and returns the exit code of musterctl.
func (s *stage) apply(ctx context.Context, version string) (int, error) {
	command := s.m.Command("stack", "apply", "-f", s.compose, "--yes", "--progress", "plain", "--color", "never")
	command.Env = append(command.Env, "VERSION="+version)
	s.v.say("$ VERSION=%s musterctl stack apply -f deploy/stacks/demo/compose.yaml", version)
	show := &lines{each: func(line string) { s.progress(line) }}
	err := s.f.RunTo(ctx, command, show, show)
	if code := exitCode(err); code >= 0 && ctx.Err() == nil {
		return code, nil
	}
	return -1, err
}

// progress shows a line of musterctl: of its progress (time, host, step, state) only what a reader of the story wants, and the rest as it is.
func (s *stage) progress(line string) {
	fields := strings.SplitN(line, " ", 4)
	if len(fields) < 4 {
		fields = nil
	} else if _, err := time.Parse(time.RFC3339, fields[0]); err != nil {
		fields = nil
	}
	switch {
	case fields != nil:
		if text := milestone(fields[2], fields[3]); text != "" {
			group, action, _ := strings.Cut(fields[2], "/")
			host := fields[1]
			if strings.HasPrefix(action, "route") {
				host = "-" // that of the proxy, which says nothing about the instance
			}
			s.v.say("%s", s.v.faint(fmt.Sprintf("  %-3s %-7s %s", host, group, text)))
		}
	case strings.TrimSpace(line) != "":
		s.v.say("  %s", line)
	}
}

// milestone says what the end of a step means; empty for one that is of no interest by itself.
func milestone(step, state string) string {
	_, action, _ := strings.Cut(step, "/")
	switch {
	case strings.HasPrefix(state, "failed") || strings.HasPrefix(state, "unknown"):
		return action + " " + state
	case strings.HasPrefix(step, "run/") && state != "running":
		return state
	case strings.HasPrefix(step, "undo/") && state == "done":
		return "taken back: " + action
	case state != "done":
		return ""
	case action == "ready":
		return "the new instance is ready"
	case strings.HasPrefix(action, "route"):
		return "it takes requests"
	case action == "stop":
		return "the old instance is drained and stopped"
	}
	return ""
}

// count lets the load go on for a moment and takes down what it counted.
func (s *stage) count(ctx context.Context, r *result) load.Report {
	wait := time.NewTimer(afterglow)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
	report := s.load.Report()
	r.requests = fmt.Sprintf("%d requests, %d failed", report.Total, report.Failed)
	r.failed = append(r.failed, expect(report.Failed == 0, "%d of %d requests failed: %s", report.Failed, report.Total, strings.Join(report.Errors, "; ")),
		expect(report.Total > 200, "the load sent only %d requests", report.Total))
	return report
}

// runs checks with the engine itself that exactly six containers run, all of one version.
func (s *stage) runs(ctx context.Context, version string) error {
	containers, err := s.engine.Containers(ctx, stackLabel)
	if err != nil {
		return err
	}
	var running, other []string
	for _, c := range containers {
		switch {
		case c.State != "running":
		case c.ImageID == s.images[version].ID():
			running = append(running, c.Name())
		default:
			other = append(other, c.Name())
		}
	}
	return expect(len(running) == replicas && len(other) == 0, "%d containers of %s run, and of other versions %v", len(running), version, other)
}

// createdOnce checks with the engine's own events that since mark each instance of the current release was created exactly once, and nothing else was.
func (s *stage) createdOnce(ctx context.Context, mark int) error {
	type instance struct {
		Expected  bool
		Container struct{ Name string }
	}
	instances, err := fleet.Items[instance](ctx, s.m, "service", "ps", "demo/web")
	if err != nil {
		return err
	}
	var names []string
	for _, i := range instances {
		if i.Expected {
			names = append(names, i.Container.Name)
		}
	}
	return errors.Join(expect(len(names) == replicas, "musterctl knows %d instances", len(names)), s.witness.OnceEach(mark, prefix, names))
}

// finish writes the table of what happened, and where to look.
func (s *stage) finish(kept bool) {
	s.v.head("What happened")
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "  ACT\tTOOK\tLOAD\tHELD")
	for _, r := range s.results {
		held := "yes"
		if errors.Join(r.failed...) != nil {
			held = "NO"
		}
		_, _ = fmt.Fprintf(w, "  %s\t%.1f s\t%s\t%s\n", r.act, r.took.Seconds(), r.requests, held)
	}
	_ = w.Flush()
	s.v.line("%s", strings.TrimRight(table.String(), "\n"))
	s.around(kept)
	s.v.line("")
}

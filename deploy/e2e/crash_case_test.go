//go:build e2e || crash

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/internal/crashpoint"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// crash is one kill: who dies, and where.
type crash struct {
	role  string // leader, follower, h1, …, e1, …
	point crashpoint.Point
	n     uint64

	cancelled   bool
	cancelAcked time.Time
	approved    bool
}

func (c *crash) String() string {
	if c.role == "" {
		return "no kill"
	}
	return fmt.Sprintf("%s dies %s %d", c.role, c.point, c.n)
}

// counts of passes by role and point, from a run without a kill.
type counts map[string][crashpoint.Points]uint64

// findings of one case by what must not be.
type findings struct {
	killed     bool
	recovery   time.Duration // from the death of a leader to the next acknowledged write; 0 if another died
	state      []string      // another final state
	duplicates []string
	lost       []string
	orphans    []string
	afterAbort []string
	floor      []string
	other      []string
}

func (f *findings) all() []string {
	return slices.Concat(f.state, f.duplicates, f.lost, f.orphans, f.afterAbort, f.floor, f.other)
}

// reference is what a scenario does without a kill.
type reference struct {
	counts counts
	final  string
}

// play runs the scenario once, with the crash if it has a role, and checks everything. The reference is nil for the run that makes it.
func (r *rig) play(ctx context.Context, sc scenario, c *crash, ref *reference) (*findings, *reference, error) {
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	swapped, err := r.prepare(ctx, sc)
	if err != nil {
		return nil, nil, err
	}
	leader, follower, err := r.whole(ctx)
	if err != nil {
		return nil, nil, err
	}
	before, err := r.record()
	if err != nil {
		return nil, nil, err
	}
	roles := map[string]*member{"leader": r.member(leader), "follower": r.member(follower)}
	for _, m := range r.members {
		m.table.Reset()
		if !strings.HasPrefix(m.name, "c") {
			roles[part(m.name, swapped)] = m
		}
	}
	var victim *member
	if c.role != "" {
		victim = roles[c.role]
		victim.table.Arm(c.point, c.n)
	}
	stop := r.supervise(ctx)
	f, run, err := r.follow(ctx, sc, c, victim)
	if err == nil {
		_, _, err = r.whole(ctx)
	}
	err = errors.Join(err, stop())
	if err != nil {
		return f, nil, err
	}
	made := &reference{counts: counts{}}
	for role, m := range roles {
		var n [crashpoint.Points]uint64
		for p := range crashpoint.Points {
			n[p] = m.table.Count(p)
		}
		made.counts[role] = n
	}
	for _, m := range r.members {
		m.table.Reset() // an armed point that was not reached is not for the next case
	}
	made.final, err = r.judge(ctx, sc, f, run, c, before, swapped)
	if ref != nil && err == nil && made.final != ref.final {
		f.state = append(f.state, fmt.Sprintf("ended as\n%s\nwant\n%s", made.final, ref.final))
	}
	return f, made, err
}

// prepare makes what the scenario begins with, and says whether the hosts play each other's parts.
func (r *rig) prepare(ctx context.Context, sc scenario) (swapped bool, err error) {
	if _, _, err = r.whole(ctx); err == nil {
		err = r.uncordon(ctx)
	}
	if err == nil && sc.prepare != nil {
		err = sc.prepare(ctx, r)
	}
	if err == nil && sc.swapped != nil {
		swapped, err = sc.swapped(ctx, r)
	}
	return swapped, err
}

// part that a host or its engine plays.
func part(name string, swapped bool) string {
	if !swapped {
		return name
	}
	return strings.NewReplacer("1", "2", "2", "1").Replace(name)
}

// follow starts the run and follows it to its end. When the victim died, a write goes through the API while it recovers.
func (r *rig) follow(ctx context.Context, sc scenario, c *crash, victim *member) (*findings, *coordinatorv1.Run, error) {
	f := &findings{}
	deaths := 0
	if victim != nil {
		deaths, _ = victim.died()
	}
	run, err := sc.start(ctx, r)
	if err != nil {
		return f, nil, fmt.Errorf("start: %w", err)
	}
	if run == nil {
		return f, nil, errors.New("start: there is nothing to do")
	}
	id := run.GetId()
	probe := func() error {
		if victim == nil || f.killed {
			return nil
		}
		n, at := victim.died()
		if n == deaths {
			return nil
		}
		f.killed = true
		if err := r.write(ctx); err != nil {
			return err
		}
		if c.role == "leader" {
			f.recovery = time.Since(at)
		}
		return nil
	}
	err = fleet.Poll(ctx, rigPoll, "the run "+id+" to end", func() (bool, error) {
		resp, err := r.runs.GetRun(ctx, &coordinatorv1.GetRunRequest{RunId: id})
		if err != nil {
			f.lost = append(f.lost, fmt.Sprintf("run %s was acknowledged: %v", id, err))
			return false, err
		}
		run = resp.GetRun()
		if err := probe(); err != nil {
			f.lost = append(f.lost, err.Error())
			return false, err
		}
		if sc.during != nil && !ended(run) {
			if err := sc.during(ctx, r, run, c); err != nil {
				return false, err
			}
		}
		return ended(run), nil
	})
	if err != nil {
		return f, run, fmt.Errorf("%w; it is %s: %s", err, run.GetState(), run.GetCause())
	}
	if run.GetState() != sc.want {
		f.state = append(f.state, fmt.Sprintf("run %s ended %s, want %s: %s", id, run.GetState(), sc.want, run.GetCause()))
	}
	return f, run, probe()
}

func ended(run *coordinatorv1.Run) bool {
	switch run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_SUCCEEDED, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, coordinatorv1.RunState_RUN_STATE_CANCELLED,
		coordinatorv1.RunState_RUN_STATE_FAILED, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		return true
	}
	return false
}

// judge looks at what is there after the run, and at every effect on the way. It returns the final state in words that do not name a release.
func (r *rig) judge(ctx context.Context, sc scenario, f *findings, run *coordinatorv1.Run, c *crash, before []record, swapped bool) (string, error) {
	resp, err := r.runs.GetRun(ctx, &coordinatorv1.GetRunRequest{RunId: run.GetId()})
	if err != nil {
		return "", err
	}
	for _, step := range resp.GetSteps() {
		if c.cancelled && !strings.HasPrefix(step.GetStepId(), "undo/") && step.GetStartedAt().AsTime().After(c.cancelAcked) {
			f.afterAbort = append(f.afterAbort, fmt.Sprintf("step %s started after run %s was cancelled", step.GetStepId(), run.GetId()))
		}
	}
	got, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: run.GetStack()})
	if err != nil {
		return "", err
	}
	after, err := r.record()
	if err != nil {
		return "", err
	}
	assigned := map[string]*coordinatorv1.Assignment{}
	for _, a := range got.GetRelease().GetAssignments() {
		assigned[a.GetContainer()] = a
	}
	var lines []string
	for i, now := range after {
		host := fmt.Sprintf("h%d", i+1)
		for name, b := range now.containers() {
			if b.stack != run.GetStack() {
				continue
			}
			a := assigned[name]
			if a == nil || a.GetHost() != host {
				f.orphans = append(f.orphans, fmt.Sprintf("%s on %s, which the release does not account for", name, host))
				continue
			}
			delete(assigned, name)
			// Without the slot: on which of two equal hosts a new one is depends on what else is there.
			lines = append(lines, fmt.Sprintf("%s on %s: %s", a.GetService(), part(host, swapped), b.status))
		}
		f.duplicates = append(f.duplicates, now.repeated(len(before[i]))...)
	}
	for name := range assigned {
		f.orphans = append(f.orphans, name+" of the release is nowhere")
	}
	f.floor = append(f.floor, broken(before, after, sc.away)...)
	slices.Sort(lines)
	return fmt.Sprintf("%s\n%s", run.GetState(), strings.Join(lines, "\n")), nil
}

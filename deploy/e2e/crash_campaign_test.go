//go:build e2e || crash

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// disturber kills and pauses coordinators and agents at random, one at a time, while runs go on.
type disturber struct {
	random                               *rand.Rand
	leaderKills, otherKills, agentKills  int
	engineKills                          int
	leaderPauses, otherPauses, hostPause int
	refused                              int // starts, because a host did not answer
}

// disturb goes on until ctx ends.
func (d *disturber) disturb(ctx context.Context, r *rig) error {
	for d.rest(ctx, 20*time.Millisecond, 400*time.Millisecond) {
		leader, follower, err := r.whole(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		names := []string{leader, leader, follower, "h1", "h2", "e1", "e2"}
		m := r.member(names[d.random.IntN(len(names))])
		if err := d.one(ctx, m, m.name == leader); err != nil {
			return err
		}
	}
	return nil
}

// one kills or pauses a member. The supervisor starts again what is killed.
func (d *disturber) one(ctx context.Context, m *member, leads bool) error {
	class := m.name[0]
	if class == 'e' || d.random.IntN(3) > 0 {
		switch {
		case class == 'e':
			d.engineKills++
		case class == 'h':
			d.agentKills++
		case leads:
			d.leaderKills++
		default:
			d.otherKills++
		}
		return m.signal(syscall.SIGKILL)
	}
	switch {
	case class == 'h':
		d.hostPause++
	case leads:
		d.leaderPauses++
	default:
		d.otherPauses++
	}
	if err := m.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	d.rest(ctx, 500*time.Millisecond, 3500*time.Millisecond) // a leader that sleeps longer than a lease, and wakes as one
	return m.signal(syscall.SIGCONT)
}

// patiently starts again what was refused because a host or its engine is being killed at this moment: a definite answer, after which nothing has begun.
func (d *disturber) patiently(start func(context.Context, *rig) (*coordinatorv1.Run, error)) func(context.Context, *rig) (*coordinatorv1.Run, error) {
	return func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
		for {
			run, err := start(ctx, r)
			if err == nil || !strings.Contains(err.Error(), "does not answer") || !pass(ctx, 100*time.Millisecond) {
				return run, err
			}
			d.refused++
		}
	}
}

// rest waits for a random time, and says whether ctx goes on.
func (d *disturber) rest(ctx context.Context, least, most time.Duration) bool {
	return pass(ctx, least+time.Duration(d.random.Int64N(int64(most-least))))
}

// pass lets time pass, and says whether ctx goes on.
func pass(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// campaign repeats updates, failing updates and cancelled ones under random kills and pauses until so many operations were performed.
func campaign(t *testing.T, r *rig, operations int, until time.Time) {
	all := scenarios()
	countingRuns(t, r, all[:1])
	d := &disturber{random: rand.New(rand.NewPCG(crashSeed, 1))}
	order := rand.New(rand.NewPCG(crashSeed, 2))
	began := time.Now()
	done, runs := 0, 0
	var wrong, duplicates []string
	for done < operations && time.Now().Before(until) && t.Context().Err() == nil {
		sc := all[order.IntN(len(all))]
		f, n, err := r.disturbed(t.Context(), sc, d)
		if err != nil {
			t.Errorf("run %d, %s: %v", runs+1, sc.name, err)
			break
		}
		done, runs = done+n, runs+1
		duplicates = append(duplicates, f.duplicates...)
		f.duplicates = nil
		wrong = append(wrong, f.all()...)
	}
	counted(t, "%d operations in %d runs in %s (real coordinators and agents, engines without containers); killed: %d leaders, %d followers, %d agents, %d engines; "+
		"paused: %d leaders, %d followers, %d agents; starts refused for it and repeated: %d; duplicates %d, wrong outcomes %d",
		done, runs, time.Since(began).Round(time.Second), d.leaderKills, d.otherKills, d.agentKills, d.engineKills, d.leaderPauses, d.otherPauses, d.hostPause,
		d.refused, len(duplicates), len(wrong))
	if done < operations {
		t.Errorf("%d operations were performed, want %d", done, operations)
	}
	if found := slices.Concat(duplicates, wrong); len(found) > 0 {
		t.Error(strings.Join(found, "\n"))
	}
}

// disturbed plays a scenario while the disturber is at work, and returns the number of operations that were performed.
func (r *rig) disturbed(ctx context.Context, sc scenario, d *disturber) (*findings, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*caseLimit)
	defer cancel()
	swapped, err := r.prepare(ctx, sc)
	if err != nil {
		return nil, 0, err
	}
	before, err := r.record()
	if err != nil {
		return nil, 0, err
	}
	stop := r.supervise(ctx)
	disturbing, calm := context.WithCancel(ctx)
	trouble := make(chan error, 1)
	go func() { trouble <- d.disturb(disturbing, r) }()
	c := &crash{}
	sc.start = d.patiently(sc.start)
	f, run, err := r.follow(ctx, sc, c, nil)
	calm()
	err = errors.Join(err, <-trouble)
	if err == nil {
		_, _, err = r.whole(ctx)
	}
	if err == nil {
		err = r.write(ctx)
	}
	if err := errors.Join(err, stop()); err != nil {
		return f, 0, err
	}
	if _, err := r.judge(ctx, sc, f, run, c, before, swapped); err != nil {
		return f, 0, err
	}
	n, err := r.operations(ctx, run)
	return f, n, err
}

// operations that a run gave to agents: every attempt of a step that settled otherwise than by being skipped.
func (r *rig) operations(ctx context.Context, run *coordinatorv1.Run) (int, error) {
	resp, err := r.runs.GetRun(ctx, &coordinatorv1.GetRunRequest{RunId: run.GetId()})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", run.GetId(), err)
	}
	n := 0
	for _, step := range resp.GetSteps() {
		n += int(step.GetAttempt())
	}
	return n, nil
}

// Package procedure is the engine: it runs a plan, whatever it holds, and knows no procedure by name.
//
// The state machine decides which operations are open; the engine on the leader calls the agents for them and proposes the outcomes. It keeps
// nothing that a successor would miss: after a change of leader the next engine finds the open operations in the state and calls
// the same agents with the same operation ids. What to run, and in which order, is the business of the planners in package runbook.
package procedure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// unreachableAfter is how long a host may not answer before its operations are shown as blocked.
	unreachableAfter = 3 * time.Second
	retryFirst       = 20 * time.Millisecond
	retryMost        = time.Second
	tickPause        = 100 * time.Millisecond
)

// Options of an engine. All fields but Now are required.
type Options struct {
	// ID of this coordinator.
	ID string
	// State that decides.
	State *state.State
	// Propose commits a command. An error says nothing about whether it was committed.
	Propose func(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error)
	// Conn returns the connection to a host's agent, or an error while there is none.
	Conn func(host string) (grpc.ClientConnInterface, error)
	// HostsChanged returns a channel that is closed at the next time that a host connects.
	HostsChanged func() <-chan struct{}
	Logger       *slog.Logger
	// Now is the clock that commands are stamped with, by which delays and deadlines pass; nil means the machine's.
	Now func() time.Time
}

// Engine runs the plans of all active runs while its coordinator leads.
type Engine struct {
	options Options
	log     *slog.Logger
}

// New returns an engine. Nothing runs before Lead.
func New(options Options) *Engine {
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Engine{options: options, log: options.Logger.With("component", "engine")}
}

// leadership is one engine's time as the leader's.
type leadership struct {
	*Engine
	epoch uint64
	group *errgroup.Group

	mu      sync.Mutex
	drivers map[string]*driver // by operation id
	reports chan report
}

// driver carries out one operation.
type driver struct {
	cancel context.CancelFunc
	step   *coordinatorv1.StepStatus
}

// report says that the host of an open operation does not answer, or answers again.
type report struct {
	ref         *raftv1.StepRef
	unreachable bool
}

// Lead takes the engine over and runs until the context ends, which it does with the leadership.
func (e *Engine) Lead(ctx context.Context, term uint64) error {
	result, err := e.propose(ctx, &raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: e.options.ID, Term: term}}})
	if err != nil {
		return fmt.Errorf("take the engine over: %w", err)
	}
	e.log.Info("engine took over", "epoch", result.GetEpoch(), "term", term)
	group, running := errgroup.WithContext(ctx)
	l := &leadership{Engine: e, epoch: result.GetEpoch(), group: group, drivers: map[string]*driver{}, reports: make(chan report, 64)}
	group.Go(func() error { return l.pump(running) })
	err = group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the engine ended while its coordinator leads: %w", err)
}

// propose stamps a command and commits it.
func (e *Engine) propose(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error) {
	command.Version, command.Now, command.Actor = state.CommandVersion, timestamppb.New(e.options.Now()), "engine/"+e.options.ID
	result, err := e.options.Propose(ctx, command)
	if err != nil {
		return nil, err
	}
	if refusal := result.GetError(); refusal != nil {
		return nil, errors.New(refusal.GetMessage())
	}
	return result, nil
}

// pump starts a driver for every operation that is open, ends those that are not open any more, and lets deadlines pass.
func (l *leadership) pump(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := l.options.State.Changed()
		view := l.options.State.View()
		l.reconcile(ctx, view)
		due, next := dueRuns(view, l.options.Now())
		if len(due) > 0 {
			if err := l.tick(ctx, &raftv1.Tick{RunIds: due}); err != nil {
				return err
			}
			// What is due has passed with the tick, unless the leader's clock is behind the one that set it.
			now := l.options.Now()
			if due, _ = dueRuns(l.options.State.View(), now); len(due) == 0 {
				continue
			}
			// The tick itself was a change: only time helps now.
			next, changed = now.Add(tickPause), nil
		}
		resetTimer(timer, next, l.options.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		case r := <-l.reports:
			if err := l.tick(ctx, gather(r, l.reports)); err != nil {
				return err
			}
		}
	}
}

func resetTimer(timer *time.Timer, at, now time.Time) {
	if at.IsZero() {
		timer.Stop()
		return
	}
	timer.Reset(max(time.Millisecond, at.Sub(now)))
}

// gather takes all reports that are there, so that they cost one entry of the log.
func gather(first report, more <-chan report) *raftv1.Tick {
	tick := &raftv1.Tick{}
	for r := first; ; {
		if r.unreachable {
			tick.Unreachable = append(tick.Unreachable, r.ref)
		} else {
			tick.Reachable = append(tick.Reachable, r.ref)
		}
		select {
		case r = <-more:
		default:
			return tick
		}
	}
}

func (l *leadership) tick(ctx context.Context, tick *raftv1.Tick) error {
	tick.Epoch = l.epoch
	_, err := l.propose(ctx, &raftv1.Command{Op: &raftv1.Command_Tick{Tick: tick}})
	if err != nil {
		return fmt.Errorf("propose a tick: %w", err)
	}
	return nil
}

// reconcile makes the drivers those of the open operations.
func (l *leadership) reconcile(ctx context.Context, view *state.View) {
	open := map[string]bool{}
	for _, step := range view.OpenSteps() {
		id := state.OperationID(step)
		open[id] = true
		l.mu.Lock()
		_, driven := l.drivers[id]
		l.mu.Unlock()
		if driven {
			continue
		}
		def := state.Definition(view.Plan(step.GetRunId()), step.GetStepId())
		run := view.Run(step.GetRunId())
		driverCtx, cancel := context.WithCancel(ctx)
		l.mu.Lock()
		l.drivers[id] = &driver{cancel: cancel, step: step}
		l.mu.Unlock()
		l.group.Go(func() error {
			defer cancel()
			return l.drive(driverCtx, run, step, def)
		})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, d := range l.drivers {
		if !open[id] {
			d.cancel()
			delete(l.drivers, id)
		}
	}
}

// dueRuns returns the runs with a delay or deadline that has passed, and when the next one will.
func dueRuns(view *state.View, now time.Time) (due []string, next time.Time) {
	for _, run := range view.ActiveRuns() {
		at := state.NextDue(view, run)
		if at.IsZero() {
			continue
		}
		if !now.Before(at) {
			due = append(due, run.GetId())
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return due, next
}

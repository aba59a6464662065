// Package warden looks after hosts that stop answering and come back, on the leader only: it starts the replacing of instances where their
// services ask for that, and the removal of what was given up when a host returns. It plans with package runbook and keeps nothing that a
// successor would miss: what is to be done it sees in the state. What hosts are up is package hosts' business, how a run goes the engine's.
package warden

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	defaultReplaceAfter = 5 * time.Minute
	// settleTime is how long a host must be up before its old containers are removed: a run waits for a host that goes again.
	settleTime = 3 * time.Second
	// gatherTime is how long changes are gathered before the next look: a busy log must not be looked at entry by entry.
	gatherTime = 250 * time.Millisecond
	retryFirst = 10 * time.Second
	retryMost  = 5 * time.Minute
	planTime   = time.Minute
)

// Options of a warden. All fields are required.
type Options struct {
	// ID of this coordinator.
	ID string
	// State that decides.
	State *state.State
	// Planner of the runs.
	Planner *runbook.Planner
	// Propose commits a command. An error says nothing about whether it was committed.
	Propose func(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error)
	// Now is the leader's clock, by which the state stamps what it records.
	Now    func() time.Time
	Logger *slog.Logger
}

// Warden starts runs for hosts that do not answer, and for those that answer again.
type Warden struct {
	options Options
	log     *slog.Logger
}

// New returns a warden. Nothing is done before Lead.
func New(options Options) *Warden {
	return &Warden{options: options, log: options.Logger.With("component", "warden")}
}

// attempts is when something may be tried again that did not work.
type attempts struct {
	next  time.Time
	pause time.Duration
}

// round is one leadership's memory of what it tried: a successor may try sooner, which does no harm.
type round struct {
	*Warden
	tried map[string]*attempts
}

// Lead looks after the fleet until the context ends: to be called on the leader only.
func (w *Warden) Lead(ctx context.Context) error {
	r := &round{Warden: w, tried: map[string]*attempts{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := w.options.State.Changed()
		next := r.look(ctx, w.options.Now())
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(time.Millisecond, next.Sub(w.options.Now())))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Reset(gatherTime)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
}

// look does what is due, and returns when the next thing will be; zero if nothing is in sight.
func (r *round) look(ctx context.Context, now time.Time) time.Time {
	view := r.options.State.View()
	var down []*coordinatorv1.Host
	for _, host := range view.Hosts() {
		if host.GetState() == coordinatorv1.HostState_HOST_STATE_DOWN {
			down = append(down, host)
		}
	}
	maps.DeleteFunc(r.tried, func(_ string, tried *attempts) bool { return now.Sub(tried.next) > retryMost })
	var next time.Time
	for _, known := range view.Stacks() {
		name := known.GetName()
		if view.Lock("stack/"+name) != nil {
			continue // Its end is a change that wakes us.
		}
		if at := r.due("tidy/"+name, tidyDue(view, known)); r.at(now, at, &next) {
			r.attempt(ctx, "tidy/"+name, now, func(context.Context) (*runbook.Proposal, string, error) {
				proposal, err := runbook.Tidy(view, name)
				return proposal, "the hosts answer again", err
			}, &next)
			continue // One run at a time: its lock is taken.
		}
		for _, host := range down {
			key := "replace/" + name + "/" + host.GetName()
			if at := r.due(key, replaceDue(view, known, host)); r.at(now, at, &next) {
				r.attempt(ctx, key, now, func(ctx context.Context) (*runbook.Proposal, string, error) {
					return r.replace(ctx, view, name, host)
				}, &next)
				break
			}
		}
	}
	return next
}

// at says that a time has come. One that has not is noted if it is the soonest.
func (r *round) at(now, at time.Time, next *time.Time) bool {
	if at.IsZero() {
		return false
	}
	if !now.Before(at) {
		return true
	}
	if next.IsZero() || at.Before(*next) {
		*next = at
	}
	return false
}

// due is when something may be tried that is possible from a time on; zero if it is not.
func (r *round) due(key string, at time.Time) time.Time {
	tried := r.tried[key]
	switch {
	case at.IsZero():
		delete(r.tried, key)
	case tried != nil && tried.next.After(at):
		return tried.next
	}
	return at
}

// tidyDue is when abandoned containers of a stack can be removed; zero for never, as things are.
func tidyDue(view *state.View, known *coordinatorv1.Stack) time.Time {
	var soonest time.Time
	for _, a := range known.GetAbandoned() {
		host := view.Host(a.GetHost())
		if host.GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			continue
		}
		if at := host.GetStateSince().AsTime().Add(settleTime); soonest.IsZero() || at.Before(soonest) {
			soonest = at
		}
	}
	return soonest
}

// replaceDue is when the instances of a stack on a host that is down are replaced without being asked for; zero for never. All services
// with instances there must say so. Global services have no say: they have one instance on each host, and elsewhere is none.
func replaceDue(view *state.View, known *coordinatorv1.Stack, host *coordinatorv1.Host) time.Time {
	release := view.CurrentRelease(known.GetName())
	services := map[string]*coordinatorv1.Service{}
	for _, service := range release.GetServices() {
		services[service.GetName()] = service
	}
	after, affected := time.Duration(0), false
	for _, a := range release.GetAssignments() {
		service := services[a.GetService()]
		if a.GetHost() != host.GetName() || service.GetPlacement().GetGlobal() {
			continue
		}
		if service.GetOnHostLost() != stack.OnHostLostReplace {
			return time.Time{}
		}
		affected = true
		wait := service.GetReplaceAfter().AsDuration()
		if wait <= 0 {
			wait = defaultReplaceAfter
		}
		after = max(after, wait)
	}
	if !affected {
		return time.Time{}
	}
	return host.GetStateSince().AsTime().Add(after)
}

// replace plans the replacing of a stack's instances on a host that does not answer.
func (r *round) replace(ctx context.Context, view *state.View, name string, host *coordinatorv1.Host) (*runbook.Proposal, string, error) {
	proposals, err := r.options.Planner.Drain(ctx, view, runbook.DrainRequest{Host: host.GetName(), Stack: name, Lost: true})
	if err != nil || len(proposals) == 0 {
		return nil, "", err
	}
	reason := fmt.Sprintf("host %s does not answer since %s, and on_host_lost is replace",
		host.GetName(), host.GetStateSince().AsTime().UTC().Format(time.RFC3339))
	return proposals[0], reason, nil
}

// attempt plans and starts a run. Whatever becomes of it, the same is not tried again at once.
func (r *round) attempt(ctx context.Context, key string, now time.Time, plan func(context.Context) (*runbook.Proposal, string, error), next *time.Time) {
	tried := r.tried[key]
	if tried == nil {
		tried = &attempts{pause: retryFirst}
		r.tried[key] = tried
	} else {
		tried.pause = min(2*tried.pause, retryMost)
	}
	tried.next = now.Add(tried.pause)
	r.at(now, tried.next, next)
	limited, cancel := context.WithTimeout(ctx, planTime)
	defer cancel()
	proposal, reason, err := plan(limited)
	if err == nil && proposal != nil {
		err = r.start(limited, proposal, reason)
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("run not started", "what", key, "retry_in", tried.pause, "err", err)
	}
}

func (r *round) start(ctx context.Context, proposal *runbook.Proposal, reason string) error {
	result, err := r.options.Propose(ctx, &raftv1.Command{
		Version: state.CommandVersion, Now: timestamppb.New(r.options.Now()), Actor: "warden/" + r.options.ID,
		Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
			Plan: proposal.Plan, Release: proposal.Release, StackRevision: proposal.StackRevision, Reason: reason,
		}},
	})
	if err != nil {
		return err
	}
	if refusal := result.GetError(); refusal != nil {
		return errors.New(refusal.GetMessage())
	}
	r.log.Info("run started", "run", result.GetRun().GetId(), "title", proposal.Plan.GetTitle(), "reason", reason)
	return nil
}

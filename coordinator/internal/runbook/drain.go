package runbook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	// DrainProcedure is what plans of Drain are made by.
	DrainProcedure = "drain"
	// noService is the name of none: a drain moves instances, and repairs or starts nothing beside that.
	noService = "(none)"
	// defaultDrain is the deadline of each stack's run.
	defaultDrain = time.Hour
)

// DrainRequest says what leaves a host.
type DrainRequest struct {
	// Host that is drained.
	Host string
	// Stack whose instances leave; empty means every stack's.
	Stack string
	// Lost says that the host does not answer: nothing is done there.
	Lost bool
	// Deadline of each stack's run; 0 means an hour.
	Deadline time.Duration
}

// drain is what a candidate knows of the drain that it belongs to.
type drain struct {
	host     string
	lost     bool
	deadline time.Duration
	// waits says that the stacks before it are drained first: what runs on it now will have ended, or its own call will say so.
	waits bool
	// left are instances that cannot leave a host that does not answer: they stay assigned to it.
	left []stack.Stuck
}

func (d *drain) later() bool { return d != nil && d.waits }

func (d *drain) from() string {
	if d == nil {
		return ""
	}
	return d.host
}

// Drain proposes for each stack with instances on a host, in order of their names, a release that has them elsewhere. Each proposal counts with
// the ones before it. Instances that cannot leave are one error, CANNOT_DRAIN, which lists all of them with their reasons. If the host is lost,
// they are only that if nothing can leave: what can be started elsewhere does not wait for them.
func (p *Planner) Drain(ctx context.Context, view *state.View, req DrainRequest) ([]*Proposal, error) {
	if err := p.checkDrain(ctx, view, req); err != nil {
		return nil, err
	}
	if req.Deadline <= 0 {
		req.Deadline = defaultDrain
	}
	var proposals []*Proposal
	var stuck []stack.Stuck
	planned := map[string]*coordinatorv1.Release{}
	for i, name := range StacksOn(view, req.Host, req.Stack) {
		d := &drain{host: req.Host, lost: req.Lost, deadline: req.Deadline, waits: i > 0}
		proposal, err := p.drainStack(ctx, view, name, d, planned)
		var list *stack.StuckError
		if errors.As(err, &list) {
			stuck = append(stuck, list.Stuck...)
			continue
		}
		if err != nil {
			return nil, err
		}
		stuck = append(stuck, d.left...)
		if len(proposal.Plan.GetSteps()) == 0 {
			continue
		}
		planned[name] = proposal.Release
		proposals = append(proposals, proposal)
	}
	if len(stuck) > 0 && (len(proposals) == 0 || !req.Lost) {
		lines := make([]string, len(stuck))
		for i, s := range stuck {
			lines[i] = s.Instance + ": " + s.Why
		}
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_CANNOT_DRAIN,
			"host %s cannot be drained, because of %d of its instances; nothing was changed\n  %s", req.Host, len(stuck), strings.Join(lines, "\n  "))
	}
	return proposals, nil
}

// StacksOn returns the stacks with instances on a host, or with a run that puts some there, in order of their names; only one of them if it is named.
func StacksOn(view *state.View, host, only string) []string {
	var names []string
	for _, known := range view.Stacks() {
		there := func(release *coordinatorv1.Release) bool {
			return slices.ContainsFunc(release.GetAssignments(), func(a *coordinatorv1.Assignment) bool { return a.GetHost() == host })
		}
		coming := view.Release(known.GetName(), view.Run(known.GetActiveRun()).GetActivateRelease())
		if on := there(view.CurrentRelease(known.GetName())) || there(coming); on && (only == "" || only == known.GetName()) {
			names = append(names, known.GetName())
		}
	}
	return names
}

// checkDrain refuses a drain that is not meant as it was said: of a host that does not answer, or of one that does and was called lost.
func (p *Planner) checkDrain(ctx context.Context, view *state.View, req DrainRequest) error {
	host := view.Host(req.Host)
	if host == nil {
		return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q: `musterctl host list` shows them", req.Host)
	}
	if req.Stack != "" && view.Stack(req.Stack) == nil {
		return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q: `musterctl stack list` shows them", req.Stack)
	}
	state := host.GetState()
	if !req.Lost {
		switch state {
		case coordinatorv1.HostState_HOST_STATE_UP, coordinatorv1.HostState_HOST_STATE_JOINED:
			return nil
		case coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN:
			return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
				"the Docker engine of host %s does not answer, so nothing can be stopped there: start it, then drain", req.Host)
		}
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
			"host %s does not answer since %s: if it will not come back soon, `musterctl host drain %s --lost` starts its instances elsewhere",
			req.Host, host.GetStateSince().AsTime().UTC().Format(time.RFC3339), req.Host)
	}
	answers := state != coordinatorv1.HostState_HOST_STATE_DOWN
	if !answers {
		_, err := p.Conn(ctx, req.Host)
		answers = err == nil
	}
	if answers {
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_CANNOT_DRAIN,
			"host %s answers, so it is not lost: drain it without --lost, or its instances would run twice", req.Host)
	}
	return nil
}

func (p *Planner) drainStack(ctx context.Context, view *state.View, name string, d *drain, planned map[string]*coordinatorv1.Release) (*Proposal, error) {
	c := newCandidate(view, name)
	c.repeat()
	c.procedure, c.drain, c.planned, c.only = DrainProcedure, d, planned, noService
	c.title = fmt.Sprintf("drain host %s of stack %s, as release %d", d.host, name, c.release.GetNumber())
	if d.lost {
		c.title = fmt.Sprintf("replace the instances of stack %s on host %s, which is lost, as release %d", name, d.host, c.release.GetNumber())
	}
	return p.propose(ctx, c)
}

// explainDrain notes where everything goes.
func (c *candidate) explainDrain() {
	before := map[string]*coordinatorv1.Assignment{}
	for _, a := range c.before.GetAssignments() {
		before[state.GroupOf(a)] = a
	}
	moves, stays := map[string][]string{}, map[string]bool{}
	for _, a := range c.release.GetAssignments() {
		group := state.GroupOf(a)
		stays[group] = true
		if before[group].GetHost() == c.drain.host && a.GetHost() != c.drain.host {
			moves[a.GetService()] = append(moves[a.GetService()], group+" to "+a.GetHost())
		}
	}
	for _, service := range c.release.GetServices() {
		name := service.GetName()
		if len(moves[name]) > 0 {
			c.notes = append(c.notes, fmt.Sprintf("from host %s: %s", c.drain.host, strings.Join(moves[name], ", ")))
		}
		if why := stack.Alone(service); why != "" && len(moves[name]) > 0 && !c.drain.lost {
			c.notes = append(c.notes, fmt.Sprintf("service %s moves stop-first, so it does not serve meanwhile: %s", name, why))
		}
	}
	for _, a := range c.before.GetAssignments() {
		if a.GetHost() == c.drain.host && !stays[state.GroupOf(a)] {
			c.notes = append(c.notes, fmt.Sprintf("service %s is global: %s on host %s ends and goes nowhere else; the first release after `musterctl host uncordon %s` brings it back",
				a.GetService(), state.GroupOf(a), c.drain.host, c.drain.host))
		}
	}
	if host := c.view.Host(c.drain.host); len(host.GetInventory().GetRouteDrivers()) > 0 {
		c.warnings = append(c.warnings, fmt.Sprintf("host %s drives a proxy: requests go on passing through it, whatever instances leave", c.drain.host))
	}
	for _, left := range c.drain.left {
		c.warnings = append(c.warnings, fmt.Sprintf("%s stays without an instance until host %s is back: %s", left.Instance, c.drain.host, left.Why))
	}
	slices.Sort(c.notes)
}

// drainTerms sets what differs from an update: the release is right only when every instance has left, and a drain that takes too long asks.
func (b *rollout) drainTerms() {
	b.plan.OnDeadline = coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE
	b.plan.MaxDuration = durationpb.New(b.Deadline)
	for _, budget := range b.plan.GetBudgets() {
		budget.MaxFailureRatio, budget.FailureAction = 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK
	}
	moved := map[string]bool{}
	for _, a := range b.Before.GetAssignments() {
		moved[a.GetService()] = moved[a.GetService()] || a.GetHost() == b.Drain
	}
	for _, change := range b.plan.GetChanges() {
		if moved[change.GetService()] && change.GetKind() == coordinatorv1.ChangeKind_CHANGE_KIND_NONE {
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE // Nothing of the service differs, but it does not stay as it is.
		}
	}
	if !b.Cut {
		return
	}
	kept := map[string]bool{}
	for _, a := range b.After.GetAssignments() {
		kept[a.GetContainer()] = true
	}
	for _, a := range b.Before.GetAssignments() {
		if a.GetHost() == b.Drain && !kept[a.GetContainer()] {
			b.plan.Abandons = append(b.plan.Abandons, &coordinatorv1.Abandoned{Host: a.GetHost(), Container: a.GetContainer()})
		}
	}
}

// cut says that a container is on a host that does not answer.
func (b *rollout) cut(a *coordinatorv1.Assignment) bool { return b.Cut && a.GetHost() == b.Drain }

// isLost says that a container does not run any more, as far as anybody can tell.
func (b *rollout) isLost(a *coordinatorv1.Assignment) bool {
	return b.Lost[a.GetContainer()] || b.cut(a)
}

// movesStartFirst says that a stop-first instance can be started on its new host before it is stopped on the drained one.
func (b *rollout) movesStartFirst(u unit) bool {
	return b.Drain != "" && u.from.GetHost() == b.Drain && u.to.GetHost() != b.Drain && stack.Alone(u.service) == ""
}

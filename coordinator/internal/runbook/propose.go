package runbook

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Planner makes proposals from the present state and from what the hosts say. It changes nothing.
type Planner struct {
	// Conn returns the connection to a host's agent, waiting a while for a host that is up; an error if there is none.
	Conn func(ctx context.Context, host string) (grpc.ClientConnInterface, error)
}

// Proposal is a plan with what it puts in place, ready to be started.
type Proposal struct {
	Plan    *coordinatorv1.Plan
	Release *coordinatorv1.Release
	// StackRevision that the plan was made for.
	StackRevision uint64
	// Warnings for the operator.
	Warnings []string
}

// Empty says that there is nothing to do.
func (p *Proposal) Empty() bool {
	for _, change := range p.Plan.GetChanges() {
		if change.GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_NONE {
			return false
		}
	}
	return len(p.Plan.GetSteps()) == 0
}

// candidate is a release on its way to be proposed.
type candidate struct {
	view      *state.View
	release   *coordinatorv1.Release
	before    *coordinatorv1.Release
	title     string
	noGate    bool
	hosts     []*coordinatorv1.Host
	proxies   []*coordinatorv1.Host
	links     *stack.Links
	lost      map[string]bool
	stopped   map[string]bool // containers that rest and could be started
	leftovers []Leftover
	warnings  []string
	notes     []string

	procedure string
	only      string          // service beside which nothing is repaired or started; empty for none
	renew     map[string]bool // containers that are replaced although nothing of them changes
	delay     time.Duration   // between waves, instead of the update's
	drain     *drain
	// planned are releases of other stacks that are not current yet, but will be before this one.
	planned map[string]*coordinatorv1.Release
}

// Apply proposes the way to what the files of a stack say.
func (p *Planner) Apply(ctx context.Context, view *state.View, model *stack.Model, noGate bool) (*Proposal, error) {
	c := newCandidate(view, model.Name)
	c.release.Services, c.release.Networks, c.release.SourceDigest = cloneAll(model.Services), model.Networks, model.Digest
	c.title, c.noGate, c.warnings = fmt.Sprintf("apply %s, release %d", model.Name, c.release.GetNumber()), noGate, model.Warnings
	return p.propose(ctx, c)
}

// Rollback proposes the way back to an earlier release, 0 for the one before the current.
func (p *Planner) Rollback(ctx context.Context, view *state.View, name string, number uint64) (*Proposal, error) {
	current := view.Stack(name)
	if current == nil {
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q: `musterctl stack list` shows them", name)
	}
	if number == 0 {
		number = current.GetPreviousRelease()
	}
	target := view.Release(name, number)
	if target == nil || number == 0 {
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_RELEASE_NOT_FOUND,
			"stack %s has no release %d to return to: `musterctl stack history %s` shows them", name, number, name)
	}
	c := newCandidate(view, name)
	c.release.Services, c.release.Networks, c.release.SourceDigest = cloneAll(target.GetServices()), target.GetNetworks(), target.GetSourceDigest()
	c.release.RollbackOf, c.noGate = number, true
	c.title = fmt.Sprintf("roll %s back to release %d, as release %d", name, number, c.release.GetNumber())
	return p.propose(ctx, c)
}

func newCandidate(view *state.View, name string) *candidate {
	c := &candidate{view: view, before: view.CurrentRelease(name), hosts: view.Hosts(), lost: map[string]bool{}, stopped: map[string]bool{}}
	c.release = &coordinatorv1.Release{Stack: name, Number: view.Stack(name).GetLastRelease() + 1}
	for _, host := range c.hosts {
		switch {
		case len(host.GetInventory().GetRouteDrivers()) == 0:
		case host.GetState() == coordinatorv1.HostState_HOST_STATE_UP:
			c.proxies = append(c.proxies, host)
		default:
			c.notes = append(c.notes, fmt.Sprintf("host %s drives a proxy and is not up: should it come back, its routes lead to the release before", host.GetName()))
		}
	}
	return c
}

func cloneAll(services []*coordinatorv1.Service) []*coordinatorv1.Service {
	cloned := make([]*coordinatorv1.Service, len(services))
	for i, service := range services {
		cloned[i] = proto.CloneOf(service)
	}
	return cloned
}

func (p *Planner) propose(ctx context.Context, c *candidate) (*Proposal, error) {
	for _, step := range []func(context.Context, *candidate) error{p.checkStack, p.pinSecrets, p.pinImages, p.checkGates, p.findLost, p.place, p.checkLocalImages} {
		if err := step(ctx, c); err != nil {
			return nil, err
		}
	}
	specs := c.specs()
	if err := p.checkHosts(ctx, c, specs); err != nil {
		return nil, err
	}
	proxies := make([]string, len(c.proxies))
	for i, host := range c.proxies {
		proxies[i] = host.GetName()
	}
	c.explain()
	rollout := Rollout{
		Title: c.title, Before: c.before, After: c.release, Specs: specs, Proxies: proxies, Lost: c.lost, Leftovers: c.leftovers, Notes: c.notes,
		Procedure: c.procedure, Stopped: c.stopped, Delay: c.delay,
	}
	if c.drain != nil {
		rollout.Drain, rollout.Cut, rollout.Deadline = c.drain.host, c.drain.lost, c.drain.deadline
	}
	plan, err := RollingUpdate(rollout)
	if err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID, "%s", err)
	}
	return &Proposal{Plan: plan, Release: c.release, StackRevision: c.view.Stack(c.release.GetStack()).GetRevision(), Warnings: c.warnings}, nil
}

// checkStack refuses what cannot be planned at all now.
func (p *Planner) checkStack(_ context.Context, c *candidate) error {
	name := c.release.GetStack()
	if err := checkLock(c.view, name); err != nil && !c.drain.later() {
		return err
	}
	if len(c.upHosts()) == 0 {
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
			"no host is up: `musterctl host list` shows them, `musterctl host token` lets one join")
	}
	for _, service := range c.release.GetServices() {
		for _, dependency := range service.GetDependsOn() {
			if dependency.GetCondition() == "service_completed_successfully" {
				return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID,
					"service %s: depends_on %s with condition service_completed_successfully is not supported yet: use service_healthy or service_started",
					service.GetName(), dependency.GetService())
			}
		}
		if service.GetJob() {
			return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID,
				"service %s: x-muster.job is not supported yet: run it by hand and leave it out of the file, or give it a profile", service.GetName())
		}
		if service.GetRoute() != nil && len(c.proxies) == 0 {
			return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
				"service %s has a route, but no host that is up drives a proxy: start an agent with --route-driver caddy", service.GetName())
		}
	}
	return nil
}

// checkLock refuses to plan for a stack that a run changes.
func checkLock(view *state.View, name string) error {
	lock := view.Lock("stack/" + name)
	if lock == nil {
		return nil
	}
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD,
		"run %s (%s) changes stack %s since %s: wait for it with `musterctl run watch %s`, or cancel it",
		lock.GetRunId(), lock.GetReason(), name, lock.GetTakenAt().AsTime().Format(time.RFC3339), lock.GetRunId())
}

func (c *candidate) upHosts() []string {
	var up []string
	for _, host := range c.hosts {
		if host.GetState() == coordinatorv1.HostState_HOST_STATE_UP {
			up = append(up, host.GetName())
		}
	}
	return up
}

// pinSecrets gives every secret without a version the newest one.
func (p *Planner) pinSecrets(_ context.Context, c *candidate) error {
	var missing []string
	for _, service := range c.release.GetServices() {
		for _, mount := range service.GetTemplate().GetSecrets() {
			stored := c.view.Secret(mount.GetSecret().GetName(), mount.GetSecret().GetVersion())
			if stored == nil {
				missing = append(missing, mount.GetSecret().GetName())
				continue
			}
			mount.Secret.Version = stored.GetVersion()
		}
	}
	slices.Sort(missing)
	if missing = slices.Compact(missing); len(missing) > 0 {
		return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND,
			"the secret store has no %s: store each with `musterctl secret set NAME`", strings.Join(missing, ", "))
	}
	return nil
}

// checkGates makes sure that every service gives evidence of being ready, and that it is watched for longer than its health check needs to fail.
func (p *Planner) checkGates(_ context.Context, c *candidate) error {
	var without []string
	for _, service := range c.release.GetServices() {
		if service.GetGate() != nil {
			continue
		}
		if !c.noGate {
			without = append(without, service.GetName()+": "+stack.GateHint(service))
			continue
		}
		service.Gate = &agentv1.Gate{Probe: &agentv1.Gate_Running{Running: &agentv1.RunningProbe{}}, Deadline: durationpb.New(time.Minute)}
		c.notes = append(c.notes, fmt.Sprintf("service %s has no gate: running counts as ready", service.GetName()))
	}
	if len(without) > 0 {
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NO_GATE,
			"no gate says when an instance is ready; add one, or accept that with --no-gate\n  %s", strings.Join(without, "\n  "))
	}
	return nil
}

// place decides where everything runs and how names lead there.
func (p *Planner) place(_ context.Context, c *candidate) error {
	proxies := map[string]string{}
	for _, service := range c.release.GetServices() {
		if service.GetRoute() != nil && len(c.proxies) > 0 {
			proxies[service.GetName()] = c.proxies[0].GetInventory().GetAddress()
		}
	}
	var others []stack.Use
	for _, other := range c.view.Stacks() {
		release := c.view.CurrentRelease(other.GetName())
		if next := c.planned[other.GetName()]; next != nil {
			release = next
		}
		if other.GetName() != c.release.GetStack() {
			others = append(others, stack.Uses(release)...)
		}
	}
	request := stack.PlaceRequest{
		Stack: c.release.GetStack(), Release: c.release.GetNumber(), Services: c.release.GetServices(), Hosts: c.hosts,
		Before: c.before.GetServices(), Current: c.before.GetAssignments(), Lost: c.replaced(), Others: others, Proxies: proxies,
		Drain: c.drain.from(), DownStays: c.drain != nil,
	}
	if c.drain != nil && c.drain.lost {
		request.Left = &c.drain.left
	}
	assignments, err := stack.Place(request)
	if err != nil {
		return err
	}
	c.release.Assignments = assignments
	c.settleStopped()
	c.links, err = stack.Link(stack.LinkRequest{Services: c.release.GetServices(), Assignments: assignments, Proxies: proxies})
	if err != nil && c.drain != nil {
		return &stack.StuckError{Stuck: []stack.Stuck{{Instance: c.release.GetStack(), Why: rpcerr.Message(err)}}}
	}
	if err != nil {
		return err
	}
	c.warnings = append(slices.Clone(c.warnings), c.links.Warnings...)
	return nil
}

// replaced are the current containers whose instances get new ones whether or not their services change.
func (c *candidate) replaced() map[string]bool {
	all := maps.Clone(c.lost)
	maps.Copy(all, c.renew)
	return all
}

// settleStopped treats stopped containers that the new release has no use for like lost ones: nothing serves there, and they are removed. The others
// are started by what puts a whole stack in place; to do something else to a stack leaves them as they are.
func (c *candidate) settleStopped() {
	kept := map[string]bool{}
	for _, a := range c.release.GetAssignments() {
		kept[a.GetContainer()] = true
	}
	for _, a := range c.before.GetAssignments() {
		if name := a.GetContainer(); c.stopped[name] && !kept[name] {
			delete(c.stopped, name)
			c.lost[name] = true
			c.leftovers = append(c.leftovers, Leftover{Host: a.GetHost(), Container: name})
			if c.drain != nil {
				c.notes = append(c.notes, fmt.Sprintf("container %s is stopped: where its instance goes, it runs", name))
			}
		}
	}
	if c.procedure != "" {
		clear(c.stopped)
	}
	sortLeftovers(c.leftovers)
}

// specs returns the specs of the containers that this release creates, by their names.
func (c *candidate) specs() map[string]*agentv1.ContainerSpec {
	services := map[string]*coordinatorv1.Service{}
	for _, service := range c.release.GetServices() {
		services[service.GetName()] = service
	}
	specs := map[string]*agentv1.ContainerSpec{}
	for _, a := range c.release.GetAssignments() {
		if a.GetRelease() == c.release.GetNumber() {
			specs[a.GetContainer()] = stack.Spec(c.release.GetStack(), services[a.GetService()], a, c.links)
		}
	}
	return specs
}

// explain adds the notes that the operator should see before the start.
func (c *candidate) explain() {
	if c.drain != nil {
		c.explainDrain()
		return
	}
	created := map[string]bool{}
	for _, a := range c.release.GetAssignments() {
		created[a.GetService()] = created[a.GetService()] || a.GetRelease() == c.release.GetNumber()
	}
	for _, service := range c.release.GetServices() {
		if !created[service.GetName()] {
			continue
		}
		if service.GetStopFirst() != "" {
			c.notes = append(c.notes, fmt.Sprintf("service %s is updated stop-first: %s", service.GetName(), service.GetStopFirst()))
		}
		if service.GetPinned() != "" {
			c.notes = append(c.notes, fmt.Sprintf("service %s stays on its host: %s", service.GetName(), service.GetPinned()))
		}
	}
	for name := range c.lost {
		c.notes = append(c.notes, fmt.Sprintf("container %s does not run any more: its instance gets a new one", name))
	}
	for name := range c.stopped {
		c.notes = append(c.notes, fmt.Sprintf("container %s is stopped: it is started again", name))
	}
	slices.Sort(c.notes)
}

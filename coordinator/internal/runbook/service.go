package runbook

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// delayLimit bounds the delay between waves: more is a typing error.
const delayLimit = 24 * time.Hour

// operation is one verb on instances of a service, on its way to be a plan.
type operation struct {
	rollout
	view     *state.View
	req      *coordinatorv1.OperateServiceRequest
	service  *coordinatorv1.Service
	members  []*member // of the service, in order of their slots
	selected []*member
	signal   string
	delay    time.Duration
}

// member is one instance as its host sees it.
type member struct {
	assignment *coordinatorv1.Assignment
	container  *agentv1.Container // nil if the host has none of the name
}

func (m *member) runs() bool { return runs(m.container.GetState()) }

// serves says that the instance runs and that nothing speaks against its health.
func (m *member) serves() bool {
	return m.container.GetState() == "running" && m.container.GetHealth() != "unhealthy"
}

// ServiceProcedure is the name of the procedure that carries out a verb.
func ServiceProcedure(verb coordinatorv1.ServiceVerb) string {
	return strings.ToLower(strings.TrimPrefix(verb.String(), "SERVICE_VERB_"))
}

// Operate proposes to do one thing to the instances of a service. Only RECREATE makes a release: the other verbs leave the containers as they are.
func (p *Planner) Operate(ctx context.Context, view *state.View, req *coordinatorv1.OperateServiceRequest) (*Proposal, error) {
	o, err := newOperation(view, req)
	if err != nil {
		return nil, err
	}
	if req.GetVerb() == coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE {
		return p.recreate(ctx, o)
	}
	if err := p.look(ctx, o); err != nil {
		return nil, err
	}
	if err := o.build(); err != nil {
		return nil, err
	}
	if err := Seal(o.plan); err != nil {
		return nil, err
	}
	return &Proposal{Plan: o.plan, StackRevision: view.Stack(req.GetStack()).GetRevision()}, nil
}

// FindService returns the current release of a stack and a service of it.
func FindService(view *state.View, stackName, service string) (*coordinatorv1.Release, *coordinatorv1.Service, error) {
	release := view.CurrentRelease(stackName)
	if view.Stack(stackName) == nil {
		var known []string
		for _, s := range view.Stacks() {
			known = append(known, s.GetName())
		}
		return nil, nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND,
			"there is no stack %q%s: `musterctl stack list` shows them", stackName, stack.DidYouMean(stackName, known))
	}
	var known []string
	for _, s := range release.GetServices() {
		if s.GetName() == service {
			return release, s, nil
		}
		known = append(known, s.GetName())
	}
	if release == nil {
		return nil, nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND,
			"stack %s has no release in place, so no service: `musterctl stack apply` makes one", stackName)
	}
	return nil, nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND,
		"stack %s has no service %q%s; there are %s", stackName, service, stack.DidYouMean(service, known), strings.Join(known, ", "))
}

// newOperation checks a request against the present state.
func newOperation(view *state.View, req *coordinatorv1.OperateServiceRequest) (*operation, error) {
	if err := checkOperation(req); err != nil {
		return nil, err
	}
	release, service, err := FindService(view, req.GetStack(), req.GetService())
	if err != nil {
		return nil, err
	}
	if err := checkLock(view, req.GetStack()); err != nil {
		return nil, err
	}
	o := &operation{view: view, req: req, service: service, delay: service.GetUpdate().GetDelay().AsDuration()}
	if req.GetDelay().AsDuration() > 0 {
		o.delay = req.GetDelay().AsDuration()
	}
	if o.signal, err = signalFor(req, service); err != nil {
		return nil, err
	}
	for _, a := range release.GetAssignments() {
		if a.GetService() == service.GetName() {
			o.members = append(o.members, &member{assignment: a})
		}
	}
	slices.SortFunc(o.members, func(x, y *member) int { return cmp.Compare(x.assignment.GetSlot(), y.assignment.GetSlot()) })
	if err := o.choose(); err != nil {
		return nil, err
	}
	o.rollout = rollout{
		Rollout: Rollout{Before: release, After: release}, ready: map[string][]string{},
		plan: &coordinatorv1.Plan{
			Procedure: ServiceProcedure(req.GetVerb()), Title: o.title(), Stack: req.GetStack(), Locks: []string{"stack/" + req.GetStack()},
		},
	}
	if err := o.checkHosts(); err != nil {
		return nil, err
	}
	return o, o.findProxies()
}

// checkOperation refuses what no state makes sensible.
func checkOperation(req *coordinatorv1.OperateServiceRequest) error {
	verb := req.GetVerb()
	waves, signals := false, false
	switch verb {
	case coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART, coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE:
		waves = true
	case coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD:
		waves, signals = true, true
	case coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL:
		signals = true
	case coordinatorv1.ServiceVerb_SERVICE_VERB_STOP, coordinatorv1.ServiceVerb_SERVICE_VERB_START:
	default:
		return invalid("verb %d is not known: there are RESTART, RECREATE, STOP, START, RELOAD and SIGNAL", verb)
	}
	delay := req.GetDelay().AsDuration()
	switch {
	case req.GetSignal() != "" && !signals:
		return invalid("signal is %s, and %s sends none: leave it out", req.GetSignal(), ServiceProcedure(verb))
	case req.GetSignal() == "" && verb == coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL:
		return invalid("signal is empty: name one, like SIGUSR1")
	case delay < 0 || delay > delayLimit:
		return invalid("delay is %s: it must be between 0 and %s", delay, delayLimit)
	case delay > 0 && !waves:
		return invalid("delay is %s, and %s knows no waves: leave it out", delay, ServiceProcedure(verb))
	}
	return nil
}

func invalid(format string, args ...any) error {
	return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, format, args...)
}

// signalFor returns the signal that a request sends: its own, or the one by which the service reloads.
func signalFor(req *coordinatorv1.OperateServiceRequest, service *coordinatorv1.Service) (string, error) {
	name := req.GetSignal()
	if req.GetVerb() == coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD {
		name = cmp.Or(name, service.GetReloadSignal(), stack.DefaultReloadSignal)
	}
	if name == "" {
		return "", nil
	}
	full, err := stack.Signal(name)
	if err != nil {
		return "", invalid("%s", err)
	}
	return full, nil
}

// choose selects the instances of the request's slots.
func (o *operation) choose() error {
	if len(o.req.GetSlots()) == 0 {
		o.selected = o.members
		return nil
	}
	var known []string
	for _, m := range o.members {
		known = append(known, fmt.Sprint(m.assignment.GetSlot()))
		if slices.Contains(o.req.GetSlots(), m.assignment.GetSlot()) {
			o.selected = append(o.selected, m)
		}
	}
	for _, slot := range o.req.GetSlots() {
		if !slices.Contains(known, fmt.Sprint(slot)) {
			return invalid("service %s has no instance %d: it has %s", o.service.GetName(), slot, strings.Join(known, ", "))
		}
	}
	return nil
}

func (o *operation) title() string {
	object := o.req.GetStack() + "/" + o.service.GetName()
	if len(o.selected) < len(o.members) {
		object = "instance " + slotsOf(o.selected) + " of " + object
	}
	switch o.req.GetVerb() {
	case coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD:
		return "reload " + object + " by " + o.signal
	case coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL:
		return "send " + o.signal + " to " + object
	}
	return ServiceProcedure(o.req.GetVerb()) + " " + object
}

func slotsOf(members []*member) string {
	texts := make([]string, len(members))
	for i, m := range members {
		texts[i] = fmt.Sprint(m.assignment.GetSlot())
	}
	return strings.Join(texts, ", ")
}

// checkHosts refuses instances on hosts that are not up, before anything starts.
func (o *operation) checkHosts() error {
	away := map[string][]*member{}
	for _, m := range o.selected {
		if o.view.Host(m.assignment.GetHost()).GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			away[m.assignment.GetHost()] = append(away[m.assignment.GetHost()], m)
		}
	}
	if len(away) == 0 {
		return nil
	}
	hosts := make([]string, 0, len(away))
	for host, members := range away {
		state := strings.ToLower(strings.TrimPrefix(o.view.Host(host).GetState().String(), "HOST_STATE_"))
		hosts = append(hosts, fmt.Sprintf("host %s (%s) has instance %s", host, strings.ReplaceAll(state, "_", " "), slotsOf(members)))
	}
	slices.Sort(hosts)
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
		"not all instances of %s can be reached: %s: bring the host back, or name the other instances with --slot", o.service.GetName(), strings.Join(hosts, "; "))
}

// findProxies names the proxies that lead to a routed service.
func (o *operation) findProxies() error {
	if o.service.GetRoute() == nil {
		return nil
	}
	c := newCandidate(o.view, o.req.GetStack())
	for _, host := range c.proxies {
		o.Proxies = append(o.Proxies, host.GetName())
	}
	o.plan.Notes = c.notes
	if len(o.Proxies) == 0 {
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
			"service %s has a route, and no host that drives a proxy is up: bring one back first", o.service.GetName())
	}
	return nil
}

// look asks the hosts of a service how its instances are. Hosts of instances that were not asked for may be down: those count as not serving.
func (p *Planner) look(ctx context.Context, o *operation) error {
	byName, hosts := map[string]*member{}, []string{}
	for _, m := range o.members {
		byName[m.assignment.GetContainer()] = m
		if o.view.Host(m.assignment.GetHost()).GetState() == coordinatorv1.HostState_HOST_STATE_UP {
			hosts = append(hosts, m.assignment.GetHost())
		}
	}
	slices.Sort(hosts)
	var mu sync.Mutex
	return p.each(ctx, slices.Compact(hosts), func(ctx context.Context, host string, client agentv1.ContainerServiceClient) error {
		response, err := client.ListContainers(ctx, &agentv1.ListContainersRequest{Stack: o.req.GetStack(), Service: o.service.GetName()})
		if err != nil {
			return answer(host, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, container := range response.GetContainers() {
			if m := byName[container.GetName()]; m != nil && m.assignment.GetHost() == host {
				m.container = container
			}
		}
		return nil
	})
}

// recreate replaces the selected containers by new ones of the same release, as a rolling update does. Containers are named by the release that
// made them, so this makes one.
func (p *Planner) recreate(ctx context.Context, o *operation) (*Proposal, error) {
	c := newCandidate(o.view, o.req.GetStack())
	c.repeat()
	c.title, c.procedure = fmt.Sprintf("%s, as release %d", o.title(), c.release.GetNumber()), o.plan.GetProcedure()
	c.noGate, c.only, c.renew, c.delay = true, o.service.GetName(), map[string]bool{}, o.req.GetDelay().AsDuration()
	for _, m := range o.selected {
		c.renew[m.assignment.GetContainer()] = true
	}
	proposal, err := p.propose(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, change := range proposal.Plan.GetChanges() {
		if change.GetService() == o.service.GetName() {
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE
		}
	}
	return proposal, Seal(proposal.Plan)
}

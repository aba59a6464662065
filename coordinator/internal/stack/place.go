package stack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// PlaceRequest is what placement decides from.
type PlaceRequest struct {
	// Stack by its name.
	Stack string
	// Release that is being made; new containers carry its number.
	Release uint64
	// Services of that release.
	Services []*coordinatorv1.Service
	// Hosts of the fleet, all of them, whatever their state.
	Hosts []*coordinatorv1.Host
	// Before are the services of the release that runs; empty for none. An instance whose service does not differ keeps its container.
	Before []*coordinatorv1.Service
	// Current assignments, of the release that runs.
	Current []*coordinatorv1.Assignment
	// Lost are current containers that are not on their hosts any more: their instances stay there and get new ones.
	Lost map[string]bool
	// Others is what other stacks have taken: see Uses.
	Others []Use
	// Proxies is the address of the proxy that leads to a routed service, by the service's name: see LinkRequest.
	Proxies map[string]string
	// Drain is a host whose instances leave; empty for none. Global services end there; all others are placed elsewhere.
	Drain string
	// Left says that the drained host does not answer. Instances that cannot leave it then stay assigned to it and are added to the list,
	// instead of being an error: the others must not wait for them.
	Left *[]Stuck
	// DownStays leaves instances on other hosts that are down as they are, as long as they need no new container.
	DownStays bool
}

// Use is one instance of another stack and what it takes from its host.
type Use struct {
	// Stack of the instance.
	Stack string
	// Assignment of the instance: its host and its ports.
	Assignment *coordinatorv1.Assignment
	// Resources that it reserves.
	Resources *agentv1.Resources
}

// Uses returns what a release takes from its hosts.
func Uses(r *coordinatorv1.Release) []Use {
	services := byName(r.GetServices())
	uses := make([]Use, 0, len(r.GetAssignments()))
	for _, a := range r.GetAssignments() {
		uses = append(uses, Use{Stack: r.GetStack(), Assignment: a, Resources: services[a.GetService()].GetTemplate().GetResources()})
	}
	return uses
}

// Place decides on which host each instance runs, and on which ports. Instances stay where they are as long as they may; an instance that
// needs no new container keeps its container, its ports and its release. A replaced instance's dynamic ports differ from those of
// the container it replaces, so that both can run. The result is in order of service and slot.
//
// Errors: PLACEMENT, NO_CAPACITY, PORT_TAKEN, HOST_DOWN, all FAILED_PRECONDITION; with Drain a StuckError for instances that cannot leave.
func Place(req PlaceRequest) ([]*coordinatorv1.Assignment, error) {
	p := newPlacer(req)
	if err := p.pinGroups(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{p.keep, p.replaceInPlace, p.placeNew, p.bindPorts} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if err := p.relink(); err != nil {
		return nil, err
	}
	return p.result(), nil
}

// instance is one slot on its way to a host.
type instance struct {
	service *coordinatorv1.Service
	slot    uint32
	// current assignment; nil for a new slot.
	current *coordinatorv1.Assignment
	// room it was given; nil until then.
	room *room
	// kept means that the container stays.
	kept bool
	// assignment is the outcome; for a kept instance the current one.
	assignment *coordinatorv1.Assignment
}

// placer holds the state of one placement.
type placer struct {
	req       PlaceRequest
	services  []*coordinatorv1.Service
	before    map[string]*coordinatorv1.Service
	rooms     []*room
	instances []*instance
	// pinned maps a service to the host that has its data.
	pinned map[string]*room
	// ports of everything that runs after the change.
	ports portTable
	// stuck are instances that cannot leave the host that is drained.
	stuck []Stuck
}

// newPlacer takes stock: what hosts have, what others use, which slots are wanted.
func newPlacer(req PlaceRequest) *placer {
	p := &placer{req: req, before: byName(req.Before), pinned: map[string]*room{}, ports: portTable{}}
	p.services = slices.Clone(req.Services)
	slices.SortFunc(p.services, func(a, b *coordinatorv1.Service) int { return cmp.Compare(a.GetName(), b.GetName()) })
	for _, h := range req.Hosts {
		p.rooms = append(p.rooms, newRoom(h))
	}
	slices.SortFunc(p.rooms, func(a, b *room) int { return cmp.Compare(a.name(), b.name()) })
	for _, u := range req.Others {
		if r := p.room(u.Assignment.GetHost()); r != nil {
			r.take(needOf(u.Resources))
		}
		p.ports.add(u.Stack, u.Assignment)
	}
	current := map[string][]*coordinatorv1.Assignment{}
	for _, a := range sortedAssignments(req.Current) {
		current[a.GetService()] = append(current[a.GetService()], a)
	}
	for _, s := range p.services {
		p.instances = append(p.instances, p.slots(s, current[s.GetName()])...)
	}
	return p
}

// room returns the host of that name; nil if there is none.
func (p *placer) room(host string) *room {
	i, ok := slices.BinarySearchFunc(p.rooms, host, func(r *room, name string) int { return cmp.Compare(r.name(), name) })
	if !ok {
		return nil
	}
	return p.rooms[i]
}

// slots lists the instances that a service shall have. A global service has one on every matching host that is up, and keeps the slot
// that a host has.
func (p *placer) slots(s *coordinatorv1.Service, current []*coordinatorv1.Assignment) []*instance {
	var out []*instance
	if !s.GetPlacement().GetGlobal() {
		for n := uint32(1); n <= s.GetReplicas(); n++ {
			in := &instance{service: s, slot: n}
			for _, a := range current {
				if a.GetSlot() == n {
					in.current = a
				}
			}
			out = append(out, in)
		}
		return out
	}
	used := map[uint32]bool{}
	at := map[string]*coordinatorv1.Assignment{}
	for _, a := range current {
		r := p.room(a.GetHost())
		if r != nil && !p.drained(r) && at[a.GetHost()] == nil && len(unmet(s, r.host)) == 0 {
			at[a.GetHost()] = a
			used[a.GetSlot()] = true
		}
	}
	next := uint32(1)
	for _, r := range p.rooms {
		if len(unmet(s, r.host)) > 0 {
			continue
		}
		if a := at[r.name()]; a != nil {
			out = append(out, &instance{service: s, slot: a.GetSlot(), current: a})
			continue
		}
		if !r.up() || p.closed(r) != "" { // a host gets its instance with the first release after it is back, or open again.
			continue
		}
		for used[next] {
			next++
		}
		used[next] = true
		out = append(out, &instance{service: s, slot: next, room: r})
	}
	slices.SortFunc(out, func(a, b *instance) int { return cmp.Compare(a.slot, b.slot) })
	return out
}

// keep leaves the instances that need no new container where they are, if they still may be there.
func (p *placer) keep() error {
	for _, in := range p.instances {
		if in.current == nil {
			continue
		}
		r := p.room(in.current.GetHost())
		if r == nil || p.drained(r) {
			continue
		}
		moves := Replace(p.before[in.service.GetName()], in.service) || !p.allowed(in.service, r) || p.req.Lost[in.current.GetContainer()]
		if !r.up() && (moves || !p.req.DownStays) {
			return onDownHost(in, r)
		}
		if moves {
			continue
		}
		in.kept = true
		in.assignment = proto.CloneOf(in.current)
		p.settle(in, r)
		p.ports.add(p.req.Stack, in.assignment)
	}
	return p.checkGoing()
}

// replaceInPlace keeps the slots that get a new container on the host where they are, if it has room.
func (p *placer) replaceInPlace() error {
	for _, in := range p.instances {
		if in.kept || in.current == nil {
			continue
		}
		r := p.room(in.current.GetHost())
		if r == nil || !p.stays(in, r) || !p.allowed(in.service, r) {
			continue
		}
		if r.lacks(needOf(in.service.GetTemplate().GetResources())) == "" && p.ports.taken(r, in.service) == "" {
			p.settle(in, r)
			p.takeFixed(in)
		}
	}
	return nil
}

// placeNew finds hosts for the rest, those with the least choice first. Slots of global services know theirs already.
func (p *placer) placeNew() error {
	rest := slices.DeleteFunc(slices.Clone(p.instances), func(in *instance) bool { return in.assignment != nil })
	slices.SortStableFunc(rest, func(a, b *instance) int {
		ra, rb := a.service.GetTemplate().GetResources(), b.service.GetTemplate().GetResources()
		return cmp.Or(cmp.Compare(p.choice(a), p.choice(b)), cmp.Compare(rb.GetMemoryReservationBytes(), ra.GetMemoryReservationBytes()))
	})
	for _, in := range rest {
		candidates := p.rooms
		if in.room != nil {
			candidates = []*room{in.room}
		}
		r, err := p.choose(in, candidates)
		if err != nil && p.leaves(in) {
			p.leave(in, err)
			continue
		}
		if err != nil {
			return err
		}
		p.settle(in, r)
		p.takeFixed(in)
	}
	return p.stuckError()
}

// choice ranks how much choice of hosts an instance has.
func (p *placer) choice(in *instance) int {
	switch {
	case in.room != nil || p.pinned[in.service.GetName()] != nil:
		return 0
	case len(in.service.GetPlacement().GetConstraints()) > 0 || len(fixedPorts(in.service)) > 0 || len(in.service.GetTemplate().GetResources().GetGpus()) > 0:
		return 1
	}
	return 2
}

// allowed says whether a service may be on a host, leaving room aside: its constraints, its data, and its bound of instances per host.
func (p *placer) allowed(s *coordinatorv1.Service, r *room) bool {
	if len(unmet(s, r.host)) > 0 {
		return false
	}
	if pinned := p.pinned[s.GetName()]; pinned != nil && pinned != r {
		return false
	}
	limit := s.GetPlacement().GetMaxReplicasPerHost()
	return limit == 0 || p.count(s.GetName(), r) < int(limit)
}

// count returns how many instances of a service a host was given so far.
func (p *placer) count(service string, r *room) int {
	n := 0
	for _, in := range p.instances {
		if in.assignment != nil && in.room == r && in.service.GetName() == service {
			n++
		}
	}
	return n
}

// settle gives an instance its host.
func (p *placer) settle(in *instance, r *room) {
	in.room = r
	r.take(needOf(in.service.GetTemplate().GetResources()))
	if in.assignment == nil {
		in.assignment = &coordinatorv1.Assignment{
			Service:     in.service.GetName(),
			Slot:        in.slot,
			Host:        r.name(),
			HostAddress: r.host.GetInventory().GetAddress(),
			Container:   ContainerName(p.req.Stack, in.service.GetName(), in.slot, p.req.Release),
			Release:     p.req.Release,
		}
	}
}

// takeFixed takes the fixed ports of an instance at once: they decide where others can go.
func (p *placer) takeFixed(in *instance) {
	for _, b := range fixedPorts(in.service) {
		p.ports.take(hostMachine(in.room.host), b, fmt.Sprintf("%s of stack %s", in.assignment.GetContainer(), p.req.Stack))
	}
}

// bindPorts gives new containers their ports, dynamic ones after all fixed ones are known.
func (p *placer) bindPorts() error {
	// What is replaced still runs while its successor starts, so its ports are not free for another. Fixed ports are not asked
	// for here: the successor of a stop-first instance takes over just those.
	busy := portTable{}
	for k, v := range p.ports {
		busy[k] = slices.Clone(v)
	}
	for _, a := range p.req.Current {
		busy.add(p.req.Stack, a)
	}
	for _, in := range p.instances {
		if in.kept {
			continue
		}
		if err := p.bind(in, busy); err != nil {
			if !p.leaves(in) {
				return err
			}
			p.leave(in, err)
		}
	}
	return p.stuckError()
}

// bind fills in the ports of one assignment.
func (p *placer) bind(in *instance, busy portTable) error {
	in.assignment.Ports = nil
	for _, t := range in.service.GetTemplate().GetPorts() {
		b := proto.CloneOf(t)
		if b.GetHostPort() == 0 {
			b.HostPort = busy.free(in.room.host, b.GetProtocol())
			if b.HostPort == 0 {
				inv := in.room.host.GetInventory()
				return refuse(coordinatorv1.ErrorReason_ERROR_REASON_PORT_TAKEN,
					"service %s needs a port on host %s, and its range %d-%d has none left: widen it with --port-range of the agent",
					in.service.GetName(), in.room.name(), inv.GetPortFirst(), inv.GetPortLast())
			}
			busy.take(hostMachine(in.room.host), b, in.assignment.GetContainer())
		}
		in.assignment.Ports = append(in.assignment.Ports, b)
	}
	return nil
}

// relink replaces kept containers whose links lead elsewhere now: addresses are part of a container and cannot be changed in it.
func (p *placer) relink() error {
	if len(p.req.Current) == 0 {
		return nil
	}
	before := link(LinkRequest{Services: p.req.Before, Assignments: p.req.Current, Proxies: p.req.Proxies})
	after := link(LinkRequest{Services: p.services, Assignments: p.result(), Proxies: p.req.Proxies})
	var moved []*instance
	for _, in := range p.instances {
		name, host := in.service.GetName(), in.room.name()
		if in.kept && !slices.Equal(before.ExtraHosts(name, host), after.ExtraHosts(name, host)) {
			if !in.room.up() {
				return onDownHost(in, in.room)
			}
			in.kept, in.assignment = false, nil
			p.settle(in, in.room)
			moved = append(moved, in)
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return p.bindPorts()
}

// result returns the assignments in order of service and slot.
func (p *placer) result() []*coordinatorv1.Assignment {
	out := make([]*coordinatorv1.Assignment, 0, len(p.instances))
	for _, in := range p.instances {
		out = append(out, in.assignment)
	}
	return sortedAssignments(out)
}

// hostNames lists hosts for a message.
func hostNames(rooms []*room) string {
	names := make([]string, len(rooms))
	for i, r := range rooms {
		names[i] = r.name()
	}
	return strings.Join(names, ", ")
}

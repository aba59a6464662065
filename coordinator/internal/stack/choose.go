package stack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// choose picks the best host for an instance among candidates, or says why there is none.
func (p *placer) choose(in *instance, candidates []*room) (*room, error) {
	s := in.service
	pinned := p.pinned[s.GetName()]
	if pinned != nil && p.closed(pinned) != "" {
		return nil, p.pinnedError(s, pinned)
	}
	eligible, err := p.eligible(s, candidates)
	if err != nil {
		return nil, err
	}
	if pinned != nil {
		if !slices.Contains(eligible, pinned) {
			return nil, p.pinnedError(s, pinned)
		}
		eligible = []*room{pinned}
	}
	bounded := slices.DeleteFunc(slices.Clone(eligible), func(r *room) bool { return !p.allowed(s, r) })
	if len(bounded) == 0 {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"service %s: no host for instance %d: %s may have %d at most on each of %s; add hosts, or raise deploy.placement.max_replicas_per_node",
			s.GetName(), in.slot, s.GetName(), s.GetPlacement().GetMaxReplicasPerHost(), hostNames(eligible)+p.alsoClosed(s))
	}
	var fitting []*room
	var taken, lacking []string
	n := needOf(s.GetTemplate().GetResources())
	for _, r := range bounded {
		port, lack := p.ports.taken(r, s), r.lacks(n)
		switch {
		case port != "":
			taken = append(taken, port)
		case lack != "":
			lacking = append(lacking, lack)
		default:
			fitting = append(fitting, r)
		}
	}
	switch {
	case len(fitting) > 0:
		return slices.MinFunc(fitting, func(a, b *room) int {
			return cmp.Or(slices.Compare(p.crowd(s, a), p.crowd(s, b)), cmp.Compare(a.name(), b.name()))
		}), nil
	case len(lacking) > 0:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "service %s needs %s for instance %d: %s",
			s.GetName(), n, in.slot, strings.Join(append(lacking, taken...), ", ")+p.alsoClosed(s))
	default:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PORT_TAKEN, "service %s, instance %d: %s; %s",
			s.GetName(), in.slot, strings.Join(taken, ", ")+p.alsoClosed(s), portAdvice(s))
	}
}

// pinnedError says that the host with the data of a service cannot take an instance.
func (p *placer) pinnedError(s *coordinatorv1.Service, pinned *room) error {
	why := append(unmet(s, pinned.host), pinnedState(pinned)...)
	if closed := p.closed(pinned); closed != "" {
		why = append(why, closed)
	}
	return refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
		"service %s has data on host %s (%s), where it may not be (%s): moving data is a procedure of its own, not a side effect of placement",
		s.GetName(), pinned.name(), s.GetPinned(), strings.Join(why, ", "))
}

// eligible returns the candidates that satisfy the constraints of a service, are up and take new instances.
func (p *placer) eligible(s *coordinatorv1.Service, candidates []*room) ([]*room, error) {
	if len(candidates) == 0 {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"service %s has no host to run on: let one join (musterctl host token, muster-agent join)", s.GetName())
	}
	var matching, up []*room
	var closed []string
	for _, r := range candidates {
		if len(unmet(s, r.host)) > 0 {
			continue
		}
		matching = append(matching, r)
		switch why := p.closed(r); {
		case why != "":
			closed = append(closed, why)
		case r.up():
			up = append(up, r)
		}
	}
	if len(matching) == 0 {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT, "service %s: no host satisfies %s; %s",
			s.GetName(), strings.Join(s.GetPlacement().GetConstraints(), " and "), describeHosts(s, candidates))
	}
	if len(up) == 0 {
		var why []string
		for _, r := range matching {
			if p.closed(r) == "" {
				why = append(why, r.down())
			}
		}
		if len(closed) > 0 {
			return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT, "service %s: no host that it may run on takes new instances: %s",
				s.GetName(), strings.Join(append(closed, why...), ", "))
		}
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN, "service %s has no host that is up: %s", s.GetName(), strings.Join(why, ", "))
	}
	return up, nil
}

// crowd is what makes a host a worse choice, most important first: links that could not be made from there, instances of the service with
// the same value of each spread label, instances of the service on the host, instances of all stacks on the host.
func (p *placer) crowd(s *coordinatorv1.Service, r *room) []int {
	out := []int{p.brokenLinks(s, r)}
	for _, label := range s.GetPlacement().GetSpread() {
		value := attributeValues(r.host, label)[0]
		n := 0
		for _, other := range p.rooms {
			if attributeValues(other.host, label)[0] == value {
				n += p.count(s.GetName(), other)
			}
		}
		out = append(out, n)
	}
	return append(out, p.count(s.GetName(), r), r.instances)
}

// brokenLinks counts the links between s on a host and what is placed already that Link would refuse: a service that others can reach
// only on its own host belongs to them.
func (p *placer) brokenLinks(s *coordinatorv1.Service, r *room) int {
	n := 0
	for _, other := range p.services {
		if other == s {
			continue
		}
		hosts := map[*room]bool{}
		for _, in := range p.instances {
			if in.service == other && in.assignment != nil {
				hosts[in.room] = true
			}
		}
		if len(hosts) == 0 {
			continue
		}
		if dependsOn(s, other.GetName()) && !hosts[r] && !p.reachable(other) {
			n++
		}
		if dependsOn(other, s.GetName()) && !p.reachable(s) {
			delete(hosts, r)
			n += len(hosts)
		}
	}
	return n
}

// reachable says whether a service can be reached from other hosts: by Link's rules, before its ports are bound.
func (p *placer) reachable(s *coordinatorv1.Service) bool {
	if s.GetJob() {
		return true
	}
	probe := &coordinatorv1.Assignment{Service: s.GetName(), HostAddress: "any", Ports: s.GetTemplate().GetPorts()}
	at := []*coordinatorv1.Assignment{probe}
	if s.GetReplicas() > 1 || s.GetPlacement().GetGlobal() {
		at = append(at, probe)
	}
	_, problem := reach(s, at, p.req.Proxies[s.GetName()])
	return problem == ""
}

// pinnedState adds to a message that the host with the data is down.
func pinnedState(r *room) []string {
	if r.up() {
		return nil
	}
	return []string{r.down()}
}

// portAdvice says how to get around a fixed host port.
func portAdvice(s *coordinatorv1.Service) string {
	b := fixedPorts(s)[0]
	return fmt.Sprintf("one instance per host can bind a fixed port: free it, use fewer replicas, or let Muster choose the host port with ports: [\"%d\"]",
		b.GetContainerPort())
}

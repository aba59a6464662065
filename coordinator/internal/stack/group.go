package stack

import (
	"slices"
	"strings"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// group is a set of services that share data which lives on a host, and so must run on one host together.
type group struct {
	services []*coordinatorv1.Service
	keys     []string
	// items of data, for messages.
	items []string
	// existed says that some of the data was there before Muster.
	existed bool
}

// pinGroups finds the host of every pinned service: where its data is, or where it shall be from now on.
func (p *placer) pinGroups() error {
	for _, g := range p.groups() {
		r, err := p.hostOf(g)
		if err != nil {
			return err
		}
		for _, s := range g.services {
			p.pinned[s.GetName()] = r
		}
	}
	return nil
}

// groups joins services that share a key, directly or through others.
func (p *placer) groups() []*group {
	var out []*group
	for _, s := range p.services {
		own := pins(s)
		if len(own) == 0 || s.GetReplicas() == 0 {
			continue
		}
		g := &group{services: []*coordinatorv1.Service{s}}
		for _, pin := range own {
			g.keys = append(g.keys, pin.key)
			g.items = append(g.items, pin.item)
			g.existed = g.existed || pin.existed
		}
		rest := out[:0:0]
		for _, other := range out {
			if slices.ContainsFunc(g.keys, func(k string) bool { return slices.Contains(other.keys, k) }) {
				other.services = append(other.services, g.services...)
				other.keys = append(other.keys, g.keys...)
				other.items = append(other.items, g.items...)
				other.existed = other.existed || g.existed
				g = other
				continue
			}
			rest = append(rest, other)
		}
		rest = append(rest, g)
		out = rest
	}
	return out
}

// hostOf decides where the data of a group lives.
func (p *placer) hostOf(g *group) (*room, error) {
	var have []*room
	for _, a := range sortedAssignments(p.req.Current) {
		if r := p.room(a.GetHost()); r != nil && g.has(a.GetService()) && g.hadData(p.before[a.GetService()]) && !slices.Contains(have, r) {
			have = append(have, r)
		}
	}
	switch len(have) {
	case 1:
		return have[0], nil
	case 0:
	default:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"services %s share data (%s), and they run on different hosts (%s): give them separate data, or list the paths that are the same on every host under x-muster: shared",
			g.names(), strings.Join(g.uniqueItems(), ", "), hostNames(have))
	}
	return p.firstHost(g)
}

// firstHost finds a host for a group that has never run.
func (p *placer) firstHost(g *group) (*room, error) {
	possible := p.rooms
	for _, s := range g.services {
		eligible, err := p.eligible(s, p.rooms)
		if err != nil {
			return nil, err
		}
		possible = slices.DeleteFunc(slices.Clone(possible), func(r *room) bool { return !slices.Contains(eligible, r) })
	}
	if len(possible) == 0 {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"services %s share data (%s) and so must run on one host, but no host satisfies the constraints of all of them",
			g.names(), strings.Join(g.uniqueItems(), ", "))
	}
	if len(possible) > 1 && g.existed {
		s := g.services[0]
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"services %s use data of one host (%s), and any of %s could be it: say which, with deploy: {placement: {constraints: [\"node.hostname==%s\"]}} under %s, "+
				"or list the paths that are the same on every host under x-muster: {shared: [...]}",
			g.names(), strings.Join(g.uniqueItems(), ", "), hostNames(possible), possible[0].name(), s.GetName())
	}
	var sum need
	for _, s := range g.services {
		n := needOf(s.GetTemplate().GetResources())
		count := int64(s.GetReplicas())
		sum.memory += n.memory * count
		sum.cpus += n.cpus * count
		sum.gpus += n.gpus * count
		sum.allGPUs = sum.allGPUs || n.allGPUs
	}
	best := possible[0]
	for _, r := range possible {
		if p.fits(g, r, sum) && (!p.fits(g, best, sum) || r.instances < best.instances) {
			best = r
		}
	}
	return best, nil
}

// fits says whether a host has room for the whole group.
func (p *placer) fits(g *group, r *room, sum need) bool {
	if r.lacks(sum) != "" {
		return false
	}
	for _, s := range g.services {
		if p.ports.taken(r, s) != "" {
			return false
		}
	}
	return true
}

// has says whether a service belongs to the group.
func (g *group) has(service string) bool {
	return slices.ContainsFunc(g.services, func(s *coordinatorv1.Service) bool { return s.GetName() == service })
}

// hadData says whether a service as it ran before used data of the group: then the data is where it ran.
func (g *group) hadData(before *coordinatorv1.Service) bool {
	return slices.ContainsFunc(pins(before), func(p pin) bool { return slices.Contains(g.keys, p.key) })
}

// names lists the services of the group.
func (g *group) names() string {
	names := make([]string, len(g.services))
	for i, s := range g.services {
		names[i] = s.GetName()
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// uniqueItems lists the data of the group.
func (g *group) uniqueItems() []string {
	items := slices.Clone(g.items)
	slices.Sort(items)
	return slices.Compact(items)
}

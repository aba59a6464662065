package stack

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// networks maps those that a service joins, its primary one first.
func (m *mapper) networks(s types.ServiceConfig) []*agentv1.NetworkAttachment {
	if s.NetworkMode == "host" || s.NetworkMode == "none" {
		return nil
	}
	var out []*agentv1.NetworkAttachment
	for _, key := range s.NetworksByPriority() {
		config := s.Networks[key]
		n := m.network(key)
		if config.ServiceNameAliasEnabled() {
			n.Aliases = append(n.Aliases, s.Name)
		}
		if config != nil {
			n.Aliases = append(n.Aliases, config.Aliases...)
		}
		n.Aliases = append(n.Aliases, m.aliases[s.Name]...)
		if s.ContainerName != "" { // others may know the service by it.
			n.Aliases = append(n.Aliases, s.ContainerName)
		}
		slices.Sort(n.Aliases)
		n.Aliases = slices.Compact(n.Aliases)
		out = append(out, n)
	}
	return out
}

// network maps one of the top-level section.
func (m *mapper) network(key string) *agentv1.NetworkAttachment {
	n := m.Networks[key]
	out := &agentv1.NetworkAttachment{Name: n.Name, External: bool(n.External)}
	if n.External {
		return out
	}
	problem := func(below, text string) {
		sentence := m.sentence([]string{"networks", key, below}, text)
		if !slices.Contains(m.found, sentence) { // several services join it.
			m.found = append(m.found, sentence)
		}
	}
	switch n.Driver {
	case "", "bridge":
		out.Driver = n.Driver
	default:
		problem("driver", cut(n.Driver)+": Muster creates bridge networks on each host, and links names across hosts by address and route proxy; create other networks yourself and declare them external")
	}
	if n.EnableIPv6 != nil && *n.EnableIPv6 || n.EnableIPv4 != nil && !*n.EnableIPv4 {
		problem("enable_ipv6", "Muster creates IPv4 networks: create this one on the hosts, and declare it external")
	}
	if len(n.Ipam.Config) > 1 {
		problem("ipam", "one subnet is supported")
	}
	for _, pool := range n.Ipam.Config {
		if pool == nil || pool.Subnet == "" {
			continue
		}
		if _, err := netip.ParsePrefix(pool.Subnet); err != nil {
			problem("ipam", cut(pool.Subnet)+" is not a subnet, like 172.28.0.0/16")
		}
		out.Subnet = pool.Subnet
	}
	out.Internal = n.Internal
	if len(n.Labels) > 0 {
		out.Labels = n.Labels
	}
	return out
}

// networksOf collects the networks of all services, in order of their names.
func networksOf(services []*coordinatorv1.Service) []*agentv1.NetworkAttachment {
	var out []*agentv1.NetworkAttachment
	for _, s := range services {
		for _, n := range s.GetTemplate().GetNetworks() {
			if slices.ContainsFunc(out, func(o *agentv1.NetworkAttachment) bool { return o.GetName() == n.GetName() }) {
				continue
			}
			network := proto.CloneOf(n)
			network.Aliases = nil
			out = append(out, network)
		}
	}
	slices.SortFunc(out, func(a, b *agentv1.NetworkAttachment) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

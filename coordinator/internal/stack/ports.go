package stack

import (
	"fmt"
	"strings"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// portTable knows which host ports are taken, and by whom. Hosts that share an address share their ports.
type portTable map[portSlot][]portHolder

// portSlot is one port number on one machine.
type portSlot struct {
	machine  string
	protocol string
	port     uint32
}

// portHolder is who binds a port, on which address of the machine.
type portHolder struct {
	ip     string
	holder string
}

// machineOf names what a port number is unique on: the address, or the host if it has none yet.
func machineOf(host, address string) string {
	if address != "" {
		return address
	}
	return "host " + host
}

// hostMachine is machineOf for a host as it is now.
func hostMachine(h *coordinatorv1.Host) string {
	return machineOf(h.GetName(), h.GetInventory().GetAddress())
}

// slot is where a binding goes in the table.
func slot(machine string, p *agentv1.PortBinding) portSlot {
	return portSlot{machine: machine, protocol: p.GetProtocol(), port: p.GetHostPort()}
}

// bindIP normalizes the address that a port is bound on: empty means the advertised one.
func bindIP(machine string, p *agentv1.PortBinding) string {
	switch ip := p.GetHostIp(); ip {
	case "":
		return machine
	case "0.0.0.0", "::", "[::]":
		return "*"
	default:
		return ip
	}
}

// add takes the host ports of an assignment.
func (t portTable) add(stack string, a *coordinatorv1.Assignment) {
	machine := machineOf(a.GetHost(), a.GetHostAddress())
	for _, p := range a.GetPorts() {
		if p.GetHostPort() != 0 {
			t.take(machine, p, fmt.Sprintf("%s of stack %s", a.GetContainer(), stack))
		}
	}
}

// take marks one port as taken.
func (t portTable) take(machine string, p *agentv1.PortBinding, holder string) {
	k := slot(machine, p)
	t[k] = append(t[k], portHolder{ip: bindIP(machine, p), holder: holder})
}

// holder returns who has the port of a binding; empty if it is free.
func (t portTable) holder(machine string, p *agentv1.PortBinding) string {
	ip := bindIP(machine, p)
	for _, h := range t[slot(machine, p)] {
		if h.ip == ip || h.ip == "*" || ip == "*" {
			return h.holder
		}
	}
	return ""
}

// taken tells which fixed ports of a service are not free on a host; empty if all are.
func (t portTable) taken(r *room, s *coordinatorv1.Service) string {
	var parts []string
	machine := hostMachine(r.host)
	for _, p := range s.GetTemplate().GetPorts() {
		if p.GetHostPort() == 0 {
			continue
		}
		if holder := t.holder(machine, p); holder != "" {
			parts = append(parts, fmt.Sprintf("port %d of %s is held by %s", p.GetHostPort(), r.name(), holder))
		}
	}
	return strings.Join(parts, ", ")
}

// free returns the lowest port of the host's range that nobody holds, on any address of the machine; 0 if there is none.
func (t portTable) free(h *coordinatorv1.Host, protocol string) uint32 {
	machine, inv := hostMachine(h), h.GetInventory()
	if inv.GetPortFirst() == 0 {
		return 0
	}
	for port := inv.GetPortFirst(); port <= min(inv.GetPortLast(), 65535); port++ {
		if len(t[portSlot{machine: machine, protocol: protocol, port: port}]) == 0 {
			return port
		}
	}
	return 0
}

// fixedPorts lists the host ports that a service always binds.
func fixedPorts(s *coordinatorv1.Service) []*agentv1.PortBinding {
	var out []*agentv1.PortBinding
	for _, p := range s.GetTemplate().GetPorts() {
		if p.GetHostPort() != 0 {
			out = append(out, p)
		}
	}
	return out
}

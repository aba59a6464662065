package stack

import (
	"fmt"
	"strings"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// room is a host and what placement has left of it.
type room struct {
	host *coordinatorv1.Host
	// memory, cpus and gpus that no reservation has taken. They may be negative: what runs is never thrown out for its reservation.
	memory, cpus, gpus int64
	// instances of all stacks on the host.
	instances int
}

// newRoom returns an empty host.
func newRoom(h *coordinatorv1.Host) *room {
	inv := h.GetInventory()
	return &room{host: h, memory: inv.GetMemoryBytes(), cpus: inv.GetNanoCpus(), gpus: int64(inv.GetGpus())}
}

// name of the host.
func (r *room) name() string { return r.host.GetName() }

// up says that instances can be started there.
func (r *room) up() bool { return r.host.GetState() == coordinatorv1.HostState_HOST_STATE_UP }

// down tells in words why a host cannot be worked with.
func (r *room) down() string {
	switch r.host.GetState() {
	case coordinatorv1.HostState_HOST_STATE_JOINED:
		return r.name() + " has never connected"
	case coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN:
		return "the Docker engine of " + r.name() + " is down"
	}
	if t := r.host.GetStateSince(); t != nil {
		return r.name() + " is down since " + t.AsTime().UTC().Format("2006-01-02 15:04:05Z")
	}
	return r.name() + " is down"
}

// need is what one instance reserves.
type need struct {
	memory, cpus, gpus int64
	// allGPUs of a host, at least one.
	allGPUs bool
}

// needOf reads the reservations of a service. Limits reserve nothing, as in Docker.
func needOf(res *agentv1.Resources) need {
	n := need{memory: res.GetMemoryReservationBytes(), cpus: res.GetNanoCpuReservation()}
	for _, g := range res.GetGpus() {
		switch {
		case len(g.GetDeviceIds()) > 0:
			n.gpus += int64(len(g.GetDeviceIds()))
		case g.GetCount() < 0:
			n.allGPUs = true
		case g.GetCount() == 0:
			n.gpus++
		default:
			n.gpus += int64(g.GetCount())
		}
	}
	return n
}

// take reserves for an instance.
func (r *room) take(n need) {
	r.memory -= n.memory
	r.cpus -= n.cpus
	r.gpus -= r.gpusFor(n)
	r.instances++
}

// gpusFor resolves "all" for this host.
func (r *room) gpusFor(n need) int64 {
	if n.allGPUs {
		return max(int64(r.host.GetInventory().GetGpus()), 1)
	}
	return n.gpus
}

// lacks tells what is missing for an instance; empty if it fits.
func (r *room) lacks(n need) string {
	inv := r.host.GetInventory()
	var missing []string
	if n.memory > 0 && r.memory < n.memory {
		missing = append(missing, fmt.Sprintf("%s of %s memory free", formatBytes(max(r.memory, 0)), formatBytes(inv.GetMemoryBytes())))
	}
	if n.cpus > 0 && r.cpus < n.cpus {
		missing = append(missing, fmt.Sprintf("%s of %s free", trimZeros(float64(max(r.cpus, 0))/1e9), formatCPUs(inv.GetNanoCpus())))
	}
	if gpus := r.gpusFor(n); gpus > 0 && r.gpus < gpus {
		missing = append(missing, fmt.Sprintf("%d of %d GPUs free", max(r.gpus, 0), inv.GetGpus()))
	}
	if len(missing) == 0 {
		return ""
	}
	return r.name() + " has " + strings.Join(missing, " and ")
}

// String tells what an instance needs.
func (n need) String() string {
	var parts []string
	if n.memory > 0 {
		parts = append(parts, formatBytes(n.memory)+" of memory")
	}
	if n.cpus > 0 {
		parts = append(parts, formatCPUs(n.cpus))
	}
	switch {
	case n.allGPUs:
		parts = append(parts, "all GPUs of a host")
	case n.gpus == 1:
		parts = append(parts, "1 GPU")
	case n.gpus > 1:
		parts = append(parts, fmt.Sprintf("%d GPUs", n.gpus))
	}
	return strings.Join(parts, ", ")
}

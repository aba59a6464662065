package stack

import (
	"fmt"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// What closes a host to instances: it is cordoned, or it is drained; and what x-muster says for a host that does not answer.

const (
	// MaxReplicas of a service; more is a slip of the finger.
	MaxReplicas = maxReplicas
	// OnHostLostAsk waits for a human when a host with instances of the service does not answer.
	OnHostLostAsk = "ask"
	// OnHostLostReplace starts the instances elsewhere by itself.
	OnHostLostReplace = "replace"
	// writesAlone starts the reason for which two instances cannot coexist on different hosts either.
	writesAlone = "one instance writes to "
)

// Stuck is an instance that cannot leave the host that is drained.
type Stuck struct {
	// Instance like shop.web.2.
	Instance string
	// Why it cannot leave.
	Why string
}

// StuckError lists every instance that cannot leave the host that is drained.
type StuckError struct {
	// Stuck instances, those with the least choice of hosts first.
	Stuck []Stuck
}

// Error lists the instances, one a line.
func (e *StuckError) Error() string {
	lines := make([]string, len(e.Stuck))
	for i, s := range e.Stuck {
		lines[i] = s.Instance + ": " + s.Why
	}
	return strings.Join(lines, "\n")
}

// Alone says why two instances of a service cannot run at once, wherever they are; empty if they can on different hosts. A host's port, its
// network and its GPUs are no reason: another host has its own.
func Alone(s *coordinatorv1.Service) string {
	switch {
	case strings.HasPrefix(s.GetStopFirst(), writesAlone):
		return s.GetStopFirst()
	case s.GetStopFirst() == "" && s.GetUpdate().GetOrder() == orderStopFirst && s.GetReplicas() == 1:
		return "update_config.order is stop-first"
	}
	return ""
}

// SharesNothing says why a service that has one instance cannot be given another; empty if it can.
func SharesNothing(s *coordinatorv1.Service) string {
	if strings.HasPrefix(s.GetStopFirst(), writesAlone) {
		return s.GetStopFirst()
	}
	return ""
}

// hostLost maps x-muster: on_host_lost and replace_after.
func (m *mapper) hostLost(s types.ServiceConfig, out *coordinatorv1.Service, ext extension) {
	switch ext.OnHostLost {
	case "", OnHostLostAsk, OnHostLostReplace:
		out.OnHostLost = ext.OnHostLost
	default:
		m.refuse(s.Name, extensionKey+".on_host_lost", "%s: there are %s and %s", cut(ext.OnHostLost), OnHostLostAsk, OnHostLostReplace)
	}
	if ext.ReplaceAfter == 0 {
		return
	}
	if ext.OnHostLost != OnHostLostReplace {
		m.refuse(s.Name, extensionKey+".replace_after", "it has no meaning without on_host_lost: %s", OnHostLostReplace)
	}
	out.ReplaceAfter = durationpb.New(time.Duration(ext.ReplaceAfter))
}

// drained says that the instances of a host leave it.
func (p *placer) drained(r *room) bool {
	return r != nil && p.req.Drain != "" && r.name() == p.req.Drain
}

// leaves says that an instance leaves the host that is drained.
func (p *placer) leaves(in *instance) bool {
	return in.current != nil && p.req.Drain != "" && in.current.GetHost() == p.req.Drain
}

// closed says why a host takes no new instances; empty if it does, or is down.
func (p *placer) closed(r *room) string {
	if p.drained(r) {
		return r.name() + " is being drained"
	}
	if !r.host.GetCordoned() {
		return ""
	}
	why := ""
	if r.host.GetCordonReason() != "" {
		why = ": " + r.host.GetCordonReason()
	}
	return fmt.Sprintf("%s is cordoned%s (`musterctl host uncordon %s` opens it)", r.name(), why, r.name())
}

// alsoClosed ends a message about hosts that cannot take an instance with those that are closed.
func (p *placer) alsoClosed(s *coordinatorv1.Service) string {
	text := ""
	for _, r := range p.rooms {
		if why := p.closed(r); why != "" && len(unmet(s, r.host)) == 0 {
			text += ", " + why
		}
	}
	return text
}

// stays says that an instance which gets a new container may get it on the host where it is. A cordoned host keeps only what belongs to it:
// data, and the instances of global services.
func (p *placer) stays(in *instance, r *room) bool {
	if p.closed(r) == "" {
		return true
	}
	return !p.drained(r) && (p.pinned[in.service.GetName()] == r || in.service.GetPlacement().GetGlobal())
}

// leave notes that an instance cannot leave. If its host does not answer, it stays assigned to it.
func (p *placer) leave(in *instance, err error) {
	entry := Stuck{Instance: fmt.Sprintf("%s.%s.%d", p.req.Stack, in.service.GetName(), in.slot), Why: rpcerr.Message(err)}
	if p.req.Left == nil {
		p.stuck = append(p.stuck, entry)
		return
	}
	*p.req.Left = append(*p.req.Left, entry)
	in.kept, in.assignment = true, proto.CloneOf(in.current)
	p.settle(in, p.room(in.current.GetHost()))
}

func (p *placer) stuckError() error {
	if len(p.stuck) == 0 {
		return nil
	}
	return &StuckError{Stuck: p.stuck}
}

// checkGoing refuses to take away an instance on a host that is down, where nothing can be stopped.
func (p *placer) checkGoing() error {
	stays := map[*coordinatorv1.Assignment]bool{}
	for _, in := range p.instances {
		stays[in.current] = true
	}
	for _, a := range p.req.Current {
		r := p.room(a.GetHost())
		if r == nil || r.up() || stays[a] || p.drained(r) {
			continue
		}
		return onDownHost(&instance{service: &coordinatorv1.Service{Name: a.GetService()}, slot: a.GetSlot()}, r)
	}
	return nil
}

// onDownHost refuses a release because an instance is on a host that is down.
func onDownHost(in *instance, r *room) error {
	advice := "bring the host back"
	if r.host.GetState() == coordinatorv1.HostState_HOST_STATE_DOWN {
		advice += fmt.Sprintf(", or start its instances elsewhere with `musterctl host drain %s --lost`", r.name())
	}
	return refuse(coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN, "instance %d of service %s is on host %s, and %s: %s",
		in.slot, in.service.GetName(), r.name(), r.down(), advice)
}

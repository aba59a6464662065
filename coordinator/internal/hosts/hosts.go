// Package hosts owns the connections of agents: it accepts them, calls over them, follows whether a host is alive, and asks many hosts at
// once. What a host's state means for placement and runs is left to others; what is worth remembering of it is committed through
// Options.Transition, by the leader only.
package hosts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ErrNotConnected is returned for a host whose agent has no connection to this coordinator.
var ErrNotConnected = errors.New("hosts: not connected")

// Options of Hosts. Registered is needed by Serve, Transition and States by Lead; zero durations take their defaults.
type Options struct {
	// Registered says whether an agent is in the registry, with the certificate that it has shown; an error refuses its connection. It may
	// block for a while.
	Registered func(grpcserver.Caller) error
	// Transition commits changes of hosts' states. It gets at most 100 at a time and is asked again if it fails.
	Transition func(ctx context.Context, updates []*raftv1.HostUpdate) error
	// States are the hosts by their names as this coordinator's own state has them. The hosts are only read.
	States func() map[string]*coordinatorv1.Host
	// Coordinators returns the addresses of all coordinators, of which every host is told, or none while it cannot be sure: hosts then keep
	// those that they know. It may take a while; nil tells none. Hosts that run for years would otherwise know only those that were there
	// when they joined.
	Coordinators func(ctx context.Context) []string
	// LostGrace is how long a host whose connection ended may take to come back before it is down; default 5 s.
	LostGrace time.Duration
	// BeatTimeout is how long a connected host may be silent before it is down; default 30 s.
	BeatTimeout time.Duration
	// StartGrace is how long after the start of Lead no host is called down, so that a new leader does not take its own late
	// connections for dead hosts; default 15 s.
	StartGrace time.Duration
	// BatchDelay gathers changes that happen at the same time into one commit; default 100 ms.
	BatchDelay time.Duration
	// Logger of the hosts; nil discards.
	Logger *slog.Logger
}

// Hosts is the fleet as this coordinator sees it.
type Hosts struct {
	opts   Options
	logger *slog.Logger

	mu    sync.Mutex // guards what follows
	views map[string]*view
	// connected is closed and replaced when a host connects.
	connected chan struct{}
	// moved is closed and replaced when anything changed that Lead must look at.
	moved chan struct{}
	// coordinators as hosts are told, empty while unsure.
	coordinators []string
}

// view is what this coordinator knows of one host.
type view struct {
	// link is the newest connection; nil if there is none.
	link *link
	// lostAt is when the last connection ended.
	lostAt time.Time
	// lastBeat of the connection, or its beginning.
	lastBeat time.Time
	// inventory as sent over this connection; nil until the first message.
	inventory *agentv1.Inventory
	// agreed is the recorded inventory that says the same as inventory; nil until Lead has compared them.
	agreed *agentv1.Inventory
}

// New returns Hosts without any connection.
func New(o Options) *Hosts {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.LostGrace, 5 * time.Second},
		{&o.BeatTimeout, 30 * time.Second},
		{&o.StartGrace, 15 * time.Second},
		{&o.BatchDelay, 100 * time.Millisecond},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Hosts{
		opts:      o,
		logger:    o.Logger.With("component", "hosts"),
		views:     make(map[string]*view),
		connected: make(chan struct{}),
		moved:     make(chan struct{}),
	}
}

// Conn returns the connection to a host's agent, or ErrNotConnected, which is also an UNAVAILABLE status with HOST_DOWN. The connection
// ends without notice when the agent goes or connects anew: take it for every call, and do not keep it.
func (h *Hosts) Conn(host string) (grpc.ClientConnInterface, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.views[host]; v != nil && v.link != nil {
		return v.link.cc, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrNotConnected, rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
		"host %s is not connected to this coordinator: check that its muster-agent runs and reaches it", host))
}

// Changed returns a channel that is closed when the next host connects. Take it before looking at what is to be waited for:
//
//	for {
//		changed := h.Changed()
//		if cc, err := h.Conn(host); err == nil {
//			… return
//		}
//		<-changed
//	}
func (h *Hosts) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.connected
}

func (h *Hosts) changes() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.moved
}

// join makes l the connection of its host; an older one is ended.
func (h *Hosts) join(l *link) {
	h.mu.Lock()
	v := h.views[l.host]
	if v == nil {
		v = &view{}
		h.views[l.host] = v
	}
	old := v.link
	v.link, v.lastBeat, v.inventory, v.agreed = l, time.Now(), nil, nil
	wake(&h.connected)
	wake(&h.moved)
	h.mu.Unlock()
	if old != nil {
		h.logger.Info("host connected anew, its older connection ends", "host", l.host, "remote", l.remote)
		old.end()
		return
	}
	h.logger.Info("host connected", "host", l.host, "remote", l.remote)
}

// leave forgets l, unless a newer connection has taken its place.
func (h *Hosts) leave(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.views[l.host]
	if v == nil || v.link != l {
		return
	}
	v.link, v.inventory, v.agreed, v.lostAt = nil, nil, nil, time.Now()
	wake(&h.moved)
	h.logger.Info("host disconnected", "host", l.host, "remote", l.remote)
}

// beat records a message of the host over l.
func (h *Hosts) beat(l *link, inventory *agentv1.Inventory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.views[l.host]
	if v == nil || v.link != l {
		return
	}
	wasSilent := time.Since(v.lastBeat) > h.opts.BeatTimeout
	v.lastBeat = time.Now()
	if inventory != nil {
		v.inventory, v.agreed = inventory, nil
	}
	if inventory != nil || wasSilent {
		wake(&h.moved)
	}
}

// wake closes a channel for all who wait for it, and puts a new one in its place. The lock of Hosts must be held.
func wake(ch *chan struct{}) {
	close(*ch)
	*ch = make(chan struct{})
}

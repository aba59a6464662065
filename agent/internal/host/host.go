// Package host owns what is told of the host as a whole: the machine, the agent's own settings, and whether the engine answers. Who is told,
// and what they make of it, is left to the api and to the coordinators.
package host

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// pollInterval is how long a change of the engine may stay unseen, but for the time of the question itself.
const pollInterval = 2 * time.Second

// Engine is asked whether it is up. It answers within a few seconds, whatever happens.
type Engine interface {
	Status(ctx context.Context) *agentv1.EngineStatus
}

// Options configure a Host. Settings, Engine and Logger are required.
type Options struct {
	// Settings are the parts of the inventory that the agent was started with; the machine's own are filled in.
	Settings *agentv1.Inventory
	// Engine of the host.
	Engine Engine
	// Logger receives what happens to the engine.
	Logger *slog.Logger
	// Root of the file system that tells about the machine; default "/".
	Root string
}

// Host knows its inventory. It is safe for concurrent use.
type Host struct {
	opts   Options
	logger *slog.Logger

	mu        sync.Mutex
	inventory *agentv1.Inventory // never changed, only replaced; nil before the first look.
	changed   chan struct{}      // closed when inventory is replaced.
}

// New returns a Host that knows nothing until Run has had a look.
func New(o Options) (*Host, error) {
	if o.Settings == nil || o.Engine == nil || o.Logger == nil {
		return nil, errors.New("host: Settings, Engine and Logger are required")
	}
	if o.Root == "" {
		o.Root = "/"
	}
	return &Host{opts: o, logger: o.Logger.With("component", "host"), changed: make(chan struct{})}, nil
}

// Run looks at the host at once and every 2 s until ctx ends.
func (h *Host) Run(ctx context.Context) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		engine := h.opts.Engine.Status(ctx)
		if ctx.Err() != nil {
			return nil // what the engine said then is about the end of ctx.
		}
		h.replace(h.look(engine))
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Inventory returns what is known, nil before the first look, and a channel that is closed when something else is. It must not be changed.
func (h *Host) Inventory() (*agentv1.Inventory, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.inventory, h.changed
}

// look puts the inventory together. What the machine does not tell stays empty.
func (h *Host) look(engine *agentv1.EngineStatus) *agentv1.Inventory {
	i := proto.CloneOf(h.opts.Settings)
	i.Engine = engine
	m := readMachine(h.opts.Root)
	i.Hostname, i.Platform, i.Kernel = m.hostname, m.platform, m.kernel
	i.NanoCpus, i.MemoryBytes, i.Gpus = m.nanoCPUs, m.memoryBytes, m.gpus
	return i
}

func (h *Host) replace(next *agentv1.Inventory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if proto.Equal(h.inventory, next) {
		return
	}
	if was, is := h.inventory.GetEngine(), next.GetEngine(); h.inventory == nil || was.GetUp() != is.GetUp() {
		h.logger.Info("engine", "up", is.GetUp(), "version", is.GetVersion(), "err", is.GetError())
	}
	h.inventory = next
	close(h.changed)
	h.changed = make(chan struct{})
}

package hosts

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// maxBatch is how many hosts one command may change.
	maxBatch = 100
	// lookEvery is how often Lead looks for hosts that have gone silent, which nothing announces.
	lookEvery = time.Second
	// memoryNoise is the part of a machine's memory by which its size may differ between two looks without being news.
	memoryNoise = 100
)

// Lead commits what becomes of hosts until ctx ends: to be called on the leader only. It compares what the state says with what this
// coordinator sees, again and again, so that a commit that fails is made up for.
func (h *Hosts) Lead(ctx context.Context) error {
	began := time.Now()
	look := time.NewTicker(min(lookEvery, h.opts.LostGrace))
	defer look.Stop()
	for {
		moved := h.changes()
		h.commit(ctx, h.transitions(began))
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			continue
		case <-moved:
		}
		gather := time.NewTimer(h.opts.BatchDelay)
		select {
		case <-ctx.Done():
			gather.Stop()
			return nil
		case <-gather.C:
		}
	}
}

func (h *Hosts) commit(ctx context.Context, updates []*raftv1.HostUpdate) {
	for batch := range slices.Chunk(updates, maxBatch) {
		if err := h.opts.Transition(ctx, batch); err != nil {
			if ctx.Err() == nil {
				h.logger.Warn("states of hosts not recorded yet", "hosts", len(updates), "err", err)
			}
			return // the next look finds what is missing
		}
		for _, u := range batch {
			h.logger.Info("host changed", "host", u.GetHost(), "state", u.GetState().String())
		}
	}
}

// transitions are the differences between what the state says and what is seen, in order of the hosts' names.
func (h *Hosts) transitions(began time.Time) []*raftv1.HostUpdate {
	states := h.opts.States()
	now := time.Now()
	var updates []*raftv1.HostUpdate
	for _, name := range slices.Sorted(maps.Keys(states)) {
		seen := h.seen(name)
		if u := h.opts.decide(now, began, states[name], seen); u != nil {
			updates = append(updates, u)
		} else if seen.inventory != nil && seen.agreed != states[name].GetInventory() {
			h.agree(name, seen.inventory, states[name].GetInventory())
		}
	}
	return updates
}

// agree remembers that nothing of what a host tells is news, until either side changes: a fleet is looked at every second.
func (h *Hosts) agree(host string, seen, recorded *agentv1.Inventory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.views[host]; v != nil && v.inventory == seen {
		v.inventory, v.agreed = recorded, recorded // one copy is enough
	}
}

func (h *Hosts) seen(host string) view {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.views[host]; v != nil {
		return *v
	}
	return view{}
}

// decide returns what must be recorded of a host; nil if nothing.
func (o *Options) decide(now, began time.Time, host *coordinatorv1.Host, seen view) *raftv1.HostUpdate {
	update := &raftv1.HostUpdate{Host: host.GetName(), State: host.GetState()}
	silent := seen.link != nil && now.Sub(seen.lastBeat) > o.BeatTimeout
	switch {
	case seen.link != nil && !silent && seen.inventory == nil:
		return nil // it has just connected and is about to tell
	case seen.link != nil && !silent:
		update.State = coordinatorv1.HostState_HOST_STATE_UP
		if !seen.inventory.GetEngine().GetUp() {
			update.State = coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN
		}
		if known := host.GetInventory(); known == nil || known != seen.agreed && !sameInventory(known, seen.inventory) {
			update.Inventory = seen.inventory
		}
	case host.GetState() == coordinatorv1.HostState_HOST_STATE_JOINED:
		return nil // never seen is not the same as gone
	case now.Sub(began) < o.StartGrace:
		return nil
	case silent, now.Sub(seen.lostAt) >= o.LostGrace:
		update.State = coordinatorv1.HostState_HOST_STATE_DOWN
	}
	if update.GetState() == host.GetState() && update.GetInventory() == nil {
		return nil
	}
	return update
}

// sameInventory says whether two inventories are the same to everybody who decides by them. The text of the engine's error changes from
// call to call, and the size of the memory a little with some kernels.
func sameInventory(recorded, seen *agentv1.Inventory) bool {
	if recorded == nil {
		return false
	}
	a, b := proto.CloneOf(recorded), proto.CloneOf(seen)
	if d := a.GetMemoryBytes() - b.GetMemoryBytes(); max(d, -d) <= a.GetMemoryBytes()/memoryNoise {
		b.MemoryBytes = a.GetMemoryBytes()
	}
	for _, i := range []*agentv1.Inventory{a, b} {
		if i.GetEngine() != nil {
			i.Engine.Error = ""
		}
		slices.Sort(i.RouteDrivers)
	}
	return proto.Equal(a, b)
}

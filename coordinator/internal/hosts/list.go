package hosts

import (
	"context"
	"slices"
	"time"
)

const (
	// listEvery gathers changes: every host's watch is opened anew for one.
	listEvery = time.Second
	// mostListed is how many coordinators a host takes.
	mostListed = 16
)

// listed returns the coordinators that a host is told of, and a channel that is closed when they are no longer those.
func (h *Hosts) listed() ([]string, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.coordinators, h.relisted
}

// list looks who the coordinators are, and returns a channel that is closed when it is time to look again.
func (h *Hosts) list() <-chan struct{} {
	changed := h.opts.CoordinatorsChanged()
	now := slices.Clone(h.opts.Coordinators())
	now = now[:min(len(now), mostListed)]
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(now, h.coordinators) {
		h.coordinators = now
		wake(&h.relisted)
	}
	return changed
}

// keepListing looks again at every change, until ctx ends.
func (h *Hosts) keepListing(ctx context.Context, changed <-chan struct{}) {
	pause := time.NewTicker(listEvery)
	defer pause.Stop()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		changed = h.list()
	}
}

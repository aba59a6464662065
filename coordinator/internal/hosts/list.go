package hosts

import (
	"context"
	"slices"
	"time"
)

const (
	// listEvery is how often Serve asks who the coordinators are. It asks again and again, because a coordinator that is cut off must stop
	// telling what it believes, and nothing announces that.
	listEvery = 2 * time.Second
	// mostListed is how many coordinators a host takes.
	mostListed = 16
)

// listed returns the coordinators that a host is told of; relist is called when it must be told of others.
func (h *Hosts) listed(l *link, relist context.CancelCauseFunc) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.relist = relist
	return h.coordinators
}

// keepListing follows who the coordinators are, until ctx ends.
func (h *Hosts) keepListing(ctx context.Context) {
	again := time.NewTicker(listEvery)
	defer again.Stop()
	for {
		h.list(ctx)
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *Hosts) list(ctx context.Context) {
	now := slices.Clone(h.opts.Coordinators(ctx))
	now = now[:min(len(now), mostListed)]
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Equal(now, h.coordinators) {
		return
	}
	h.coordinators = now
	if len(now) == 0 { // to be told of none is no news to a host
		return
	}
	for _, v := range h.views {
		if v.link != nil && v.link.relist != nil {
			v.link.relist(errRelisted)
		}
	}
}

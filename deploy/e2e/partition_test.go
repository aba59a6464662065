//go:build e2e || crash

package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// partition is a way in which the network falls apart around the leader.
type partition struct {
	name string
	// cut makes it.
	cut func(ctx context.Context, h *house, leader *fleet.Coordinator) error
	// lasts so long.
	lasts time.Duration
}

func partitions() []partition {
	return []partition{
		{"leader alone", func(ctx context.Context, h *house, leader *fleet.Coordinator) error {
			return leader.Machine.Cut(ctx)
		}, 5 * time.Second},
		{"agent cut off from the leader only", func(ctx context.Context, h *house, leader *fleet.Coordinator) error {
			return h.Hosts[1].Refuse(ctx, fleet.BothWays, leader.Machine)
		}, 4 * time.Second},
		{"half of the agents cut off", func(ctx context.Context, h *house, _ *fleet.Coordinator) error {
			for _, m := range h.Hosts[1:] {
				if err := m.Refuse(ctx, fleet.BothWays, h.Seats...); err != nil {
					return err
				}
			}
			return nil
		}, 4 * time.Second},
		{"leader sends and does not receive", func(ctx context.Context, h *house, leader *fleet.Coordinator) error {
			return leader.Machine.Refuse(ctx, fleet.Inbound, h.everyone(leader)...)
		}, 5 * time.Second},
		{"leader receives and does not send", func(ctx context.Context, h *house, leader *fleet.Coordinator) error {
			return leader.Machine.Refuse(ctx, fleet.Outbound, h.everyone(leader)...)
		}, 5 * time.Second},
	}
}

// everyone but one coordinator.
func (h *house) everyone(but *fleet.Coordinator) []*fleet.Machine {
	var all []*fleet.Machine
	for _, m := range append(append([]*fleet.Machine{}, h.Seats...), h.Hosts...) {
		if m != but.Machine {
			all = append(all, m)
		}
	}
	return all
}

// TestPartitions cuts the network apart in the middle of a rolling update, and joins it again: nothing is done twice, no request is lost, and the update
// completes.
func TestPartitions(t *testing.T) {
	h := furnish(t)
	h.apply(t, h.shop("v1")).want(t, 0)
	h.settled(t, "v1")
	now := "v1"
	for _, p := range partitions() {
		next := map[string]string{"v1": "v2", "v2": "v1"}[now]
		if !t.Run(p.name, func(t *testing.T) {
			defer h.explain(t)
			h.parted(t, p, next)
		}) {
			return
		}
		now = next
	}
}

// parted rolls the version out while the partition lasts.
func (h *house) parted(t *testing.T, p partition, version string) {
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	apply := h.applying(t, h.shop(version))
	apply.until(t, h, mark, "start", 2)
	if err := p.cut(t.Context(), h, leader); err != nil {
		t.Fatal(err)
	}
	h.pause(t, p.lasts)
	during := len(h.Witness.Names(mark, "start", prefix))
	if err := h.heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	apply.wait().want(t, 0)
	t.Logf("%d of %d instances had started when the network was whole again; the update completed %s after", during, replicas, time.Since(healed).Round(time.Millisecond))
	unharmed(t, stop())
	h.settled(t, version)
	h.onceEach(t, mark)
	if err := h.Muster.Voters(t.Context(), 3); err != nil {
		t.Error(err)
	}
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Error(err)
	}
	for _, c := range h.Muster.Coordinators {
		if err := h.Muster.Reaches(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}

// heal makes the network whole.
func (h *house) heal(ctx context.Context) error {
	for _, m := range append(append([]*fleet.Machine{}, h.Seats...), h.Hosts...) {
		if err := m.Join(ctx); err != nil {
			return err
		}
	}
	return nil
}

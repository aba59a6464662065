package hosts

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const (
		none       = coordinatorv1.HostState_HOST_STATE_UNSPECIFIED
		joined     = coordinatorv1.HostState_HOST_STATE_JOINED
		up         = coordinatorv1.HostState_HOST_STATE_UP
		engineDown = coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN
		down       = coordinatorv1.HostState_HOST_STATE_DOWN
	)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	good := &agentv1.Inventory{Hostname: "a", Engine: &agentv1.EngineStatus{Up: true}}
	bad := &agentv1.Inventory{Hostname: "a", Engine: &agentv1.EngineStatus{Error: "no"}}
	connected := func(beat time.Duration, i *agentv1.Inventory) view {
		return view{link: &link{}, lastBeat: now.Add(-beat), inventory: i}
	}
	tests := []struct {
		name      string
		state     coordinatorv1.HostState
		recorded  *agentv1.Inventory
		seen      view
		leading   time.Duration
		want      coordinatorv1.HostState // none for no update
		inventory bool
	}{
		{"first seen", joined, nil, connected(0, good), 0, up, true},
		{"first seen with a dead engine", joined, nil, connected(0, bad), 0, engineDown, true},
		{"nothing new", up, good, connected(time.Second, good), time.Hour, none, false},
		{"engine died", up, good, connected(0, bad), time.Hour, engineDown, true},
		{"back with the same inventory", down, good, connected(0, good), time.Hour, up, false},
		{"just connected", down, good, connected(0, nil), time.Hour, none, false},
		{"connected, never told anything", up, good, connected(31*time.Second, nil), time.Hour, down, false},
		{"silent", up, good, connected(31*time.Second, good), time.Hour, down, false},
		{"silent for a young leader", up, good, connected(31*time.Second, good), 14 * time.Second, none, false},
		{"gone just now", up, good, view{lostAt: now.Add(-4 * time.Second)}, time.Hour, none, false},
		{"gone", up, good, view{lostAt: now.Add(-5 * time.Second)}, time.Hour, down, false},
		{"gone with a dead engine", engineDown, bad, view{lostAt: now.Add(-5 * time.Second)}, time.Hour, down, false},
		{"gone for a young leader", up, good, view{lostAt: now.Add(-time.Hour)}, 14 * time.Second, none, false},
		{"never connected here", up, good, view{}, 15 * time.Second, down, false},
		{"down already", down, good, view{}, time.Hour, none, false},
		{"never seen anywhere", joined, nil, view{}, time.Hour, none, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := New(Options{}).opts
			got := o.decide(now, now.Add(-tt.leading), &coordinatorv1.Host{Name: "a", State: tt.state, Inventory: tt.recorded}, tt.seen)
			if got.GetState() != tt.want || (got.GetInventory() != nil) != tt.inventory {
				t.Errorf("got %v, want %v with inventory %v", got, tt.want, tt.inventory)
			}
		})
	}
}

func TestSameInventory(t *testing.T) {
	t.Parallel()
	base := &agentv1.Inventory{
		MemoryBytes: 100_000, RouteDrivers: []string{"caddy", "nginx"}, Engine: &agentv1.EngineStatus{Version: "28", Error: "a"},
	}
	tests := []struct {
		name string
		edit func(*agentv1.Inventory)
		want bool
	}{
		{"the same", func(*agentv1.Inventory) {}, true},
		{"text of the error", func(i *agentv1.Inventory) { i.Engine.Error = "b" }, true},
		{"order of drivers", func(i *agentv1.Inventory) { i.RouteDrivers = []string{"nginx", "caddy"} }, true},
		{"a little memory", func(i *agentv1.Inventory) { i.MemoryBytes -= 1000 }, true},
		{"much memory", func(i *agentv1.Inventory) { i.MemoryBytes -= 1001 }, false},
		{"engine up", func(i *agentv1.Inventory) { i.Engine.Up = true }, false},
		{"no engine", func(i *agentv1.Inventory) { i.Engine = nil }, false},
		{"label", func(i *agentv1.Inventory) { i.Labels = map[string]string{"a": "b"} }, false},
		{"address", func(i *agentv1.Inventory) { i.Address = "10.0.0.9" }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seen := proto.CloneOf(base)
			tt.edit(seen)
			before := proto.CloneOf(seen)
			if got := sameInventory(base, seen); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if !proto.Equal(seen, before) {
				t.Error("what was seen has changed by looking at it")
			}
		})
	}
	if sameInventory(nil, base) {
		t.Error("nothing recorded is the same as something seen")
	}
}

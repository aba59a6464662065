package cluster_test

import (
	"testing"
	"time"
)

// A new leader has every acknowledged entry in its log, but perhaps not yet in its FSM.
func TestReadWaitsForTheStateOfANewLeader(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	old := f.waitLeader()
	var release []func()
	for _, n := range f.nodes {
		if n != old {
			release = append(release, n.fsm.hold())
		}
	}
	defer func() {
		for _, r := range release {
			r()
		}
	}()
	if _, _, err := old.Propose(t.Context(), put("a", "new")); err != nil {
		t.Fatal(err)
	}
	f.kill(old.name)
	l := f.waitLeader()
	for name, n := range f.nodes {
		if err := n.Read(shortContext(t, 300*time.Millisecond)); err == nil {
			t.Errorf("Read on %s returned, its state has %q for an acknowledged %q", name, n.fsm.get("a"), "new")
		}
	}
	for _, r := range release {
		r()
	}
	for name, n := range f.nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.fsm.get("a"); got != "new" {
			t.Errorf("%s read %q under the leader %s, want %q", name, got, l.name, "new")
		}
	}
}

// A leader that is cut off takes itself for the leader for a while. What it knows may be old by then.
func TestReadOnACutOffLeaderFails(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	for range 3 {
		l := f.waitLeader()
		if err := l.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.net.isolate(l.name)
		if err := l.Read(shortContext(t, 400*time.Millisecond)); err == nil {
			t.Errorf("Read on %s returned although nobody can have told it that it still leads", l.name)
		}
		f.net.rejoin(l.name)
		if err := l.Read(t.Context()); err != nil {
			t.Errorf("Read after the connection came back: %v", err)
		}
	}
}

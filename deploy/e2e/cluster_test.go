//go:build e2e

package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

const newVersion = "v9.9.9-e2e"

// TestCluster does to the coordinators what operators do to them, each time in the middle of a rolling update under load.
func TestCluster(t *testing.T) {
	h := furnish(t)
	h.apply(t, h.shop("v1")).want(t, 0)
	h.settled(t, "v1")
	for _, part := range []struct {
		name, to string
		do       func(*testing.T, *house)
	}{
		{"rolling upgrade, leader last", "v2", upgraded},
		{"a coordinator leaves and another joins", "v1", replaced},
		{"quorum lost and recovered", "v2", recovered},
	} {
		if !t.Run(part.name, func(t *testing.T) {
			defer h.explain(t)
			h.meanwhile(t, part.to, part.do)
		}) {
			return
		}
	}
}

// meanwhile rolls a version out, one instance at a time, and does something when that has begun: no request is lost, and nothing is done twice.
func (h *house) meanwhile(t *testing.T, version string, do func(*testing.T, *house)) {
	start, mark := time.Now(), h.Witness.Mark()
	stop := h.loaded(t, false)
	apply := h.applying(t, strings.Replace(h.shop(version), "parallelism: 2", "parallelism: 1", 1))
	apply.until(t, h, mark, "start", 1)
	do(t, h)
	select {
	case <-apply.done:
		t.Logf("the update was over before the coordinators were")
	default:
	}
	apply.wait().want(t, 0)
	unharmed(t, stop())
	h.settled(t, version)
	h.onceEach(t, mark)
	t.Logf("took %s", time.Since(start).Round(time.Millisecond))
}

// versions of the coordinators by name.
func (h *house) versions(t *testing.T) map[string]string {
	t.Helper()
	peers, err := fleet.Items[struct{ ID, Version string }](t.Context(), h.Muster, "operator", "raft", "peers")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, p := range peers {
		found[p.ID] = p.Version
	}
	return found
}

func upgraded(t *testing.T, h *house) {
	program, err := h.BuildVersion(t.Context(), newVersion)
	if err != nil {
		t.Fatal(err)
	}
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	replace := func(c *fleet.Coordinator) {
		t.Helper()
		if err := c.Replace(t.Context(), program); err != nil {
			t.Fatal(err)
		}
		if err := h.Muster.Voters(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
	}
	var follower *fleet.Coordinator
	for _, c := range h.Muster.Coordinators {
		if c != leader {
			replace(c)
			follower = c
		}
	}
	h.ctl(t, "operator", "raft", "transfer", follower.Name).want(t, 0)
	next, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if next != follower {
		t.Errorf("%s leads after the transfer to %s", next.Name, follower.Name)
	}
	replace(leader)
	for name, version := range h.versions(t) {
		if version != newVersion {
			t.Errorf("%s is of version %s", name, version)
		}
	}
}

// seat is a machine for a further coordinator.
func (h *house) seat(t *testing.T, name string) fleet.CoordinatorSpec {
	t.Helper()
	m, err := h.Machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return fleet.CoordinatorSpec{Name: name, Machine: m, Address: m.Address, Port: 7443, HTTPPort: 7480}
}

func (h *house) addCoordinators(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := h.Muster.AddCoordinator(t.Context(), h.seat(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Muster.Voters(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
}

func replaced(t *testing.T, h *house) {
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaves := h.Muster.Coordinators[0]
	if leaves == leader {
		leaves = h.Muster.Coordinators[1]
	}
	h.ctl(t, "operator", "raft", "remove", "c9", "--yes").want(t, 3)
	h.Muster.ForgetCoordinator(leaves.Name) // it ends by itself
	h.ctl(t, "operator", "raft", "remove", leaves.Name, "--yes", "--reason", "its machine is given back").want(t, 0)
	h.ends(t, leaves)
	h.addCoordinators(t, "c4")
	if versions := h.versions(t); len(versions) != 3 || versions[leaves.Name] != "" {
		t.Errorf("the coordinators are %v", versions)
	}
	h.known(t, leaves.Endpoint())
	// It would find its data directory of no use, too.
	if err := leaves.Restart(); err != nil {
		t.Fatal(err)
	}
	h.ends(t, leaves)
}

// known waits until every agent knows the coordinators that there are, and no other one, also after a restart.
func (h *house) known(t *testing.T, gone string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	for _, a := range h.Muster.Agents {
		file := filepath.Join(filepath.Dir(a.Log()), "data", "agent.yaml")
		err := fleet.Poll(ctx, 100*time.Millisecond, a.Name+" to know the coordinators", func() (bool, error) {
			raw, err := os.ReadFile(file)
			all := err == nil && !strings.Contains(string(raw), gone)
			for _, c := range h.Muster.Coordinators {
				all = all && strings.Contains(string(raw), c.Endpoint())
			}
			return all, err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// ends waits until a coordinator that was removed has ended, and said why.
func (h *house) ends(t *testing.T, c *fleet.Coordinator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Fatalf("%s was removed and still runs", c.Name)
	}
	log, err := os.ReadFile(c.Log())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "this coordinator was removed from the cluster") {
		t.Errorf("%s ended without saying that it was removed", c.Name)
	}
}

func recovered(t *testing.T, h *house) {
	survivor, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range h.Muster.Coordinators {
		if c != survivor {
			if err := c.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	lost := map[string]*fleet.Coordinator{}
	for _, c := range append([]*fleet.Coordinator{}, h.Muster.Coordinators...) {
		if c != survivor {
			lost[c.Name] = c
			h.Muster.ForgetCoordinator(c.Name)
		}
	}
	if o := h.ctl(t, "--timeout", "2s", "secret", "list"); o.code == 0 {
		t.Errorf("one of three coordinators answers for the cluster:\n%s", o.text)
	}
	if _, err := h.Muster.Offline(t.Context(), survivor, "recover", "--i-have-stopped-all-others"); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("recover of a coordinator that runs: %v", err)
	}
	if err := survivor.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, err := h.Muster.Offline(t.Context(), survivor, "inspect")
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + held.Stdout)
	did, err := h.Muster.Offline(t.Context(), survivor, "recover", "--i-have-stopped-all-others")
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + did.Stderr)
	if err := survivor.Restart(); err != nil {
		t.Fatal(err)
	}
	h.addCoordinators(t, "c5", "c6")
	// One of those that were lost turns up again: it is refused, and says so.
	for name, c := range lost {
		if !strings.Contains(did.Stderr, name) {
			t.Errorf("%s was lost and not evicted: %s", name, did.Stderr)
		}
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range lost {
		h.ends(t, c)
	}
	if peers := h.versions(t); len(peers) != 3 || peers[survivor.Name] == "" {
		t.Errorf("the coordinators are %v", peers)
	}
}

//go:build e2e

package e2e_test

import (
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// TestMuster walks through the main job on one fleet; each part finds the stack as the one before left it.
func TestMuster(t *testing.T) {
	start := time.Now()
	h := furnish(t)
	t.Logf("a fleet of 3 coordinators, 3 engines, registry and proxy after %s", time.Since(start))
	for _, part := range []struct {
		name string
		do   func(*testing.T, *house)
	}{
		{"first deploy", firstDeploy},
		{"rolling update", rollingUpdate},
		{"nothing to do", nothingToDo},
		{"failed update rolls back", failedUpdate},
		{"leader killed", leaderKilled},
		{"registry gone after the pull", registryGone},
		{"agent killed between create and start", agentKilled},
		{"superseded", superseded},
		{"engine killed", engineKilled},
		{"leader killed in the watch window", watchWindow},
		{"bad input", badInput},
		{"other services", otherServices},
	} {
		if !t.Run(part.name, func(t *testing.T) {
			defer h.explain(t)
			part.do(t, h)
		}) && part.name == "first deploy" {
			t.Fatal("nothing can be tested on a stack that is not there")
		}
	}
}

func firstDeploy(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	h.apply(t, h.shop("v1")).want(t, 0)
	h.settled(t, "v1")
	h.onceEach(t, mark)
	containers, err := h.Containers(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if !strings.HasPrefix(c.Image, h.Registry.Address+"/shop-app@sha256:") {
			t.Errorf("%s runs %s, which is not pinned by digest", c.Name(), c.Image)
		}
	}
	for i, e := range h.Engines {
		list, err := e.Containers(t.Context(), label)
		if err != nil || len(list) != replicas/len(h.Engines) {
			t.Errorf("h%d has %d instances, want %d: %v", i+1, len(list), replicas/len(h.Engines), err)
		}
	}
}

func rollingUpdate(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	kept := h.loaded(t, true)
	h.apply(t, h.shop("v2")).want(t, 0)
	unharmed(t, stop())
	unharmed(t, kept())
	h.settled(t, "v2")
	h.onceEach(t, mark)
}

func nothingToDo(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	h.apply(t, h.shop("v2")).want(t, 0)
	if made := h.Witness.Names(mark, "create", prefix); len(made) > 0 {
		t.Errorf("the same file again created %v", made)
	}
}

func failedUpdate(t *testing.T, h *house) {
	stop := h.loaded(t, false)
	h.apply(t, h.shop("bad")).want(t, 1)
	report := stop()
	unharmed(t, report)
	if n := report.Versions["bad"]; n > 0 {
		t.Errorf("the version that never became ready answered %d requests", n)
	}
	h.settled(t, "v2")
}

func leaderKilled(t *testing.T, h *house) {
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	apply := h.applying(t, h.shop("v1"))
	apply.until(t, h, mark, "start", 2)
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	apply.wait().want(t, 0)
	unharmed(t, stop())
	next, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if next.Name == leader.Name {
		t.Errorf("%s leads, and was killed", leader.Name)
	}
	h.settled(t, "v1")
	h.onceEach(t, mark)
	if err := leader.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Muster.Voters(t.Context(), 3), h.Muster.Reaches(t.Context(), leader)); err != nil {
		t.Error(err)
	}
}

func registryGone(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	apply := h.applying(t, h.shop("v5"))
	apply.until(t, h, mark, "create", 1)
	if err := h.Registry.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	apply.wait().want(t, 0)
	h.settled(t, "v5")
	h.onceEach(t, mark)
	if err := h.Registry.Process.Restart(); err != nil {
		t.Fatal(err)
	}
}

// agentKilled kills an agent whose call to start a container has left it and has not reached the engine: the container is created and does not run.
func agentKilled(t *testing.T, h *house) {
	engine := h.Engines[0]
	agent := h.agent(t, engine.Machine.Name)
	before := h.version(t)
	target := map[string]string{"v1": "v2", "v2": "v1", "v5": "v1"}[before]
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	tap, err := engine.Tap("POST", "/start")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	if err := errors.Join(agent.Restart(), h.Muster.HostsUp(t.Context(), len(h.Hosts))); err != nil {
		t.Fatal(err)
	}
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	apply := h.applying(t, h.shop(target))
	var held string
	select {
	case held = <-tap.Held():
	case <-apply.done:
		t.Fatalf("musterctl ended with %d before %s started a container:\n%s", apply.code, agent.Name, apply.text)
	}
	if err := errors.Join(agent.Kill(), tap.Close()); err != nil {
		t.Fatal(err)
	}
	id := path.Base(path.Dir(held))
	var container struct {
		Name  string
		State struct{ Status string }
	}
	if err := engine.Inspect(t.Context(), id, &container); err != nil {
		t.Fatal(err)
	}
	if container.State.Status != "created" {
		t.Fatalf("%s is %s, and its start was held", container.Name, container.State.Status)
	}
	// The run must wait, and not work around the host: give it the time to do it wrong.
	h.pause(t, 2*time.Second)
	if err := agent.Restart(); err != nil {
		t.Fatal(err)
	}
	apply.wait().want(t, 0)
	unharmed(t, stop())
	h.settled(t, target)
	h.onceEach(t, mark)
	if err := engine.Inspect(t.Context(), id, &container); err != nil || container.State.Status != "running" {
		t.Errorf("the container of the killed agent is %q (%v), want it running", container.State.Status, err)
	}
}

func (h *house) agent(t *testing.T, name string) *fleet.Agent {
	t.Helper()
	for _, a := range h.Muster.Agents {
		if a.Name == name {
			return a
		}
	}
	t.Fatalf("there is no agent %s", name)
	return nil
}

// engineKilled takes the daemon away from under the second host in the middle of an update. The run goes on when it is back: it finishes or rolls back,
// leaves neither an orphan nor a duplicate, and every instance of the release that is current then runs. So does the next update.
func engineKilled(t *testing.T, h *house) {
	before := h.version(t)
	target := map[string]string{"v1": "v2", "v2": "v1", "v5": "v1"}[before]
	mark := h.Witness.Mark()
	apply := h.applying(t, h.shop(target))
	apply.until(t, h, mark, "start", 2)
	engine := h.Engines[1]
	if err := engine.Kill(); err != nil {
		t.Fatal(err)
	}
	h.pause(t, 2*time.Second)
	if err := engine.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := apply.wait()
	t.Logf("ended with %d, after the engine came back", o.code)
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Error(err)
	}
	now, next := target, before
	switch {
	case o.code == 0:
	case o.code == 1 && strings.Contains(o.text, "was rolled back"):
		now, next = before, target
	default:
		t.Fatalf("musterctl ended with %d:\n%s", o.code, o.text)
	}
	h.settled(t, now)
	h.apply(t, h.shop(next)).want(t, 0)
	h.settled(t, next)
}

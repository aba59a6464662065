//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// TestVerbs does to a service that serves what operators do to one, with real engines and a real proxy.
func TestVerbs(t *testing.T) {
	h := furnish(t)
	h.apply(t, h.shop("v1")).want(t, 0)
	h.settled(t, "v1")
	for _, part := range []struct {
		name string
		do   func(*testing.T, *house)
	}{
		{"restart", restartUnderLoad},
		{"restart while the leader dies", restartWithoutLeader},
		{"restart while an agent dies", restartWithoutAgent},
		{"recreate", recreateUnderLoad},
		{"reload and signal", reloadUnderLoad},
		{"stop and start one", stopOne},
		{"stop and start all", stopAll},
		{"apply after stop", applyAfterStop},
		{"refusals", verbRefusals},
	} {
		t.Run(part.name, func(t *testing.T) {
			defer h.explain(t)
			part.do(t, h)
		})
	}
}

// verb runs a verb on the service of the tests and follows it to its end.
func (h *house) verb(t *testing.T, verb string, args ...string) outcome {
	t.Helper()
	return h.ctl(t, append([]string{"service", verb, "shop/web", "--yes", "--progress", "plain"}, args...)...)
}

// inspected is what an engine tells of a container.
type inspected struct {
	ID    string `json:"Id"`
	Name  string
	State struct {
		Status    string
		StartedAt time.Time
	}
	HostConfig      struct{ RestartPolicy struct{ Name string } }
	NetworkSettings struct {
		Ports map[string][]struct{ HostIP, HostPort string }
	}
}

// containers are those of the stack on all engines, by their names.
func (h *house) containers(t *testing.T) map[string]inspected {
	t.Helper()
	found := map[string]inspected{}
	for _, e := range h.Engines {
		list, err := e.Containers(t.Context(), label)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			var i inspected
			if err := e.Inspect(t.Context(), c.ID, &i); err != nil {
				t.Fatal(err)
			}
			found[c.Name()] = i
		}
	}
	return found
}

// states are the states of the stack's containers, by their names.
func (h *house) states(t *testing.T) map[string]string {
	t.Helper()
	states := map[string]string{}
	for name, c := range h.containers(t) {
		states[name] = c.State.Status
	}
	return states
}

func restartUnderLoad(t *testing.T, h *house) {
	before, mark := h.containers(t), h.Witness.Mark()
	stop, kept := h.loaded(t, false), h.loaded(t, true)
	h.verb(t, "restart").want(t, 0)
	unharmed(t, stop())
	unharmed(t, kept())
	h.restartedOnce(t, before, mark)
}

// restartedOnce checks that every container is the same, and was stopped and started exactly once since mark.
func (h *house) restartedOnce(t *testing.T, before map[string]inspected, mark int) {
	t.Helper()
	h.settled(t, "v1")
	after := h.containers(t)
	for name, c := range before {
		if after[name].ID != c.ID {
			t.Errorf("%s is another container: %s was %s", name, after[name].ID, c.ID)
		}
		if !after[name].State.StartedAt.After(c.State.StartedAt) {
			t.Errorf("%s was not started again", name)
		}
	}
	want := slices.Sorted(maps.Keys(before))
	for _, action := range []string{"die", "start"} {
		if got := h.Witness.Names(mark, action, prefix); !slices.Equal(got, want) {
			t.Errorf("the engines tell %s of %v, want each of %v once", action, got, want)
		}
	}
	if made := h.Witness.Names(mark, "create", prefix); len(made) > 0 {
		t.Errorf("a restart created %v", made)
	}
}

// interrupted restarts the service under load, does something once an instance was started again, and checks what became of it.
func (h *house) interrupted(t *testing.T, do func()) {
	t.Helper()
	before, mark := h.containers(t), h.Witness.Mark()
	stop := h.loaded(t, false)
	a := h.doing(t, func() outcome { return h.verb(t, "restart") })
	a.until(t, h, mark, "start", 1)
	do()
	a.wait().want(t, 0)
	unharmed(t, stop())
	h.restartedOnce(t, before, mark)
}

func restartWithoutLeader(t *testing.T, h *house) {
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.interrupted(t, func() {
		if err := leader.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(leader.Restart(), h.Muster.Voters(t.Context(), 3), h.Muster.Reaches(t.Context(), leader)); err != nil {
		t.Fatal(err)
	}
}

func restartWithoutAgent(t *testing.T, h *house) {
	agent := h.agent(t, "h2")
	h.interrupted(t, func() {
		if err := errors.Join(agent.Kill(), agent.Restart()); err != nil {
			t.Error(err)
		}
	})
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Fatal(err)
	}
}

func recreateUnderLoad(t *testing.T, h *house) {
	before, mark := h.containers(t), h.Witness.Mark()
	stop, kept := h.loaded(t, false), h.loaded(t, true)
	h.verb(t, "recreate", "--slot", "1,4").want(t, 0)
	h.verb(t, "recreate").want(t, 0)
	unharmed(t, stop())
	unharmed(t, kept())
	h.settled(t, "v1")
	for name := range h.containers(t) {
		if _, old := before[name]; old {
			t.Errorf("%s is still there", name)
		}
	}
	if made := h.Witness.Names(mark, "create", prefix); len(made) != 2+replicas {
		t.Errorf("created are %v, want 2 for the first call and %d for the second", made, replicas)
	}
}

// reloads asks every instance itself how often it got SIGHUP.
func (h *house) reloads(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for name, c := range h.containers(t) {
		for _, bindings := range c.NetworkSettings.Ports {
			for _, b := range bindings {
				counts[strings.TrimPrefix(name, "/")] = ask(t, "http://"+b.HostIP+":"+b.HostPort+"/reloads")
			}
		}
	}
	return counts
}

func ask(t *testing.T, url string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // A drain would wait for a connection that is left open.
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 100))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("%s answers %q", url, text)
	}
	return n
}

func reloadUnderLoad(t *testing.T, h *house) {
	before := h.containers(t)
	counted := func(want int, but string) {
		t.Helper()
		counts := h.reloads(t)
		if len(counts) != replicas {
			t.Fatalf("asked were %v, want %d instances", counts, replicas)
		}
		for name, n := range counts {
			wanted := want
			if but != "" && !strings.Contains(name, but) {
				wanted--
			}
			if n != wanted {
				t.Errorf("%s got %d signals, want %d", name, n, wanted)
			}
		}
	}
	counted(0, "")
	stop := h.loaded(t, false)
	h.verb(t, "reload").want(t, 0)
	unharmed(t, stop())
	counted(1, "")
	h.verb(t, "signal", "--signal", "hup", "--slot", "2").want(t, 0)
	counted(2, ".web.2.")
	for name, c := range h.containers(t) {
		if before[name].ID != c.ID || !before[name].State.StartedAt.Equal(c.State.StartedAt) {
			t.Errorf("%s was started anew for a signal", name)
		}
	}
	h.settled(t, "v1")
}

func stopOne(t *testing.T, h *house) {
	before := h.containers(t)
	stop := h.loaded(t, false)
	h.verb(t, "stop", "--slot", "3", "--reason", "to look at it").want(t, 0)
	for name, state := range h.states(t) {
		if want := map[bool]string{true: "exited", false: "running"}[strings.Contains(name, ".web.3.")]; state != want {
			t.Errorf("%s is %s, want %s", name, state, want)
		}
	}
	if o := h.ctl(t, "service", "ps", "shop/web"); strings.Count(o.text, "stopped") != 1 || strings.Contains(o.text, "exited") {
		t.Errorf("a stopped instance is shown as\n%s", o.text)
	}
	h.verb(t, "start").want(t, 0)
	unharmed(t, stop())
	h.settled(t, "v1")
	h.sameContainers(t, before)
	if o := h.verb(t, "start"); o.code != 0 || !strings.Contains(o.text, "nothing to do") {
		t.Errorf("starting what runs ends with %d:\n%s", o.code, o.text)
	}
}

func (h *house) sameContainers(t *testing.T, before map[string]inspected) {
	t.Helper()
	after := h.containers(t)
	for name, c := range before {
		if after[name].ID != c.ID || after[name].State.Status != "running" || after[name].HostConfig.RestartPolicy.Name != c.HostConfig.RestartPolicy.Name {
			t.Errorf("%s is %v, was %v", name, after[name], c)
		}
	}
	if len(after) != len(before) {
		t.Errorf("there are %d containers, were %d", len(after), len(before))
	}
}

// stopAll: what was stopped stays stopped, even if its engine is restarted.
func stopAll(t *testing.T, h *house) {
	before := h.containers(t)
	h.verb(t, "stop").want(t, 0)
	if o := h.ctl(t, "service", "list"); !strings.Contains(o.text, "0/6 (6 stopped)") {
		t.Errorf("a stopped service is listed as\n%s", o.text)
	}
	if err := h.Engines[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := h.Engines[0].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Fatal(err)
	}
	for name, state := range h.states(t) {
		if state != "exited" {
			t.Errorf("%s is %s, want it stopped", name, state)
		}
	}
	h.verb(t, "start").want(t, 0)
	h.settled(t, "v1")
	h.sameContainers(t, before)
	stop := h.loaded(t, false)
	h.pause(t, time.Second)
	unharmed(t, stop())
}

// applyAfterStop: the same file starts what was stopped; a changed one replaces it.
func applyAfterStop(t *testing.T, h *house) {
	before := h.containers(t)
	h.verb(t, "stop").want(t, 0)
	o := h.apply(t, h.shop("v1"))
	o.want(t, 0)
	if !strings.Contains(o.text, "is stopped: it is started again") {
		t.Errorf("the apply said\n%s", o.text)
	}
	h.settled(t, "v1")
	h.sameContainers(t, before)
	h.verb(t, "stop", "--slot", "1,2").want(t, 0)
	h.apply(t, h.shop("v2")).want(t, 0)
	h.settled(t, "v2")
}

func verbRefusals(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	for _, test := range []struct {
		args []string
		text string
	}{
		{[]string{"restart", "shop/wbe"}, "did you mean web?"},
		{[]string{"restart", "shpo/web"}, "did you mean shop?"},
		{[]string{"restart", "shop/web", "--slot", "9"}, "no instance 9: it has 1, 2, 3, 4, 5, 6"},
		{[]string{"signal", "shop/web", "--signal", "SIGKILL"}, "`musterctl service stop`"},
		{[]string{"stop", "shop/web", "--plan", "0000"}, "PLAN_CHANGED"},
	} {
		o := h.ctl(t, append([]string{"service", test.args[0], "--yes"}, test.args[1:]...)...)
		if o.code == 0 || !strings.Contains(o.text, test.text) {
			t.Errorf("%v ended with %d, want it refused with %q:\n%s", test.args, o.code, test.text, o.text)
		}
	}
	for _, action := range []string{"die", "start", "create", "kill"} {
		if names := h.Witness.Names(mark, action, prefix); len(names) > 0 {
			t.Errorf("refused requests led to %s of %v", action, names)
		}
	}
	runs, err := fleet.Items[struct{ ID, Procedure, State string }](t.Context(), h.Muster, "run", "list")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, r := range runs {
		seen[r.Procedure+" "+r.State]++
	}
	for _, want := range []string{"restart", "recreate", "reload", "signal", "stop", "start"} {
		if seen[want+" RUN_STATE_SUCCEEDED"] == 0 {
			t.Errorf("no run of %s has succeeded: %s", want, fmt.Sprint(seen))
		}
	}
}

//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

const (
	spherosegLabel = "muster.stack=spheroseg"
	approveLimit   = 20 * time.Second
)

// TestProcedures runs the runbook's maintenance on a stack of its shape: once to its end, and once with a migration that fails.
func TestProcedures(t *testing.T) {
	f := open(t)
	bed, err := f.MakeBed(t.Context(), fleet.BedOptions{Registry: true, Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{Bed: bed}
	image, err := fleet.NewImage(fleet.ImageSpec{Tag: "spheroseg-app:v1", Program: bed.Programs.App, Env: []string{"VERSION=v1"}, Labels: map[string]string{"version": "v1"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.Push(t.Context(), bed.Registry.Address); err != nil {
		t.Fatal(err)
	}
	folder, err := filepath.Abs("../stacks/spheroseg")
	if err != nil {
		t.Fatal(err)
	}
	env := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(env, []byte("IMAGE="+bed.Registry.Address+"/spheroseg-app:v1\nFAIL_MIGRATION=broken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := h.ctl(t, "stack", "apply", "-f", filepath.Join(folder, "compose.yaml"), "--env-file", env, "--yes", "--progress", "plain")
	if apply.code != 0 {
		t.Fatalf("the stack was not applied:\n%s", apply.text)
	}
	second, _, err := h.Muster.Login(t.Context(), "bea", "operator")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "maintenance.yaml")
	h.ctl(t, "procedure", "lint", file).want(t, 0)
	h.ctl(t, "procedure", "put", file).want(t, 0)
	for _, part := range []struct {
		name string
		do   func(*testing.T, *house, *fleet.Muster)
	}{
		{"plan", maintenancePlan},
		{"maintenance", maintenance},
		{"the same again", maintenanceAgain},
		{"migration fails", maintenanceFails},
		{"rejected", maintenanceRejected},
		{"a file", procedureOfFile},
	} {
		t.Run(part.name, func(t *testing.T) {
			defer h.explain(t)
			part.do(t, h, second)
		})
	}
}

func maintenancePlan(t *testing.T, h *house, _ *fleet.Muster) {
	plan := h.ctl(t, "procedure", "plan", "maintenance", "-i", "schema=2026-11")
	plan.want(t, 0)
	h.ctl(t, "procedure", "plan", "maintenance").want(t, 2)
	if !strings.Contains(plan.text, "stack/spheroseg") {
		t.Errorf("the plan does not tell its lock:\n%s", plan.text)
	}
}

// watcher asks the proxy all the time and notes what it answers, in order and without repetitions.
type watcher struct {
	mu   sync.Mutex
	seen []int
}

func (w *watcher) run(ctx context.Context, url string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	client := &http.Client{Timeout: 5 * time.Second}
	for {
		if status := get(ctx, client, url); ctx.Err() == nil {
			w.mu.Lock()
			if n := len(w.seen); n == 0 || w.seen[n-1] != status {
				w.seen = append(w.seen, status)
			}
			w.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// window runs the procedure, with somebody else's answer, and returns how it ended and what users of the proxy saw.
func (h *house) window(t *testing.T, second *fleet.Muster, answer string, inputs ...string) (outcome, []int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{}
	var wg sync.WaitGroup
	wg.Go(func() { w.run(ctx, h.Proxy.URL) })
	defer wg.Wait()
	defer cancel()
	args := []string{"procedure", "run", "maintenance", "--yes", "--progress", "plain", "--reason", "backup taken by hand"}
	for _, input := range inputs {
		args = append(args, "-i", input)
	}
	var end outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		end = h.ctl(t, args...)
	}()
	defer func() { <-done }()
	id, hash := h.asking(t)
	// Who started it cannot approve it.
	if own := h.ctl(t, "run", "approve", id, "--plan", hash); own.code == 0 {
		t.Errorf("the initiator approved the run:\n%s", own.text)
	}
	if _, err := second.Ctl(t.Context(), "run", answer, id, "--plan", hash, "--reason", "seen"); err != nil {
		t.Errorf("%s: %v", answer, err)
		h.ctl(t, "run", "cancel", id, "--yes")
	}
	<-done
	h.pause(t, time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	return end, slices.Clone(w.seen)
}

// asking waits until the newest run asks people.
func (h *house) asking(t *testing.T) (id, hash string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), approveLimit)
	defer cancel()
	err := fleet.Poll(ctx, 100*time.Millisecond, "the run to ask people", func() (bool, error) {
		runs, err := fleet.Items[struct{ ID, State, PlanHash string }](ctx, h.Muster, "run", "list", "--active")
		if err != nil || len(runs) == 0 {
			return false, nil
		}
		shown := h.ctl(t, "run", "show", runs[0].ID)
		id, hash = runs[0].ID, runs[0].PlanHash
		return strings.Contains(shown.text, "asking"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id, hash
}

// ask asks the first instance of the backend, past the proxy.
func (h *house) ask(t *testing.T, path string) string {
	t.Helper()
	list, err := fleet.Items[struct {
		Expected  bool
		Host      string
		Container struct {
			Name  string
			State string
			Ports []struct{ HostPort int }
		}
	}](t.Context(), h.Muster, "service", "ps", "spheroseg/backend")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		for _, m := range h.Hosts {
			if i.Expected && m.Name == i.Host && len(i.Container.Ports) > 0 {
				return fetch(t, "http://"+net.JoinHostPort(m.Address, strconv.Itoa(i.Container.Ports[0].HostPort))+path)
			}
		}
	}
	t.Fatalf("no instance of the backend: %+v", list)
	return ""
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// whole checks that exactly the five instances are there, and run: no job is left.
func (h *house) whole(t *testing.T) {
	t.Helper()
	containers, err := h.Containers(t.Context(), spherosegLabel)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, c := range containers {
		if c.State == "running" && !strings.Contains(c.Name(), "job") {
			found = append(found, c.Name())
		} else {
			t.Errorf("%s is %s", c.Name(), c.State)
		}
	}
	if len(found) != 5 {
		t.Errorf("%d instances run, want 5: %v", len(found), found)
	}
}

func maintenance(t *testing.T, h *house, second *fleet.Muster) {
	mark := h.Witness.Mark()
	end, seen := h.window(t, second, "approve", "schema=2026-11")
	end.want(t, 0)
	t.Log(end.text)
	if want := []int{200, 503, 200}; !slices.Equal(seen, want) {
		t.Errorf("users saw %v, want %v", seen, want)
	}
	if notes := h.ask(t, "/migrations"); notes != "2026-11\n" {
		t.Errorf("migrations that ran: %q, want one", notes)
	}
	h.whole(t)
	restarted := h.Witness.Names(mark, "start", "spheroseg.")
	for service, want := range map[string]int{"backend": 2, "ml": 1, "frontend": 2} {
		n := 0
		for _, name := range restarted {
			if strings.HasPrefix(name, "spheroseg."+service+".") && !strings.Contains(name, "job") {
				n++
			}
		}
		if n != want {
			t.Errorf("%d instances of %s were started, want %d: %v", n, service, want, restarted)
		}
	}
	if history := h.ctl(t, "procedure", "history", "maintenance"); !strings.Contains(history.text, "succeeded") {
		t.Errorf("history: %s", history.text)
	}
}

// maintenanceAgain migrates to the schema that is there: the migration is spared, everything else is done.
func maintenanceAgain(t *testing.T, h *house, second *fleet.Muster) {
	mark := h.Witness.Mark()
	end, seen := h.window(t, second, "approve", "schema=2026-11", "services=ml")
	end.want(t, 0)
	if want := []int{200, 503, 200}; !slices.Equal(seen, want) {
		t.Errorf("users saw %v, want %v", seen, want)
	}
	if notes := h.ask(t, "/migrations"); notes != "2026-11\n" {
		t.Errorf("migrations that ran: %q, want the first one only", notes)
	}
	if started := h.Witness.Names(mark, "start", "spheroseg."); !slices.Equal(started, []string{"spheroseg.ml.1.r1"}) {
		t.Errorf("started: %v, want ml and nothing else", started)
	}
	h.whole(t)
}

func maintenanceFails(t *testing.T, h *house, second *fleet.Muster) {
	mark := h.Witness.Mark()
	end, seen := h.window(t, second, "approve", "schema=broken", "schema_before=2026-11")
	end.want(t, 1)
	if want := []int{200, 503, 200}; !slices.Equal(seen, want) {
		t.Errorf("users saw %v, want %v", seen, want)
	}
	if notes := h.ask(t, "/migrations"); notes != "2026-11\nbroken\n2026-11\n" {
		t.Errorf("migrations that ran: %q, want the failed one and the way back, once each", notes)
	}
	if schema := h.ask(t, "/schema"); schema != "2026-11" {
		t.Errorf("schema is %q, want the one before", schema)
	}
	h.whole(t)
	for _, name := range h.Witness.Names(mark, "start", "spheroseg.") {
		if !strings.Contains(name, "job") {
			t.Errorf("%s was started, and the migration before it had failed", name)
		}
	}
}

func maintenanceRejected(t *testing.T, h *house, second *fleet.Muster) {
	mark := h.Witness.Mark()
	end, seen := h.window(t, second, "reject", "schema=2027-01")
	end.want(t, 1)
	if want := []int{200}; !slices.Equal(seen, want) {
		t.Errorf("users saw %v, want %v: nobody had agreed", seen, want)
	}
	if started := h.Witness.Names(mark, "start", "spheroseg."); len(started) > 0 {
		t.Errorf("started after a no: %v", started)
	}
	if lock := h.ctl(t, "procedure", "plan", "maintenance", "-i", "schema=x"); lock.code != 0 {
		t.Error(fmt.Errorf("the run that was rejected left something in the way: %s", lock.text))
	}
}

// bounce is a procedure that is not stored: it stops and starts the frontend in waves, by the agents' own actions, and ends with a probe that fails if
// it is asked to.
const bounce = `api: procedure/v1
name: bounce
title: Stop and start the frontend
max_duration: 1h
inputs:
  open: {type: bool, default: true}
targets:
  frontend: {stack: spheroseg, service: frontend}
  edge: {labels: {zone: a}}
guard: {risk: disruptive, locks: [stack/spheroseg]}
steps:
  - id: stop
    on: frontend
    use: container.stop
    timeout: 30s
    rollout: {waves: [1]}
    verify: {use: container.inspect, expression: result.state == "exited"}
    verify_for: 10s
    undo: [{use: container.start, timeout: 1m}, {use: container.await_ready, timeout: 1m}]
  - {id: start, on: frontend, use: container.start, timeout: 1m}
  - {id: ready, on: frontend, use: container.await_ready}
  - {id: rest, wait: 1s}
  - id: probe
    on: edge
    use: probe.tcp
    with: {address: "${target.address}:8088"}
    verify: result.open == inputs.open
    verify_for: 2s
`

func procedureOfFile(t *testing.T, h *house, _ *fleet.Muster) {
	file := filepath.Join(t.TempDir(), "bounce.yaml")
	if err := os.WriteFile(file, []byte(bounce), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		open string
		code int
	}{{"true", 0}, {"false", 1}} {
		mark := h.Witness.Mark()
		end := h.ctl(t, "procedure", "run", file, "-i", "open="+part.open, "--yes", "--progress", "plain")
		end.want(t, part.code)
		if part.code == 1 && !strings.Contains(end.text, "not verified") {
			t.Errorf("the run does not say what did not hold:\n%s", end.text)
		}
		if stopped := h.Witness.Names(mark, "die", "spheroseg."); len(stopped) != 2 || !strings.HasPrefix(stopped[0], "spheroseg.frontend.1.") {
			t.Errorf("stopped: %v, want both of the frontend", stopped)
		}
		h.whole(t)
	}
}

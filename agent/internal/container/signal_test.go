package container_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// counter runs a container that writes down its signals, and returns what it has written.
func counter(t *testing.T, h *host, restart string) (name string, written func() string) {
	t.Helper()
	dir := t.TempDir()
	spec := server(t, h)
	spec.Command, spec.Restart = []string{"count"}, &agentv1.RestartPolicy{Name: restart}
	spec.Mounts = []*agentv1.Mount{{Type: "bind", Source: dir, Target: "/work"}}
	run(t, h, spec)
	return spec.GetName(), func() string {
		text, err := os.ReadFile(filepath.Join(dir, "signals"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(text)), " ")
	}
}

func eventually(t *testing.T, want string, got func() string) {
	t.Helper()
	for range 200 {
		if got() == want {
			return
		}
		pause(50 * time.Millisecond)
	}
	t.Fatalf("got %q, want %q", got(), want)
}

// TestSignalReachesTheProcessOnce: and the engine still starts a container again that fails after it got a signal.
func TestSignalReachesTheProcessOnce(t *testing.T) {
	h := newHost(t, container.Policy{})
	name, written := counter(t, h, "always")
	eventually(t, "ready", written)
	for _, signal := range []string{"SIGHUP", "hup", "SIGRTMIN+3"} {
		before := written()
		if err := h.Signal(t.Context(), name, signal); err != nil {
			t.Fatalf("%s: %v", signal, err)
		}
		number := map[bool]string{true: "37", false: "1"}[signal == "SIGRTMIN+3"]
		eventually(t, before+" "+number, written)
	}
	if err := h.Signal(t.Context(), name, "SIGUSR1"); err != nil { // it exits with 3.
		t.Fatal(err)
	}
	eventually(t, "ready 1 1 37 10 ready", written)
	if got, err := h.Inspect(t.Context(), name); err != nil || got.GetState() != "running" || got.GetRestarts() != 1 || !strings.HasPrefix(got.GetImage(), "sha256:") {
		t.Errorf("got %v, %v; want it running, restarted once", got, err)
	}
}

func TestSignalIsRefused(t *testing.T) {
	h, other := newHost(t, container.Policy{}), newHost(t, container.Policy{})
	name, written := counter(t, h, "no")
	eventually(t, "ready", written)
	wantFailure(t, h.Signal(t.Context(), name, "SIGHUPP"), invalid, true, `"SIGHUPP"`, "SIGHUP, SIGINT", "SIGRTMIN+N")
	wantFailure(t, h.Signal(t.Context(), name, "SIGRTMIN+31"), invalid, true, "SIGHUP")
	wantFailure(t, h.Signal(t.Context(), name, "1"), invalid, true, "SIGHUP")
	wantFailure(t, other.Signal(t.Context(), name, "SIGHUP"), agentv1.FailureReason_FAILURE_REASON_REFUSED, true, name)
	wantFailure(t, h.Signal(t.Context(), name+".none", "SIGHUP"), agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND, true, name)
	if err := h.lab.docker.ContainerPause(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, h.Signal(t.Context(), name, "SIGHUP"), exited, true, name, "paused")
	if err := h.lab.docker.ContainerUnpause(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Stop(t.Context(), name, time.Second); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, h.Signal(t.Context(), name, "SIGHUP"), exited, true, name, "exited")
	if got := written(); got != "ready" {
		t.Errorf("got %q, want no signal to have come", got)
	}
}

func TestInspect(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h, "STOP_CODE=7")
	healthcheck(spec)
	state := func() *agentv1.InspectContainerResponse {
		t.Helper()
		got, err := h.Inspect(t.Context(), spec.GetName())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := state(); got.GetState() != "gone" {
		t.Errorf("got %v for none, want gone", got)
	}
	if _, err := h.Create(t.Context(), "run/create/1", spec); err != nil {
		t.Fatal(err)
	}
	if got := state(); got.GetState() != "created" || got.GetHealthy() {
		t.Errorf("got %v, want created", got)
	}
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "running true", func() string {
		got := state()
		return got.GetState() + " " + map[bool]string{true: "true", false: "false"}[got.GetHealthy()]
	})
	if _, err := h.Stop(t.Context(), spec.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	if got := state(); got.GetState() != "exited" || got.GetHealthy() || got.GetExitCode() != 7 {
		t.Errorf("got %v, want exited with 7", got)
	}
}

package container_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dockercontainer "github.com/docker/docker/api/types/container"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestRemoveOfTheOwnRunOnly: a run that takes a creation back must not remove the container because of which it failed.
func TestRemoveOfTheOwnRunOnly(t *testing.T) {
	for _, tt := range []struct {
		name, creator, remover string
		stays                  bool
	}{
		{name: "of the run", creator: "run-1/web/create/1", remover: "run-1/undo/web/create/0/1"},
		{name: "of another run", creator: "run-1/web/create/1", remover: "run-2/undo/web/create/0/1", stays: true},
		{name: "of a run whose name begins alike", creator: "run-11/web/create/1", remover: "run-1/undo/web/create/0/1", stays: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec := server(t, h)
			spec.Configs = []*agentv1.ConfigFile{{Target: "/config", Content: []byte("content")}}
			if _, err := h.Create(t.Context(), tt.creator, spec); err != nil {
				t.Fatal(err)
			}
			if err := h.Start(t.Context(), spec.GetName()); err != nil {
				t.Fatal(err)
			}
			if err := h.Remove(t.Context(), tt.remover, spec.GetName(), true); err != nil {
				t.Fatal(err)
			}
			_, err := os.Stat(filepath.Join(h.secrets, spec.GetName(), "0"))
			all := list(t, h)
			if !tt.stays {
				if len(all) != 0 || err == nil {
					t.Errorf("got %v and its file (%v), want both gone", all, err)
				}
				return
			}
			if len(all) != 1 || all[0].GetState() != "running" || err != nil {
				t.Fatalf("got %v and its file: %v; want both as they were", all, err)
			}
			if err := h.Remove(t.Context(), tt.remover, spec.GetName(), false); err != nil {
				t.Fatal(err)
			}
			if all := list(t, h); len(all) != 0 {
				t.Errorf("got %v, want it gone without the condition", all)
			}
		})
	}
}

func TestRemoveOfTheOwnRunOnlyLeavesWhatIsNotMusters(t *testing.T) {
	h := newHost(t, container.Policy{})
	name := foreign(t, h)
	if err := h.Remove(t.Context(), "run-1/undo/web/create/0/1", name, true); err != nil {
		t.Errorf("got %v, want success: the run has nothing there to take back", err)
	}
	if _, err := h.lab.docker.ContainerInspect(t.Context(), name); err != nil {
		t.Errorf("got %v, want the container as it was", err)
	}
	if err := h.Remove(t.Context(), "run-1/undo/web/create/0/1", "t."+h.name+".none", true); err != nil {
		t.Errorf("got %v for a container that is not there, want success", err)
	}
	wantFailure(t, h.Remove(t.Context(), "run-1/web/remove/1", name, false), agentv1.FailureReason_FAILURE_REASON_REFUSED, true, name)
}

// foreign creates a container that is nobody's of Muster, and does not start it.
func foreign(t *testing.T, h *host) string {
	t.Helper()
	name := "t." + h.name + ".foreign"
	if _, err := h.lab.docker.ContainerCreate(t.Context(), &dockercontainer.Config{Image: testImage}, nil, nil, nil, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.lab.docker.ContainerRemove(context.Background(), name, dockercontainer.RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	return name
}

func TestCheckOfNames(t *testing.T) {
	h := newHost(t, container.Policy{})
	mine := server(t, h)
	run(t, h, mine)
	if _, err := h.Stop(t.Context(), mine.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	alive := server(t, h)
	alive.Name = "t." + h.name + ".alive"
	run(t, h, alive)
	other := foreign(t, h)
	for _, tt := range []struct {
		name, container string
		ports           []*agentv1.PortBinding
		replaced        []string
		texts           []string // nil: no problem.
	}{
		{name: "free", container: "t." + h.name + ".free"},
		{name: "of a run, stopped", container: mine.GetName(), texts: []string{"exited", "run/create/1", "musterctl run show run", "docker rm -f " + mine.GetName(), h.name}},
		{name: "of nobody, not started", container: other, texts: []string{"created", "Muster did not create", "docker rm -f " + other, "docker rename " + other}},
		{name: "of one that will be gone", container: mine.GetName(), replaced: []string{mine.GetName()}},
		{name: "with its port, is one problem", container: alive.GetName(), ports: alive.GetPorts(), texts: []string{"running", "docker rm -f " + alive.GetName()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := server(t, h)
			spec.Name = tt.container
			if tt.ports != nil {
				spec.Ports = tt.ports
			}
			got, err := h.Check(t.Context(), &agentv1.CheckContainersRequest{Specs: []*agentv1.ContainerSpec{spec}, Replaced: tt.replaced})
			if err != nil {
				t.Fatal(err)
			}
			if tt.texts == nil {
				if len(got) != 0 {
					t.Errorf("got %v, want no problem", got)
				}
				return
			}
			if len(got) != 1 || got[0].GetReason() != agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN || got[0].GetContainer() != tt.container {
				t.Fatalf("got %v, want that the name is taken", got)
			}
			for _, text := range tt.texts {
				if !strings.Contains(got[0].GetMessage(), text) {
					t.Errorf("got %q, want %q in it", got[0].GetMessage(), text)
				}
			}
		})
	}
}

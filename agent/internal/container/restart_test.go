package container_test

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// crash kills the engine's daemon and brings it back after a while.
func crash(t *testing.T, e *testEngine, away time.Duration) {
	t.Helper()
	e.kill(t)
	pause(away)
	e.relaunch(t)
}

// TestDaemonIsKilledDuringAwaitReady: the daemon comes back, stops the containers it finds and starts again those with a restart policy.
func TestDaemonIsKilledDuringAwaitReady(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart string
		reason  agentv1.FailureReason
	}{
		{name: "container comes back", restart: "always"},
		{name: "container stays down", restart: "no", reason: exited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec := server(t, h, "READY_AFTER=3s")
			spec.Restart = &agentv1.RestartPolicy{Name: tt.restart}
			run(t, h, spec)
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			var g errgroup.Group
			g.Go(func() error {
				_, err := h.AwaitReady(ctx, &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: healthz()})
				return err
			})
			pause(500 * time.Millisecond)
			crash(t, h.lab, time.Second)
			err := g.Wait()
			if tt.reason != 0 {
				wantFailure(t, err, tt.reason, true, spec.GetName())
				return
			}
			if err != nil {
				t.Fatalf("got %v, want ready after the daemon's restart", err)
			}
			if all := list(t, h); len(all) != 1 || all[0].GetState() != "running" {
				t.Errorf("got %v, want the one container running", all)
			}
		})
	}
}

func TestDaemonIsKilledDuringWatch(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h, "READY_AFTER=2s")
	spec.Restart = &agentv1.RestartPolicy{Name: "unless-stopped"}
	run(t, h, spec)
	ready(t, h, spec)
	var g errgroup.Group
	g.Go(func() error {
		_, err := h.Watch(t.Context(), &agentv1.WatchContainerRequest{Name: spec.GetName(), Window: durationpb.New(2 * time.Second), Gate: healthz()})
		return err
	})
	pause(300 * time.Millisecond)
	crash(t, h.lab, 500*time.Millisecond)
	if err := g.Wait(); err != nil {
		t.Errorf("got %v, want the watch to go on", err)
	}
	if got := get(t, url(spec, "/healthz")); got == "" {
		t.Error("the watch ended before the container was ready again")
	}
}

// TestDaemonIsAwayForEveryAction: each action waits for the daemon, has its effect once, and a stopped container stays stopped.
func TestDaemonIsAwayForEveryAction(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	spec.Networks = []*agentv1.NetworkAttachment{{Name: h.name}}
	spec.Restart = &agentv1.RestartPolicy{Name: "always"}
	away := func(what string, action func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		h.lab.kill(t)
		var g errgroup.Group
		g.Go(func() error { return action(ctx) })
		pause(200 * time.Millisecond)
		h.lab.relaunch(t)
		if err := g.Wait(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	away("pull", func(ctx context.Context) error {
		pulled, err := h.Pull(ctx, testImage)
		if pulled {
			t.Error("pulled an image that is here")
		}
		return err
	})
	away("create", func(ctx context.Context) error {
		_, err := h.Create(ctx, "run/create/1", spec)
		return err
	})
	crash(t, h.lab, 0)
	if all := list(t, h); len(all) != 1 || all[0].GetState() != "created" {
		t.Errorf("got %v, want the one container, not started: a restarted daemon must not start it", all)
	}
	away("start", func(ctx context.Context) error { return h.Start(ctx, spec.GetName()) })
	ready(t, h, spec)
	away("drain", func(ctx context.Context) error {
		_, err := h.Drain(ctx, &agentv1.DrainContainerRequest{Name: spec.GetName()})
		return err
	})
	away("stop", func(ctx context.Context) error {
		_, err := h.Stop(ctx, spec.GetName(), time.Second)
		return err
	})
	crash(t, h.lab, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if code, err := h.Stop(ctx, spec.GetName(), 0); err != nil {
		t.Errorf("got %d, %v", code, err)
	}
	if all := list(t, h); len(all) != 1 || all[0].GetState() != "exited" {
		t.Errorf("got %v, want the one container, still stopped: a restarted daemon must not start it", all)
	}
	away("remove", func(ctx context.Context) error { return h.Remove(ctx, "run/remove/1", spec.GetName(), false) })
	if all := list(t, h); len(all) != 0 {
		t.Errorf("got %v, want nothing", all)
	}
}

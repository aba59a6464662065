package container

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	watchInterval = 500 * time.Millisecond
	// probeEvery is the interval of the gate's probe within the window.
	probeEvery = time.Second
	// probeFailures in a row end the watch.
	probeFailures = 3
)

// Watch looks at the container for the window and fails at once when it exits, is restarted or turns unhealthy, or fails its gate three
// times in a row. A container that was stopped and started again because its engine was is watched on; the watch then lasts at least until
// its gate passes again.
func (e *Engine) Watch(ctx context.Context, req *agentv1.WatchContainerRequest) (*agentv1.WatchContainerResponse, error) {
	w := &watch{e: e, name: req.GetName(), gate: req.GetGate(), end: time.Now().Add(req.GetWindow().AsDuration())}
	if w.gate.GetProbe() == nil {
		w.gate = nil
	}
	for {
		if err := w.look(ctx); err != nil {
			return nil, err
		}
		if err := w.probe(ctx); err != nil {
			return nil, err
		}
		left := time.Until(w.end)
		if left <= 0 && !w.settling && w.failures == 0 {
			return &agentv1.WatchContainerResponse{Probes: uint32(w.probes)}, nil
		}
		pause := watchInterval
		if left > 0 {
			pause = min(pause, left)
		}
		if !wait(ctx, pause) {
			return nil, fmt.Errorf("watch container %q: %w", w.name, ctx.Err())
		}
	}
}

// watch is one window.
type watch struct {
	e    *Engine
	name string
	gate *agentv1.Gate // nil if only the engine is asked.
	end  time.Time

	prober   *prober
	base     container.InspectResponse // what the container must stay.
	started  bool                      // base is set.
	settling bool                      // the engine started the container again: its gate has not passed since.
	probed   time.Time
	probes   int
	failures int // of the probe, in a row.
	last     answer
}

func (w *watch) look(ctx context.Context) error {
	found, outage, err := w.e.look(ctx, w.name)
	if err != nil {
		return err
	}
	if why := stopped(found); why != "" {
		return w.e.exited(ctx, found, why)
	}
	if h := found.State.Health; h != nil && h.Status == container.Unhealthy {
		return w.unhealthy(ctx, found, h)
	}
	switch {
	case !w.started:
	case sameRun(w.base, found):
		if outage > 0 { // the engine's port proxies were away with it.
			w.failures = 0
		}
		return nil
	case outage == 0:
		return w.e.exited(ctx, found, fmt.Sprintf("was restarted while it was watched (its last run ended with code %d)", found.State.ExitCode))
	default:
		w.e.log.Info("container was restarted with its engine, watching on", "container", w.name)
		w.settling, w.failures = w.gate != nil, 0
	}
	w.base, w.started = found, true
	if w.gate != nil {
		w.prober, err = w.e.newProber(found, w.gate)
	}
	return err
}

func sameRun(a, b container.InspectResponse) bool {
	return a.ID == b.ID && a.State.StartedAt == b.State.StartedAt && a.RestartCount == b.RestartCount && a.State.Pid == b.State.Pid
}

func (w *watch) probe(ctx context.Context) error {
	if w.prober == nil || time.Since(w.probed) < probeEvery {
		return nil
	}
	w.probed = time.Now()
	a, err := w.prober.probe(ctx)
	if err != nil || ctx.Err() != nil { // the engine did not answer, or the caller has gone: the next look tells.
		return nil
	}
	w.probes, w.last = w.probes+1, a
	if a.ok {
		w.settling, w.failures = false, 0
		return nil
	}
	if w.settling {
		deadline := defaultDeadline
		if d := w.gate.GetDeadline().AsDuration(); d > 0 {
			deadline = d
		}
		if time.Since(parseTime(w.base.State.StartedAt)) < deadline {
			return nil
		}
	}
	if w.failures++; w.failures < probeFailures {
		return nil
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NOT_READY, true, "container %q failed its gate %d times in a row while it was watched: %s",
		w.name, w.failures, a.seen).WithEvidence(strings.TrimSpace(a.detail) + "\n" + w.e.logTail(ctx, w.base))
}

func (w *watch) unhealthy(ctx context.Context, c container.InspectResponse, h *container.Health) error {
	detail := ""
	if n := len(h.Log); n > 0 {
		detail = fmt.Sprintf("check exited with %d: %s\n", h.Log[n-1].ExitCode, strings.TrimSpace(h.Log[n-1].Output))
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NOT_READY, true, "container %q turned unhealthy (%d failed checks in a row)",
		w.name, h.FailingStreak).WithEvidence(detail + w.e.logTail(ctx, c))
}

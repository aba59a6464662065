package container

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	defaultConsecutive = 3
	defaultDeadline    = 5 * time.Minute
	// lookInterval is how often the engine is asked whether the container still runs while its own port is probed.
	lookInterval = 200 * time.Millisecond
	// restartGrace is what an engine that comes back gets to start its containers again by their restart policy.
	restartGrace  = 10 * time.Second
	evidenceLines = 20
)

// AwaitReady probes the container until its gate passes. It fails at once when the container stops running, and when the gate has not
// passed by the deadline, counted from the container's start. The time in which the engine does not answer does not count.
func (e *Engine) AwaitReady(ctx context.Context, req *agentv1.AwaitReadyRequest) (*agentv1.AwaitReadyResponse, error) {
	r := &readiness{e: e, name: req.GetName(), gate: req.GetGate(), began: time.Now(), need: defaultConsecutive, deadline: defaultDeadline}
	if n := r.gate.GetConsecutive(); n > 0 {
		r.need = int(n)
	}
	if r.gate.GetHealth() != nil {
		r.need = 1 // the engine counts retries of its own.
	}
	if d := r.gate.GetDeadline().AsDuration(); d > 0 {
		r.deadline = d
	}
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	for {
		ready, err := r.step(ctx)
		if err != nil {
			return nil, err
		}
		if ready {
			return &agentv1.AwaitReadyResponse{Probes: uint32(r.probes), Waited: durationpb.New(time.Since(r.began))}, nil
		}
		if !wait(ctx, r.interval()) {
			return nil, fmt.Errorf("container %q is not ready: %w; %s after %d probes", r.name, ctx.Err(), r.last.seen, r.probes)
		}
	}
}

// readiness is one wait for a gate.
type readiness struct {
	e        *Engine
	name     string
	gate     *agentv1.Gate
	began    time.Time
	need     int
	deadline time.Duration

	prober   *prober
	current  container.InspectResponse
	started  time.Time     // of the run that is probed.
	looked   time.Time     // when current was read.
	outage   time.Duration // of the engine, in this run.
	restarts int           // that count for nothing: a manual start sets the engine's counter to 0, a restarted engine need not.
	probes   int
	passes   int // in a row.
	last     answer
}

// step sends one probe, and says whether the gate has passed.
func (r *readiness) step(ctx context.Context) (bool, error) {
	if time.Since(r.looked) >= lookInterval {
		if err := r.look(ctx); err != nil {
			return false, err
		}
	}
	a, err := r.prober.probe(ctx)
	if err != nil { // the engine had to be asked: find out when it answers again.
		r.passes = 0
		return false, r.look(ctx)
	}
	if ctx.Err() != nil {
		return false, nil
	}
	r.probes, r.last = r.probes+1, a
	if !a.ok {
		r.passes = 0
		if a.final || time.Since(r.started) > r.deadline+r.outage {
			return false, r.notReady(ctx)
		}
		return false, nil
	}
	if r.passes++; r.passes < r.need {
		return false, nil
	}
	// Who answered must have been this run of this container.
	probed := r.started
	if err := r.look(ctx); err != nil {
		return false, err
	}
	return r.started.Equal(probed) && r.passes >= r.need, nil
}

// look reads the container's state and fails if it does not run. A container that was stopped and started again because its engine was
// is followed, with a new deadline.
func (r *readiness) look(ctx context.Context) error {
	found, outage, err := r.e.look(ctx, r.name)
	if err != nil {
		return err
	}
	if why := stopped(found); why != "" {
		return r.e.exited(ctx, found, why)
	}
	if outage > 0 {
		r.restarts = found.RestartCount
	}
	if found.RestartCount > r.restarts {
		return r.e.exited(ctx, found, fmt.Sprintf("exited and was restarted by the engine (%d times)", found.RestartCount-r.restarts))
	}
	r.current, r.looked = found, time.Now()
	r.outage += outage
	if started := parseTime(found.State.StartedAt); r.prober == nil || !started.Equal(r.started) {
		if r.prober != nil {
			r.outage, r.passes = 0, 0
		}
		r.started = started
		if r.prober, err = r.e.newProber(found, r.gate); err != nil {
			return err
		}
	} else if outage > 0 {
		r.passes = 0
	}
	return nil
}

func (r *readiness) interval() time.Duration {
	if d := r.gate.GetInterval().AsDuration(); d > 0 {
		return d
	}
	switch r.gate.GetProbe().(type) {
	case *agentv1.Gate_Exec:
		return 500 * time.Millisecond
	case *agentv1.Gate_Health:
		return 100 * time.Millisecond // a look at the engine, not a probe: that has its own interval.
	}
	if r.passes > 0 || time.Since(r.began) < time.Second {
		return 15 * time.Millisecond
	}
	return 50 * time.Millisecond
}

func (r *readiness) notReady(ctx context.Context) error {
	evidence := r.last.detail
	if evidence != "" {
		evidence = "last answer: " + strings.TrimSpace(evidence) + "\n"
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NOT_READY, true, "container %q is not ready: %s after %d probes in %s",
		r.name, r.last.seen, r.probes, round(time.Since(r.began))).WithEvidence(evidence + r.e.logTail(ctx, r.current))
}

// look is inspect that gives an engine which just came back the time to start the container again, if its restart policy says so.
func (e *Engine) look(ctx context.Context, name string) (container.InspectResponse, time.Duration, error) {
	found, outage, err := e.inspect(ctx, name)
	if err != nil || outage == 0 {
		return found, outage, err
	}
	for until := time.Now().Add(restartGrace); time.Now().Before(until) && stopped(found) != "" && restarts(found); {
		if !wait(ctx, 100*time.Millisecond) {
			return found, outage, fmt.Errorf("wait until the engine restarts container %q: %w", name, ctx.Err())
		}
		var more time.Duration
		if found, more, err = e.inspect(ctx, name); err != nil {
			return found, outage, err
		}
		if outage += more; more > 0 {
			until = time.Now().Add(restartGrace)
		}
	}
	return found, outage, nil
}

func restarts(c container.InspectResponse) bool {
	p := c.HostConfig.RestartPolicy
	return !p.IsNone() && !(p.IsOnFailure() && c.State.ExitCode == 0 && !c.State.Restarting)
}

// stopped says why the container does not count as running; "" if it does.
func stopped(c container.InspectResponse) string {
	s := c.State
	switch {
	case s.OOMKilled && s.Running:
		return "ran out of memory: the kernel killed one of its processes"
	case s.Restarting:
		return fmt.Sprintf("exited with code %d%s and is being restarted by the engine", s.ExitCode, outOfMemory(s))
	case s.Running:
		return ""
	case s.Status == container.StateCreated && s.Error != "":
		return "was not started: " + firstLine(s.Error)
	case s.Status == container.StateCreated:
		return "was not started"
	}
	why := fmt.Sprintf("exited with code %d%s", s.ExitCode, outOfMemory(s))
	if started, finished := parseTime(s.StartedAt), parseTime(s.FinishedAt); finished.After(started) {
		why += fmt.Sprintf(" %s after its start", round(finished.Sub(started)))
	}
	return why
}

func outOfMemory(s *container.State) string {
	if s.OOMKilled {
		return " (out of memory)"
	}
	return ""
}

func (e *Engine) exited(ctx context.Context, c container.InspectResponse, why string) error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_CONTAINER_EXITED, true, "container %q %s", strings.TrimPrefix(c.Name, "/"), why).
		WithEvidence(e.logTail(ctx, c))
}

// logTail returns the end of the container's log; "" if its driver cannot be read.
func (e *Engine) logTail(ctx context.Context, c container.InspectResponse) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	logs, err := e.docker.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(evidenceLines)})
	if err != nil {
		return ""
	}
	defer logs.Close()
	var text bytes.Buffer
	out := &limited{w: &text, left: 1 << 20}
	if c.Config != nil && c.Config.Tty {
		_, err = io.Copy(out, logs)
	} else {
		_, err = stdcopy.StdCopy(out, out, logs)
	}
	if err != nil && text.Len() == 0 {
		return ""
	}
	return text.String()
}

// round keeps three figures or so: nobody reads more.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < time.Minute:
		return d.Round(100 * time.Millisecond)
	default:
		return d.Round(time.Second)
	}
}

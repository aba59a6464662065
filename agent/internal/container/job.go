package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// labelJob tells the containers of jobs from others.
const labelJob = "muster.job"

const (
	// maxOutput is what the contract allows in RunJobResponse.output.
	maxOutput = 2048
	// outputLines of a job's log are read for it.
	outputLines = "200"
	// adoptPatience is how long a job that an agent created which died is looked at before it is started: the start that this agent sent may be
	// with the engine.
	adoptPatience = 2 * time.Second
	// stopPatience is how long the stop of a job that took too long may take, besides the container's own grace.
	stopPatience = 10 * time.Second
	defaultGrace = 10 * time.Second
	// killedCode is the exit code of a process that got SIGKILL. The engine is given starvedPatience to say that the kernel sent it.
	killedCode      = 128 + 9
	starvedPatience = 500 * time.Millisecond
)

// RunJob runs the container of spec to its end. The container bears the id of the operation, and stays: so an attempt whose outcome was lost,
// with its agent, is found and not performed again, whether its job runs or has ended. A later attempt of the same step removes the
// container, which it stops if it still runs, and runs the job anew. It does not wait for the earlier one: a container's label cannot be
// changed, so nobody could tell later which of the two its end belongs to. The container of a job of another run is replaced once it has ended:
// a run that fails leaves its jobs behind as evidence, and the next one must not fail because of that.
//
// A job that has not ended by the deadline of ctx is stopped. When ctx is cancelled the job goes on. A job of which nobody can tell whether it did
// its work, because the engine died in the wrong moment, is INTERRUPTED.
func (e *Engine) RunJob(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (*agentv1.RunJobResponse, error) {
	name := spec.GetName()
	if restart := spec.GetRestart().GetName(); restart != "" && restart != string(container.RestartPolicyDisabled) {
		return nil, invalid(`job %q: restart policy %q would run it again; use "no"`, name, restart)
	}
	if err := validate(spec); err != nil {
		return nil, err
	}
	if err := e.policy.admit(spec, e.guarded()); err != nil {
		return nil, err
	}
	spec = proto.CloneOf(spec)
	if spec.Labels == nil {
		spec.Labels = make(map[string]string)
	}
	spec.Labels[labelJob] = "true"
	j := &job{e: e, name: name, operation: operationID, spec: spec}
	if deadline, ok := ctx.Deadline(); ok {
		j.limit = time.Until(deadline)
	}
	if err := j.place(ctx); err != nil {
		return nil, err
	}
	switch err := j.start(ctx); {
	case errors.Is(ctx.Err(), context.DeadlineExceeded): // the engine may have the start.
		return j.overdue(ctx)
	case err != nil:
		return nil, err
	}
	return j.await(ctx)
}

// job is one run of a container to its end.
type job struct {
	e         *Engine
	name      string
	operation string
	spec      *agentv1.ContainerSpec
	limit     time.Duration // 0 if the job may take any time.

	id      string
	adopted bool // the container was there: an earlier agent created it, and may have started it.
	away    bool // the engine did not answer for a while since the start.
}

// place finds the container of this attempt or creates it.
func (j *job) place(ctx context.Context) error {
	unlock, err := j.e.names.lock(ctx, j.name)
	if err != nil {
		return err
	}
	defer unlock()
	for range 3 {
		if err := j.find(ctx); err != nil || j.id != "" {
			return err
		}
		id, err := j.e.create(ctx, j.operation, j.spec)
		if err == nil {
			j.id = id
			return nil
		}
		if !cerrdefs.IsConflict(err) {
			return err
		}
		// Somebody else has the name, or the engine went away after it had created the container: the next look tells.
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, false, "the name of job %q is taken and set free again and again", j.name)
}

// find looks for the container of this attempt, and removes that of an earlier one. Without an id afterwards, the name is free.
func (j *job) find(ctx context.Context) error {
	found, _, err := j.e.inspect(ctx, j.name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	owner := found.Config.Labels[labelOperation]
	if found.Config.Labels[labelHost] != j.e.name || !j.replaces(owner, found) {
		return j.e.nameTaken(j.name, found.State.Status, owner, found.Config.Image)
	}
	if owner == j.operation && found.State.Status != container.StateRemoving && found.State.Status != container.StateDead {
		if found.State.Status == container.StateCreated {
			if err := j.e.connect(ctx, j.spec, found); err != nil {
				return err
			}
		}
		j.id, j.adopted = found.ID, true
		j.e.log.Info("job of this attempt found", "container", j.name, "operation", j.operation, "state", found.State.Status)
		return nil
	}
	j.e.log.Info("job of before is removed", "container", j.name, "operation", j.operation, "created_by", owner, "state", found.State.Status)
	if found.State.Running {
		if err := j.e.stop(ctx, found.ID, 0); err != nil {
			return j.e.failure(ctx, err, "stop job %q of an earlier attempt", j.name)
		}
	}
	return j.e.remove(ctx, found.ID)
}

// replaces says that the container is this job's, of this attempt or an earlier one, or what is left of a job of another run.
func (j *job) replaces(owner string, c container.InspectResponse) bool {
	if sameStep(owner, j.operation) {
		return attemptOf(owner) <= attemptOf(j.operation)
	}
	return runOf(owner) != runOf(j.operation) && c.Config.Labels[labelJob] != "" && !c.State.Running && c.State.Status != container.StateCreated
}

// attemptOf is the last part of run/step/attempt.
func attemptOf(operationID string) uint64 {
	n, err := strconv.ParseUint(operationID[strings.LastIndexByte(operationID, '/')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// start starts the container unless it was started before. It never sends a second start after one whose answer was lost: the job would
// run twice if it had ended by then.
func (j *job) start(ctx context.Context) error {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		found, err := j.unstarted(ctx)
		if err != nil || found == nil {
			return err
		}
		err = j.e.docker.ContainerStart(ctx, j.id, container.StartOptions{})
		switch {
		case err == nil:
			return nil
		case notSent(err):
			if !wait(ctx, delay) {
				return fmt.Errorf("start job %q: %w: %s", j.name, ctx.Err(), engineText(err))
			}
			continue
		case ctx.Err() != nil:
			return fmt.Errorf("start job %q: %w", j.name, ctx.Err())
		case !unreachable(ctx, err):
			return j.e.startFailure(ctx, err, *found)
		}
		j.away = true
		if found, err = j.unstarted(ctx); err != nil || found == nil {
			return err
		}
		return j.unknown("docker engine went away while it started it, and does not know of a start: whether it ran for a moment is not known")
	}
}

// notSent says that a request did not reach the engine. The client's own IsErrConnectionFailed says so of connections too that broke off after
// the request, and the client drops the cause of a dial that failed.
func notSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || strings.HasPrefix(err.Error(), "Cannot connect to the Docker daemon")
}

// unstarted returns the container if it was never started, and nil if it was.
func (j *job) unstarted(ctx context.Context) (*container.InspectResponse, error) {
	until := time.Now()
	if j.adopted || j.away {
		until = until.Add(adoptPatience)
	}
	for {
		found, _, err := j.e.inspect(ctx, j.id)
		if err != nil {
			return nil, err
		}
		if found.State.Status != container.StateCreated {
			return nil, nil
		}
		if !time.Now().Before(until) {
			j.adopted = false
			return &found, nil
		}
		if !wait(ctx, 100*time.Millisecond) {
			return nil, fmt.Errorf("start job %q: %w", j.name, ctx.Err())
		}
	}
}

// await returns how the job ended, or stops it at its deadline. That counts from the container's start, so that another agent does not give the
// job its time anew.
func (j *job) await(ctx context.Context) (*agentv1.RunJobResponse, error) {
	found, outage, err := j.e.inspect(ctx, j.id)
	if err != nil {
		return nil, err
	}
	j.away = j.away || outage > 0
	limited := ctx
	if started := parseTime(found.State.StartedAt); j.limit > 0 && !started.IsZero() {
		var cancel context.CancelFunc
		limited, cancel = context.WithDeadline(ctx, started.Add(j.limit))
		defer cancel()
	}
	for found.State.Running {
		outage, err := j.e.reach(limited, 0, j.ended)
		j.away = j.away || outage > 0
		switch {
		case cerrdefs.IsNotFound(err):
			return nil, j.lost()
		case errors.Is(limited.Err(), context.DeadlineExceeded):
			return j.overdue(ctx)
		case err != nil:
			return nil, j.e.failure(ctx, err, "wait for the end of job %q", j.name)
		}
		found, outage, err = j.e.inspect(ctx, j.id)
		j.away = j.away || outage > 0
		if notFound(err) {
			return nil, j.lost()
		}
		if err != nil {
			return nil, err
		}
	}
	return j.result(ctx, found)
}

// ended returns when the container does not run.
func (j *job) ended(ctx context.Context) error {
	done, failed := j.e.docker.ContainerWait(ctx, j.id, container.WaitConditionNotRunning)
	select {
	case <-done:
		return nil
	case err := <-failed:
		return err
	}
}

// unknown is for a job of which nobody can tell whether it did its work. What that means is the step's to say.
func (j *job) unknown(why string) *rpcerr.OperationError {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, false, "job %q of host %s: %s", j.name, j.e.name, why)
}

// lost is for a job whose container somebody removed.
func (j *job) lost() error {
	return j.unknown("its container was removed before it was seen to end")
}

// overdue stops the job. One that has ended in the meantime did so in time.
func (j *job) overdue(ctx context.Context) (*agentv1.RunJobResponse, error) {
	grace := defaultGrace
	if g := j.spec.GetStopGrace(); g != nil {
		grace = g.AsDuration()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+stopPatience)
	defer cancel()
	timeout := func(format string, args ...any) *rpcerr.OperationError {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_TIMEOUT, false, "job %q did not end within %s, "+format, append([]any{j.name, round(j.limit)}, args...)...)
	}
	j.adopted = true
	unstarted, err := j.unstarted(ctx)
	if unstarted != nil {
		return nil, timeout("and was not started by then")
	}
	var found container.InspectResponse
	if err == nil {
		found, _, err = j.e.inspect(ctx, j.id)
	}
	if err == nil && !found.State.Running {
		return j.result(ctx, found)
	}
	if err == nil {
		err = j.e.stop(ctx, j.id, 0)
	}
	if err != nil {
		return nil, timeout("and may still run: it could not be stopped: %s", engineText(err))
	}
	return nil, timeout("and was stopped").WithEvidence(j.output(ctx, found))
}

// result is what the end of the container means.
func (j *job) result(ctx context.Context, c container.InspectResponse) (*agentv1.RunJobResponse, error) {
	s := c.State
	output := j.output(ctx, c)
	told, starved := j.history(ctx, c)
	s.OOMKilled = s.OOMKilled || starved
	fail := func(permanent bool, format string, args ...any) error {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_JOB_FAILED, permanent, "job %q "+format, append([]any{j.name}, args...)...).WithEvidence(output)
	}
	switch {
	case parseTime(s.FinishedAt).IsZero(): // the engine invents an exit code for a container that was gone when it came back.
		return nil, j.unknown("it does not run any more, and docker engine does not know how it ended").WithEvidence(output)
	case told:
		return nil, fail(false, "%s, because it was told to stop: by docker engine when that was started again, or by hand", stopped(c))
	case s.ExitCode != 0 && j.away && !s.OOMKilled:
		return nil, fail(false, "%s; docker engine was away meanwhile, and may have stopped it", stopped(c))
	case s.ExitCode != 0:
		return nil, fail(true, "%s", stopped(c))
	}
	if s.OOMKilled {
		j.e.log.Warn("the kernel killed a process of a job that ended well, for want of memory", "container", j.name, "operation", j.operation)
	}
	return &agentv1.RunJobResponse{ExitCode: int32(s.ExitCode), Output: output}, nil
}

// history says what the engine remembers of the container's end: that it sent it a signal which ends things, because a job that ends well on SIGTERM
// has not done its work; and that the kernel killed it for want of memory, which the engine may hear of too late for the container's state. It
// remembers some hundreds of events, and none of before its own start.
func (j *job) history(ctx context.Context, c container.InspectResponse) (told, starved bool) {
	ends := []string{"2", "3", "9", "15"}
	if own, err := signalNumber(c.Config.StopSignal); err == nil {
		ends = append(ends, strconv.Itoa(int(own)))
	}
	until := time.Now()
	if c.State.ExitCode == killedCode && !c.State.OOMKilled {
		until = until.Add(starvedPatience)
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	stream, failed := j.e.docker.Events(ctx, events.ListOptions{
		Since: unixTime(parseTime(c.State.StartedAt)), Until: unixTime(until),
		Filters: filters.NewArgs(filters.Arg("container", c.ID), filters.Arg("event", string(events.ActionKill)), filters.Arg("event", string(events.ActionOOM))),
	})
	for {
		select {
		case event := <-stream:
			starved = starved || event.Action == events.ActionOOM
			told = told || slices.Contains(ends, event.Actor.Attributes["signal"])
		case err := <-failed:
			if err != nil && !errors.Is(err, io.EOF) {
				j.e.log.Warn("events of a job were not read: whether it was told to stop is not known", "container", j.name, "err", err)
			}
			return told, starved
		}
	}
}

func unixTime(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// output is the end of what the job wrote; "" if its log driver cannot be read.
func (j *job) output(ctx context.Context, c container.InspectResponse) string {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	logs, err := j.e.docker.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: outputLines})
	if err != nil {
		j.e.log.Warn("output of a job was not read", "container", j.name, "err", err)
		return ""
	}
	defer logs.Close()
	end := &tail{most: maxOutput}
	if c.Config != nil && c.Config.Tty {
		_, err = io.Copy(end, logs)
	} else {
		_, err = stdcopy.StdCopy(end, end, logs)
	}
	if err != nil {
		j.e.log.Warn("output of a job was not read to its end", "container", j.name, "err", err)
	}
	return end.String()
}

// tail keeps the last bytes that are written to it.
type tail struct {
	kept bytes.Buffer
	most int
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	if over := t.kept.Len() + len(p) - 2*t.most; over > 0 { // twice as much is kept, so that a text of invalid bytes has an end too.
		t.kept.Next(over)
	}
	return t.kept.Write(p[max(0, len(p)-2*t.most):])
}

// String returns the end as valid UTF-8, at most as many bytes as are to be kept.
func (t *tail) String() string {
	text := strings.ToValidUTF8(t.kept.String(), "?")
	if over := len(text) - t.most; over > 0 {
		text = text[over:]
		for len(text) > 0 && !utf8.RuneStart(text[0]) {
			text = text[1:]
		}
	}
	return text
}

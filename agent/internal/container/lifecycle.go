package container

import (
	"context"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Start starts a container. One that runs is left alone.
func (e *Engine) Start(ctx context.Context, name string) error {
	unlock, err := e.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	found, err := e.owned(ctx, name)
	if err != nil {
		return err
	}
	if err := e.setRestart(ctx, found, restartOf(found.Config.Labels[labelRestart])); err != nil {
		return err
	}
	if found.State.Running && !found.State.Restarting {
		return nil
	}
	err = e.call(ctx, 0, func(ctx context.Context) error {
		return e.docker.ContainerStart(ctx, found.ID, container.StartOptions{})
	})
	if err == nil {
		return nil
	}
	failure := e.startFailure(ctx, err, found)
	if err := e.setRestart(ctx, found, noRestart); err != nil { // or a restarted engine would try again by itself.
		e.log.Warn("a container that did not start keeps its restart policy", "container", name, "err", err)
	}
	return failure
}

func (e *Engine) startFailure(ctx context.Context, err error, found container.InspectResponse) error {
	c := describe(found)
	if found.HostConfig != nil {
		if target := e.lostFiles(found.HostConfig.Mounts); target != "" {
			return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true,
				"start container %q: its file %s is gone, as after a restart of the host; create the container anew", c.GetName(), target)
		}
	}
	if p, ok := takenPort(err.Error()); ok {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true,
			"start container %q: port %s of host %s is taken%s; free it, or give the service another port", c.GetName(), p, e.name, e.holder(ctx, p, c.GetId()))
	}
	if badCommand(err.Error()) {
		return invalid("start container %q: %s", c.GetName(), engineText(err))
	}
	if cerrdefs.IsNotFound(err) && e.gone(ctx, c.GetName()) {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND, true, "host %s has no container %q", e.name, c.GetName())
	}
	return e.failure(ctx, err, "start container %q", c.GetName())
}

// gone tells a missing container from something else that is missing, such as one of its networks.
func (e *Engine) gone(ctx context.Context, name string) bool {
	_, _, err := e.inspect(ctx, name)
	return notFound(err)
}

// Stop stops a container and returns its exit code. grace 0 means the container's own. One that does not run is left alone.
func (e *Engine) Stop(ctx context.Context, name string, grace time.Duration) (int32, error) {
	unlock, err := e.names.lock(ctx, name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	found, err := e.owned(ctx, name)
	if notFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	// An engine that is restarted between the stop and the end of the policy starts the container again: then all of it is repeated.
	for range 6 {
		switch {
		case found.State.Running:
			if err := e.stop(ctx, found.ID, grace); err != nil {
				return 0, e.failure(ctx, err, "stop container %q", name)
			}
		case found.HostConfig.RestartPolicy.IsNone():
			return int32(found.State.ExitCode), nil
		default:
			if err := e.setRestart(ctx, found, noRestart); err != nil {
				return 0, err
			}
		}
		found, _, err = e.inspect(ctx, found.ID)
		if notFound(err) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false,
		"container %q runs again after its stop (started at %s): something else on host %s starts it", name, found.State.StartedAt, e.name)
}

func (e *Engine) stop(ctx context.Context, id string, grace time.Duration) error {
	opts := container.StopOptions{}
	if grace > 0 {
		seconds := wholeSeconds(grace)
		opts.Timeout = &seconds
	}
	err := e.call(ctx, 0, func(ctx context.Context) error { return e.docker.ContainerStop(ctx, id, opts) })
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Remove removes a container, its anonymous volumes, and its files. One that runs is stopped first; one that is gone is left alone. With
// ownRunOnly, so is one that the run of the operation did not create: what takes a creation back that never happened must not hit what was
// in its way.
func (e *Engine) Remove(ctx context.Context, operationID, name string, ownRunOnly bool) error {
	unlock, err := e.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if ownRunOnly {
		foreign, err := e.foreign(ctx, operationID, name)
		if foreign || err != nil {
			return err
		}
	}
	found, err := e.owned(ctx, name)
	if err != nil && !notFound(err) {
		return err
	}
	if err == nil {
		if found.State.Running {
			if err := e.stop(ctx, found.ID, 0); err != nil {
				return e.failure(ctx, err, "stop container %q", name)
			}
		}
		if err := e.remove(ctx, found.ID); err != nil {
			return err
		}
	}
	if err := e.removeFiles(name); err != nil {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "%s", err)
	}
	return nil
}

// foreign says that there is a container which another run than the operation's created, or nobody of Muster's.
func (e *Engine) foreign(ctx context.Context, operationID, name string) (bool, error) {
	found, _, err := e.inspect(ctx, name)
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	owner := found.Config.Labels[labelOperation]
	if run := runOf(owner); run != "" && run == runOf(operationID) && found.Config.Labels[labelHost] == e.name {
		return false, nil
	}
	e.log.Info("container is not the run's own and stays", "container", name, "operation", operationID, "created_by", owner)
	return true, nil
}

// runOf is the run that an operation belongs to: ids are run/step/attempt.
func runOf(operationID string) string {
	run, _, _ := strings.Cut(operationID, "/")
	return run
}

// remove returns when the engine has the container no longer. A removal that another request began is awaited.
func (e *Engine) remove(ctx context.Context, id string) error {
	for {
		err := e.call(ctx, 0, func(ctx context.Context) error {
			return e.docker.ContainerRemove(ctx, id, container.RemoveOptions{RemoveVolumes: true, Force: true})
		})
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		if err != nil && !cerrdefs.IsConflict(err) {
			return e.failure(ctx, err, "remove container %q", id)
		}
		if e.gone(ctx, id) {
			return nil
		}
		if !wait(ctx, 100*time.Millisecond) {
			return e.failure(ctx, ctx.Err(), "remove container %q", id)
		}
	}
}

package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Create creates the container of spec with what it needs: networks, folders, files. It does not start it. The container's name makes
// creation happen at most once; one that an attempt of the same step left behind is completed and adopted.
func (e *Engine) Create(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (string, error) {
	if err := validate(spec); err != nil {
		return "", err
	}
	if err := e.policy.admit(spec, e.guarded()); err != nil {
		return "", err
	}
	unlock, err := e.names.lock(ctx, spec.GetName())
	if err != nil {
		return "", err
	}
	defer unlock()
	// A second round only follows a conflict with somebody who is not this agent; the third would be a fight.
	for round := range 3 {
		id, err := e.adopt(ctx, operationID, spec)
		if err != nil && round > 0 {
			e.discardFiles(spec.GetName()) // of the round before; the container is not ours.
		}
		if err != nil || id != "" {
			return id, err
		}
		id, err = e.create(ctx, operationID, spec)
		if !cerrdefs.IsConflict(err) {
			return id, err
		}
	}
	return "", rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, false, "the name of container %q is taken and set free again and again", spec.GetName())
}

// adopt returns the id of the container if an earlier attempt of the same step created it, "" if there is none, and a failure if it is
// somebody else's.
func (e *Engine) adopt(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (string, error) {
	name := spec.GetName()
	for {
		found, _, err := e.inspect(ctx, name)
		if notFound(err) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if found.State.Status == container.StateRemoving {
			if !wait(ctx, 100*time.Millisecond) {
				return "", e.failure(ctx, ctx.Err(), "wait until the old container %q is removed", name)
			}
			continue
		}
		owner, host := found.Config.Labels[labelOperation], found.Config.Labels[labelHost]
		if host != e.name || !sameStep(owner, operationID) {
			return "", e.nameTaken(name, found.State.Status, owner, found.Config.Image)
		}
		if found.State.Status == container.StateDead {
			if err := e.remove(ctx, found.ID); err != nil {
				return "", err
			}
			continue
		}
		if err := e.connect(ctx, spec, found); err != nil {
			return "", err
		}
		e.log.Info("container of an earlier attempt adopted", "container", name, "operation", operationID, "created_by", owner)
		return found.ID, nil
	}
}

func (e *Engine) nameTaken(name, state, owner, image string) error {
	whose := "which Muster did not create"
	if owner != "" {
		whose = fmt.Sprintf("created by operation %s, see musterctl run show %s", owner, runOf(owner))
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true,
		"a container %q exists on host %s (%s, %s, image %s): remove it there (docker rm -f %s) or rename it (docker rename %s %s.old), then try again",
		name, e.name, state, whose, image, name, name, name)
}

// sameStep says that two operations are attempts of one step: their ids run/step/attempt differ at most in the attempt.
func sameStep(a, b string) bool {
	if a == b {
		return a != ""
	}
	i, j := strings.LastIndexByte(a, '/'), strings.LastIndexByte(b, '/')
	return i > 0 && i == j && a[:i] == b[:j]
}

// create makes the container. A conflict on its name is returned as the engine's own error.
func (e *Engine) create(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (string, error) {
	config, host, networking, err := e.engineConfig(operationID, spec)
	if err != nil {
		return "", err
	}
	if err := e.ensureNetworks(ctx, spec); err != nil {
		return "", err
	}
	if err := e.ensureSources(ctx, spec); err != nil {
		return "", err
	}
	files, err := e.writeFiles(spec)
	if err != nil {
		return "", rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "%s", err)
	}
	host.Mounts = append(host.Mounts, files...)
	var created container.CreateResponse
	err = e.call(ctx, 0, func(ctx context.Context) (err error) {
		created, err = e.docker.ContainerCreate(ctx, config, host, networking, nil, spec.GetName())
		return err
	})
	if err != nil {
		return "", e.createFailure(ctx, err, spec)
	}
	for _, w := range created.Warnings {
		e.log.Warn("docker engine warns about a container", "container", spec.GetName(), "warning", w)
	}
	if len(spec.GetNetworks()) > 1 {
		found, _, err := e.inspect(ctx, created.ID)
		if err != nil {
			return "", err
		}
		if err := e.connect(ctx, spec, found); err != nil {
			return "", err
		}
	}
	e.log.Info("container created", "container", spec.GetName(), "operation", operationID, "image", spec.GetImage())
	return created.ID, nil
}

func (e *Engine) createFailure(ctx context.Context, err error, spec *agentv1.ContainerSpec) error {
	if cerrdefs.IsConflict(err) && strings.Contains(err.Error(), "already in use") {
		return err
	}
	failure := e.failure(ctx, err, "create container %q", spec.GetName())
	if _, definite := rpcerr.Failure(failure); !definite {
		return failure // the container may exist, and then it needs its files.
	}
	e.discardFiles(spec.GetName())
	if cerrdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "no such image") {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true,
			"create container %q: host %s does not have image %s; pull it first", spec.GetName(), e.name, spec.GetImage())
	}
	if cerrdefs.IsConflict(err) {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "create container %q: %s", spec.GetName(), engineText(err))
	}
	return failure
}

// discardFiles removes the files of a container that was not created.
func (e *Engine) discardFiles(name string) {
	if err := e.removeFiles(name); err != nil {
		e.log.Warn("files of a container that was not created stay behind", "container", name, "err", err)
	}
}

// ensureSources makes the folders that binds may create and looks for what must be there.
func (e *Engine) ensureSources(ctx context.Context, spec *agentv1.ContainerSpec) error {
	for _, m := range spec.GetMounts() {
		if m.GetType() == "bind" && m.GetCreateHostPath() {
			if err := os.MkdirAll(m.GetSource(), 0o755); err != nil {
				return invalid("container %q: create its bind source: %s", spec.GetName(), err)
			}
		}
		if err := e.checkSource(ctx, spec.GetName(), m); err != nil {
			return err
		}
	}
	return nil
}

// checkSource fails if the mount needs something that does not exist.
func (e *Engine) checkSource(ctx context.Context, name string, m *agentv1.Mount) error {
	switch {
	case m.GetType() == "bind" && !m.GetCreateHostPath():
		if _, err := os.Stat(m.GetSource()); errors.Is(err, fs.ErrNotExist) {
			return invalid("container %q: bind source %s does not exist on host %s; create it, or let the mount create it (create_host_path: true)",
				name, m.GetSource(), e.name)
		}
	case m.GetExternal():
		err := e.call(ctx, quickLimit, func(ctx context.Context) error {
			_, err := e.docker.VolumeInspect(ctx, m.GetSource())
			return err
		})
		if cerrdefs.IsNotFound(err) {
			return invalid("container %q: external volume %q does not exist on host %s; create it (docker volume create %s)",
				name, m.GetSource(), e.name, m.GetSource())
		}
		if err != nil {
			return e.failure(ctx, err, "look for volume %q", m.GetSource())
		}
	}
	return nil
}

func (e *Engine) guarded() guarded {
	u, err := client.ParseHostURL(e.host)
	if err != nil || u.Scheme != "unix" {
		return guarded{secretsDir: e.secretsDir}
	}
	return guarded{socket: filepath.Clean(u.Host + u.Path), secretsDir: e.secretsDir}
}

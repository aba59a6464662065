package container

import (
	"context"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// A restart policy is in force only between Start and Stop. The engine's own ways do not fit: after its daemon was killed, it starts a
// container under "always" although it was created only, or stopped on purpose, and does not start one under "unless-stopped" that ran.
// The policy that a container shall have while it is wanted is in a label. It is changed while the container does not run: for one that runs the
// engine starts runc each time, although nothing but the policy changes.

// restartLabel is the policy as text: "on-failure:3"; "" for none.
func restartLabel(r *agentv1.RestartPolicy) string {
	switch {
	case r.GetName() == "" || r.GetName() == string(container.RestartPolicyDisabled):
		return ""
	case r.GetMaxRetries() > 0:
		return r.GetName() + ":" + strconv.FormatUint(uint64(r.GetMaxRetries()), 10)
	default:
		return r.GetName()
	}
}

// restartOf is the inverse of restartLabel. Since Stop takes the policy away, "unless-stopped" is "always".
func restartOf(label string) container.RestartPolicy {
	name, retries, _ := strings.Cut(label, ":")
	policy := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	switch policy.Name {
	case "":
		policy.Name = container.RestartPolicyDisabled
	case container.RestartPolicyUnlessStopped:
		policy.Name = container.RestartPolicyAlways
	case container.RestartPolicyOnFailure:
		if n, err := strconv.Atoi(retries); err == nil {
			policy.MaximumRetryCount = n
		}
	}
	return policy
}

// setRestart puts a policy in force, and into c. A container that is gone needs none.
func (e *Engine) setRestart(ctx context.Context, c container.InspectResponse, policy container.RestartPolicy) error {
	now := c.HostConfig.RestartPolicy
	if now.IsSame(&policy) || now.IsNone() && policy.IsNone() {
		return nil
	}
	err := e.call(ctx, quickLimit, func(ctx context.Context) error {
		_, err := e.docker.ContainerUpdate(ctx, c.ID, container.UpdateConfig{RestartPolicy: policy})
		return err
	})
	if err != nil && !cerrdefs.IsNotFound(err) {
		return e.failure(ctx, err, "set the restart policy of container %q", strings.TrimPrefix(c.Name, "/"))
	}
	c.HostConfig.RestartPolicy = policy
	return nil
}

var noRestart = container.RestartPolicy{Name: container.RestartPolicyDisabled}

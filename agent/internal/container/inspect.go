package container

import (
	"context"

	"github.com/docker/docker/api/types/container"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// stateGone is what a container is called that does not exist; the other words are the engine's.
const stateGone = "gone"

// Inspect says how a container is, whoever created it.
func (e *Engine) Inspect(ctx context.Context, name string) (*agentv1.InspectContainerResponse, error) {
	found, _, err := e.inspect(ctx, name)
	if notFound(err) {
		return &agentv1.InspectContainerResponse{State: stateGone}, nil
	}
	if err != nil {
		return nil, err
	}
	s := found.State
	return &agentv1.InspectContainerResponse{
		State: s.Status, Healthy: s.Running && s.Health != nil && s.Health.Status == container.Healthy, ExitCode: int32(s.ExitCode),
		Image: found.Image, Restarts: int32(max(found.RestartCount, 0)),
	}, nil
}

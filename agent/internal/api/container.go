package api

import (
	"context"
	"time"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Containers is the host's container engine.
type Containers interface {
	// List returns containers in order of their names.
	List(ctx context.Context, req *agentv1.ListContainersRequest) ([]*agentv1.Container, error)
	// ResolveImage finds the digest of an image.
	ResolveImage(ctx context.Context, image string) (*agentv1.ResolveImageResponse, error)
	// Check says what would stop containers from running here.
	Check(ctx context.Context, req *agentv1.CheckContainersRequest) ([]*agentv1.ContainerProblem, error)
	// Pull makes sure that the host has an image, and says whether it had to be fetched.
	Pull(ctx context.Context, image string) (pulled bool, err error)
	// Create creates a container for an operation, or finds the one that it created.
	Create(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (id string, err error)
	// Start starts a container unless it runs.
	Start(ctx context.Context, name string) error
	// AwaitReady returns when a container's gate has passed.
	AwaitReady(ctx context.Context, req *agentv1.AwaitReadyRequest) (*agentv1.AwaitReadyResponse, error)
	// Watch returns when a container has been well for the window.
	Watch(ctx context.Context, req *agentv1.WatchContainerRequest) (*agentv1.WatchContainerResponse, error)
	// Drain returns when a container serves nothing any more, or at the limit.
	Drain(ctx context.Context, req *agentv1.DrainContainerRequest) (*agentv1.DrainContainerResponse, error)
	// Stop stops a container; a grace of 0 is the container's own.
	Stop(ctx context.Context, name string, grace time.Duration) (exitCode int32, err error)
	// Signal sends a signal to a container that runs.
	Signal(ctx context.Context, name, signal string) error
	// RunJob runs a container to its end, once for each operation id.
	RunJob(ctx context.Context, operationID string, spec *agentv1.ContainerSpec) (*agentv1.RunJobResponse, error)
	// Inspect says how a container is, "gone" for none.
	Inspect(ctx context.Context, name string) (*agentv1.InspectContainerResponse, error)
	// Remove removes a container if it is there; with ownRunOnly, only if the run of the operation created it.
	Remove(ctx context.Context, operationID, name string, ownRunOnly bool) error
}

// containerServer serves ContainerService.
type containerServer struct {
	agentv1.UnimplementedContainerServiceServer
	base
	containers Containers
}

// ListContainers returns the containers of the host.
func (s *containerServer) ListContainers(ctx context.Context, req *agentv1.ListContainersRequest) (*agentv1.ListContainersResponse, error) {
	found, err := s.containers.List(ctx, req)
	if err != nil {
		return nil, s.wireRead(err)
	}
	return &agentv1.ListContainersResponse{Containers: found}, nil
}

// ResolveImage finds the digest of an image.
func (s *containerServer) ResolveImage(ctx context.Context, req *agentv1.ResolveImageRequest) (*agentv1.ResolveImageResponse, error) {
	if err := valid(req); err != nil {
		return nil, invalid(err)
	}
	found, err := s.containers.ResolveImage(ctx, req.GetImage())
	if err != nil {
		return nil, s.wireRead(err)
	}
	return found, nil
}

// CheckContainers says what would stop containers from running here.
func (s *containerServer) CheckContainers(ctx context.Context, req *agentv1.CheckContainersRequest) (*agentv1.CheckContainersResponse, error) {
	if err := valid(req); err != nil {
		return nil, invalid(err)
	}
	problems, err := s.containers.Check(ctx, req)
	if err != nil {
		return nil, s.wireRead(err)
	}
	return &agentv1.CheckContainersResponse{Problems: problems}, nil
}

// PullImage makes sure that the host has an image.
func (s *containerServer) PullImage(ctx context.Context, req *agentv1.PullImageRequest) (*agentv1.PullImageResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.PullImageResponse, error) {
		pulled, err := s.containers.Pull(ctx, req.GetImage())
		return &agentv1.PullImageResponse{Pulled: pulled}, err
	})
}

// CreateContainer creates a container.
func (s *containerServer) CreateContainer(ctx context.Context, req *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.CreateContainerResponse, error) {
		id, err := s.containers.Create(ctx, req.GetOperation().GetId(), req.GetSpec())
		return &agentv1.CreateContainerResponse{Id: id}, err
	})
}

// StartContainer starts a container.
func (s *containerServer) StartContainer(ctx context.Context, req *agentv1.StartContainerRequest) (*agentv1.StartContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.StartContainerResponse, error) {
		return &agentv1.StartContainerResponse{}, s.containers.Start(ctx, req.GetName())
	})
}

// AwaitReady waits for a container's gate.
func (s *containerServer) AwaitReady(ctx context.Context, req *agentv1.AwaitReadyRequest) (*agentv1.AwaitReadyResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.AwaitReadyResponse, error) {
		return s.containers.AwaitReady(ctx, req)
	})
}

// WatchContainer looks at a container for a while.
func (s *containerServer) WatchContainer(ctx context.Context, req *agentv1.WatchContainerRequest) (*agentv1.WatchContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.WatchContainerResponse, error) {
		return s.containers.Watch(ctx, req)
	})
}

// DrainContainer waits until a container serves nothing any more.
func (s *containerServer) DrainContainer(ctx context.Context, req *agentv1.DrainContainerRequest) (*agentv1.DrainContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.DrainContainerResponse, error) {
		return s.containers.Drain(ctx, req)
	})
}

// StopContainer stops a container.
func (s *containerServer) StopContainer(ctx context.Context, req *agentv1.StopContainerRequest) (*agentv1.StopContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.StopContainerResponse, error) {
		code, err := s.containers.Stop(ctx, req.GetName(), req.GetGrace().AsDuration())
		return &agentv1.StopContainerResponse{ExitCode: code}, err
	})
}

// SignalContainer sends a signal to a container.
func (s *containerServer) SignalContainer(ctx context.Context, req *agentv1.SignalContainerRequest) (*agentv1.SignalContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.SignalContainerResponse, error) {
		return &agentv1.SignalContainerResponse{}, s.containers.Signal(ctx, req.GetName(), req.GetSignal())
	})
}

// RunJob runs a container to its end.
func (s *containerServer) RunJob(ctx context.Context, req *agentv1.RunJobRequest) (*agentv1.RunJobResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.RunJobResponse, error) {
		return s.containers.RunJob(ctx, req.GetOperation().GetId(), req.GetSpec())
	})
}

// InspectContainer says how a container is.
func (s *containerServer) InspectContainer(ctx context.Context, req *agentv1.InspectContainerRequest) (*agentv1.InspectContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.InspectContainerResponse, error) {
		return s.containers.Inspect(ctx, req.GetName())
	})
}

// RemoveContainer removes a container.
func (s *containerServer) RemoveContainer(ctx context.Context, req *agentv1.RemoveContainerRequest) (*agentv1.RemoveContainerResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.RemoveContainerResponse, error) {
		return &agentv1.RemoveContainerResponse{}, s.containers.Remove(ctx, req.GetOperation().GetId(), req.GetName(), req.GetOwnRunOnly())
	})
}

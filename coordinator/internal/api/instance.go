package api

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	fanOutLimit = 64
	fanOutTime  = 5 * time.Second
)

// ListInstances asks every host's engine and returns instances in order of stack, service and slot.
func (s *StackServer) ListInstances(ctx context.Context, req *coordinatorv1.ListInstancesRequest) (*coordinatorv1.ListInstancesResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if req.GetStack() != "" && view.Stack(req.GetStack()) == nil {
		return nil, noStack(req.GetStack())
	}
	if req.GetHost() != "" && view.Host(req.GetHost()) == nil {
		return nil, notFound(coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q: `musterctl host list` shows them", req.GetHost())
	}
	return s.instances(ctx, view, req), nil
}

// instances merges what the current releases assign with what the hosts say.
func (s *StackServer) instances(ctx context.Context, view *state.View, req *coordinatorv1.ListInstancesRequest) *coordinatorv1.ListInstancesResponse {
	expected := map[string]*coordinatorv1.Assignment{}
	for _, known := range view.Stacks() {
		for _, a := range view.CurrentRelease(known.GetName()).GetAssignments() {
			if wanted(req, known.GetName(), a.GetService(), a.GetHost()) {
				expected[a.GetContainer()] = a
			}
		}
	}
	response := &coordinatorv1.ListInstancesResponse{}
	silent := map[string]bool{}
	for _, a := range s.askContainers(ctx, view, req) {
		if a.Err != nil {
			silent[a.Host] = true
			response.Unreachable = append(response.Unreachable, &coordinatorv1.HostError{Host: a.Host, Message: rpcerr.Message(a.Err)})
			continue
		}
		for _, container := range a.Value {
			instance := instanceOf(a.Host, container)
			instance.Expected = expected[container.GetName()] != nil
			delete(expected, container.GetName())
			if req.GetAll() || container.GetState() != "exited" && container.GetState() != "created" || instance.GetExpected() {
				response.Instances = append(response.Instances, instance)
			}
		}
	}
	for _, a := range expected {
		if !silent[a.GetHost()] {
			response.Missing = append(response.Missing, a)
		}
	}
	slices.SortFunc(response.Missing, func(x, y *coordinatorv1.Assignment) int { return cmp.Compare(x.GetContainer(), y.GetContainer()) })
	slices.SortFunc(response.Instances, func(x, y *coordinatorv1.Instance) int {
		return cmp.Or(cmp.Compare(x.GetStack(), y.GetStack()), cmp.Compare(x.GetService(), y.GetService()), cmp.Compare(x.GetSlot(), y.GetSlot()),
			cmp.Compare(x.GetRelease(), y.GetRelease()), cmp.Compare(x.GetContainer().GetName(), y.GetContainer().GetName()))
	})
	return response
}

func wanted(req *coordinatorv1.ListInstancesRequest, stackName, service, host string) bool {
	return (req.GetStack() == "" || req.GetStack() == stackName) && (req.GetService() == "" || req.GetService() == service) &&
		(req.GetHost() == "" || req.GetHost() == host)
}

func (s *StackServer) askContainers(ctx context.Context, view *state.View, req *coordinatorv1.ListInstancesRequest) []hosts.Answer[[]*agentv1.Container] {
	var names []string
	for _, host := range view.Hosts() {
		joined := host.GetState() != coordinatorv1.HostState_HOST_STATE_JOINED
		if req.GetHost() == host.GetName() || req.GetHost() == "" && joined {
			names = append(names, host.GetName())
		}
	}
	list := &agentv1.ListContainersRequest{Stack: req.GetStack(), Service: req.GetService()}
	return hosts.Each(ctx, s.Hosts, names, fanOutLimit, fanOutTime, func(ctx context.Context, _ string, cc grpc.ClientConnInterface) ([]*agentv1.Container, error) {
		response, err := agentv1.NewContainerServiceClient(cc).ListContainers(ctx, list)
		return response.GetContainers(), err
	})
}

func instanceOf(host string, container *agentv1.Container) *coordinatorv1.Instance {
	labels := container.GetLabels()
	slot, _ := strconv.ParseUint(labels[stack.LabelSlot], 10, 32)
	release, _ := strconv.ParseUint(labels[stack.LabelRelease], 10, 64)
	return &coordinatorv1.Instance{
		Stack: labels[stack.LabelStack], Service: labels[stack.LabelService], Slot: uint32(slot), Host: host, Release: release,
		Container: container, StartedAt: container.GetStartedAt(),
	}
}

// ListServices returns services with how many of their instances run.
func (s *StackServer) ListServices(ctx context.Context, req *coordinatorv1.ListServicesRequest) (*coordinatorv1.ListServicesResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if req.GetStack() != "" && view.Stack(req.GetStack()) == nil {
		return nil, noStack(req.GetStack())
	}
	instances := s.instances(ctx, view, &coordinatorv1.ListInstancesRequest{Stack: req.GetStack()})
	running, ready, stopped := map[string]uint32{}, map[string]uint32{}, map[string]uint32{}
	for _, instance := range instances.GetInstances() {
		key := instance.GetStack() + "/" + instance.GetService()
		if instance.GetContainer().GetStopped() && instance.GetExpected() {
			stopped[key]++
		}
		if instance.GetContainer().GetState() != "running" {
			continue
		}
		running[key]++
		if health := instance.GetContainer().GetHealth(); health == "" || health == "healthy" {
			ready[key]++
		}
	}
	response := &coordinatorv1.ListServicesResponse{Unreachable: instances.GetUnreachable()}
	for _, known := range view.Stacks() {
		if req.GetStack() != "" && req.GetStack() != known.GetName() {
			continue
		}
		release := view.CurrentRelease(known.GetName())
		for _, service := range release.GetServices() {
			key := known.GetName() + "/" + service.GetName()
			response.Services = append(response.Services, &coordinatorv1.ServiceStatus{
				Stack: known.GetName(), Service: service, Running: running[key], Ready: ready[key], Stopped: stopped[key], Release: release.GetNumber(),
			})
		}
	}
	return response, nil
}

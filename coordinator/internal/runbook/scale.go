package runbook

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ScaleProcedure is what plans of Scale are made by.
const ScaleProcedure = "scale"

// Scale proposes a release that differs from the current one in the number of a service's instances alone.
func (p *Planner) Scale(ctx context.Context, view *state.View, name, service string, n uint32) (*Proposal, error) {
	if view.Stack(name) == nil {
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q: `musterctl stack list` shows them", name)
	}
	c := newCandidate(view, name)
	scaled := findService(c.before, service)
	if scaled == nil {
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND,
			"stack %s has no service %q: `musterctl service list --stack %s` shows them", name, service, name)
	}
	if why := unscalable(name, scaled, n); why != "" {
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT, "service %s cannot have %d instances: %s", service, n, why)
	}
	was := scaled.GetReplicas()
	c.repeat()
	findService(c.release, service).Replicas = n
	c.procedure, c.only = ScaleProcedure, service
	c.title = fmt.Sprintf("scale %s of %s from %d to %d, as release %d", service, name, was, n, c.release.GetNumber())
	if n == was {
		return c.nothing(), nil
	}
	c.notes = append(c.notes, fmt.Sprintf("the next `musterctl stack apply` puts the number of the file back: write replicas: %d there, too", n))
	return p.propose(ctx, c)
}

// unscalable says why a service cannot have n instances, whatever room there is; empty if it can.
func unscalable(name string, service *coordinatorv1.Service, n uint32) string {
	alone := stack.SharesNothing(service)
	switch {
	case service.GetPlacement().GetGlobal():
		return "it is global, one on every host that its constraints match: add hosts, or change the constraints"
	case n > stack.MaxReplicas:
		return fmt.Sprintf("at most %d are possible", stack.MaxReplicas)
	case n > 1 && alone != "":
		return alone + ": if several can share it, write deploy: {replicas: " + fmt.Sprint(n) + "} into the file and apply that"
	case n == 0 && service.GetPinned() != "" && service.GetReplicas() > 0:
		return fmt.Sprintf("without any, nothing would tell which host has its data (%s): stop it with `musterctl service stop %s/%s`",
			service.GetPinned(), name, service.GetName())
	}
	return ""
}

func findService(release *coordinatorv1.Release, name string) *coordinatorv1.Service {
	for _, service := range release.GetServices() {
		if service.GetName() == name {
			return service
		}
	}
	return nil
}

// repeat makes the candidate's release what the current one is.
func (c *candidate) repeat() {
	c.release.Services, c.release.Networks, c.release.SourceDigest = cloneAll(c.before.GetServices()), c.before.GetNetworks(), c.before.GetSourceDigest()
	c.noGate = true
}

// nothing proposes a plan without steps.
func (c *candidate) nothing() *Proposal {
	plan := &coordinatorv1.Plan{Procedure: c.procedure, Title: c.title, Stack: c.release.GetStack(), Changes: stack.Diff(c.before, c.before)}
	if err := Seal(plan); err != nil {
		panic("runbook: seal an empty plan: " + err.Error())
	}
	return &Proposal{Plan: plan, Release: c.before, StackRevision: c.view.Stack(c.release.GetStack()).GetRevision()}
}

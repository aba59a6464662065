package api

import (
	"context"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ScaleService plans another number of instances of a service and, unless it is a dry run, starts that.
func (s *ServiceServer) ScaleService(ctx context.Context, req *coordinatorv1.ScaleServiceRequest) (*coordinatorv1.ScaleServiceResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	if req.GetStack() == "" || req.GetService() == "" {
		return nil, invalid("stack or service is empty: say which service of which stack")
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	run, _, err := replayed(view, req.GetRequestId(), req.GetDryRun(), func(release *coordinatorv1.Release) bool {
		return release.GetStack() == req.GetStack() && view.Run(release.GetRunId()).GetProcedure() == runbook.ScaleProcedure &&
			replicasOf(release, req.GetService()) == int64(req.GetReplicas())
	})
	if run != nil || err != nil {
		return &coordinatorv1.ScaleServiceResponse{Plan: view.Plan(run.GetId()), Run: run}, err
	}
	proposal, err := s.planner.Scale(ctx, view, req.GetStack(), req.GetService(), req.GetReplicas())
	if err != nil {
		return nil, s.mapError(err)
	}
	run, err = s.start(ctx, proposal, startRequest{dryRun: req.GetDryRun(), planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.ScaleServiceResponse{Plan: proposal.Plan, Run: run, Warnings: proposal.Warnings}, nil
}

// replicasOf a service in a release; -1 if it has no such service.
func replicasOf(release *coordinatorv1.Release, name string) int64 {
	for _, service := range release.GetServices() {
		if service.GetName() == name {
			return int64(service.GetReplicas())
		}
	}
	return -1
}

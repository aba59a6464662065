package api

import (
	"context"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ServiceServer serves ServiceService.
type ServiceServer struct {
	coordinatorv1.UnimplementedServiceServiceServer
	*backend
}

// OperateService does one thing to the instances of a service.
func (s *ServiceServer) OperateService(ctx context.Context, req *coordinatorv1.OperateServiceRequest) (*coordinatorv1.OperateServiceResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	run, err := replayedOperation(view, req)
	if run != nil || err != nil {
		return &coordinatorv1.OperateServiceResponse{Plan: view.Plan(run.GetId()), Run: run}, err
	}
	proposal, err := s.planner.Operate(ctx, view, req)
	if err != nil {
		return nil, s.mapError(err)
	}
	run, err = s.start(ctx, proposal, startRequest{dryRun: req.GetDryRun(), planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.OperateServiceResponse{Plan: proposal.Plan, Run: run, Warnings: proposal.Warnings}, nil
}

// replayedOperation returns the run that an earlier call with the same request id started. The plan of a run tells what it was asked for.
func replayedOperation(view *state.View, req *coordinatorv1.OperateServiceRequest) (*coordinatorv1.Run, error) {
	if req.GetRequestId() == "" || req.GetDryRun() || view.Request(req.GetRequestId()) == nil {
		return nil, nil
	}
	run := view.RunOfRequest(req.GetRequestId())
	if run != nil && run.GetStack() == req.GetStack() && run.GetProcedure() == runbook.ServiceProcedure(req.GetVerb()) && changes(view.Plan(run.GetId()), req.GetService()) {
		return run, nil
	}
	return nil, rpcerr.New(codes.AlreadyExists, coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED,
		"request id %q was used for another request: use a new one", req.GetRequestId())
}

// changes says that a plan does something to a service.
func changes(plan *coordinatorv1.Plan, service string) bool {
	for _, change := range plan.GetChanges() {
		if change.GetService() == service && change.GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_NONE {
			return true
		}
	}
	return false
}

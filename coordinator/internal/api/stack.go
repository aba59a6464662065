package api

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// StackServer serves StackService.
type StackServer struct {
	coordinatorv1.UnimplementedStackServiceServer
	*backend
}

// ApplyStack plans the way from what runs to what the files say and, unless it is a dry run, starts it.
func (s *StackServer) ApplyStack(ctx context.Context, req *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	model, err := stack.Load(ctx, req.GetSource())
	if err != nil {
		return nil, s.mapError(err)
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	run, release, err := replayed(view, req.GetRequestId(), req.GetDryRun(), func(release *coordinatorv1.Release) bool {
		return release.GetStack() == model.Name && release.GetSourceDigest() == model.Digest && release.GetRollbackOf() == 0
	})
	if run != nil || err != nil {
		return &coordinatorv1.ApplyStackResponse{Plan: view.Plan(run.GetId()), Run: run, Release: release, Warnings: model.Warnings}, err
	}
	if req.GetSupersede() && !req.GetDryRun() {
		if superseded, err := s.supersede(ctx, view, model.Name, req); superseded != nil || err != nil {
			return &coordinatorv1.ApplyStackResponse{Superseded: superseded, Warnings: model.Warnings}, err
		}
	}
	proposal, err := s.planner.Apply(ctx, view, model, req.GetNoGate())
	if err != nil {
		return nil, s.mapError(err)
	}
	run, err = s.start(ctx, proposal, startRequest{dryRun: req.GetDryRun(), planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.ApplyStackResponse{Plan: proposal.Plan, Run: run, Release: proposal.Release, Warnings: proposal.Warnings}, nil
}

// supersede takes the run back that changes a stack now, and returns it while it has not ended; nil if there is none. A newer plan can only
// be made from what is there when nothing is on its way any more.
func (s *StackServer) supersede(ctx context.Context, view *state.View, name string, req *coordinatorv1.ApplyStackRequest) (*coordinatorv1.Run, error) {
	run := view.Run(view.Stack(name).GetActiveRun())
	switch {
	case run == nil:
		return nil, nil
	case run.GetState() == coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD,
			"run %s of stack %s needs a human (%s): end it first, see `musterctl run show %s`", run.GetId(), name, run.GetCause(), run.GetId())
	case run.GetCommitted() || run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
		return run, nil // It ends by itself.
	}
	reason := "superseded by a newer apply"
	if req.GetReason() != "" {
		reason += ": " + req.GetReason()
	}
	result, err := s.propose(ctx, &raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{
		RunId: run.GetId(), Control: raftv1.RunControl_RUN_CONTROL_CANCEL, Reason: reason,
	}}})
	if rpcerr.Reason(err) == "RUN_FINISHED" || rpcerr.Reason(err) == "RUN_NOT_RUNNING" {
		return run, nil // It ended, or is being taken back, meanwhile.
	}
	return result.GetRun(), err
}

// RollbackStack applies an earlier release again.
func (s *StackServer) RollbackStack(ctx context.Context, req *coordinatorv1.RollbackStackRequest) (*coordinatorv1.RollbackStackResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	run, release, err := replayed(view, req.GetRequestId(), req.GetDryRun(), func(release *coordinatorv1.Release) bool {
		return release.GetStack() == req.GetStack() && release.GetRollbackOf() > 0 && (req.GetRelease() == 0 || release.GetRollbackOf() == req.GetRelease())
	})
	if run != nil || err != nil {
		return &coordinatorv1.RollbackStackResponse{Plan: view.Plan(run.GetId()), Run: run, Release: release}, err
	}
	proposal, err := s.planner.Rollback(ctx, view, req.GetStack(), req.GetRelease())
	if err != nil {
		return nil, s.mapError(err)
	}
	run, err = s.start(ctx, proposal, startRequest{dryRun: req.GetDryRun(), planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.RollbackStackResponse{Plan: proposal.Plan, Run: run, Release: proposal.Release}, nil
}

// replayed returns the run that an earlier call with the same request id started, with its release. Planning again would find its lock held. An id
// that was used for something else is refused.
func replayed(view *state.View, requestID string, dryRun bool, same func(*coordinatorv1.Release) bool) (*coordinatorv1.Run, *coordinatorv1.Release, error) {
	if requestID == "" || dryRun || view.Request(requestID) == nil {
		return nil, nil, nil
	}
	run := view.RunOfRequest(requestID)
	release := view.Release(run.GetStack(), run.GetActivateRelease())
	if run == nil || !same(release) {
		return nil, nil, rpcerr.New(codes.AlreadyExists, coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED,
			"request id %q was used for another request: use a new one", requestID)
	}
	return run, release, nil
}

type startRequest struct {
	dryRun    bool
	planHash  string
	requestID string
	reason    string
}

// start starts the run of a proposal, if that is what was asked for and there is something to do.
func (b *backend) start(ctx context.Context, proposal *runbook.Proposal, req startRequest) (*coordinatorv1.Run, error) {
	if err := checkHash(proposal.Plan, req.planHash); err != nil {
		return nil, err
	}
	if req.dryRun || proposal.Empty() {
		return nil, nil
	}
	result, err := b.propose(ctx, &raftv1.Command{
		RequestId: req.requestID,
		Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
			Plan: proposal.Plan, Release: proposal.Release, StackRevision: proposal.StackRevision, Reason: req.reason,
		}},
	})
	return result.GetRun(), err
}

// checkHash refuses a plan that is not the one that was seen.
func checkHash(plan *coordinatorv1.Plan, seen string) error {
	if seen == "" || seen == plan.GetHash() {
		return nil
	}
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED,
		"the plan is %s now and was %s: the stack, the fleet or the files have changed; look at it again with --dry-run", short(plan.GetHash()), short(seen))
}

func short(hash string) string {
	if len(hash) > 12 {
		return hash[:12]
	}
	return hash
}

// ListStacks returns the stacks in order of their names.
func (s *StackServer) ListStacks(ctx context.Context, req *coordinatorv1.ListStacksRequest) (*coordinatorv1.ListStacksResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.ListStacksResponse{Stacks: view.Stacks()}, nil
}

// GetStack returns a stack with a release of it.
func (s *StackServer) GetStack(ctx context.Context, req *coordinatorv1.GetStackRequest) (*coordinatorv1.GetStackResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	found := view.Stack(req.GetStack())
	if found == nil {
		return nil, noStack(req.GetStack())
	}
	response := &coordinatorv1.GetStackResponse{Stack: found, Release: view.CurrentRelease(found.GetName())}
	if req.GetRelease() > 0 {
		if response.Release = view.Release(found.GetName(), req.GetRelease()); response.Release == nil {
			return nil, notFound(coordinatorv1.ErrorReason_ERROR_REASON_RELEASE_NOT_FOUND,
				"stack %s has no release %d: `musterctl stack history %s` shows them", found.GetName(), req.GetRelease(), found.GetName())
		}
	}
	return response, nil
}

func noStack(name string) error {
	return notFound(coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q: `musterctl stack list` shows them", name)
}

// ListReleases returns the releases of a stack, newest first.
func (s *StackServer) ListReleases(ctx context.Context, req *coordinatorv1.ListReleasesRequest) (*coordinatorv1.ListReleasesResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	if view.Stack(req.GetStack()) == nil {
		return nil, noStack(req.GetStack())
	}
	releases := view.Releases(req.GetStack())
	slices.Reverse(releases)
	return &coordinatorv1.ListReleasesResponse{Releases: releases}, nil
}

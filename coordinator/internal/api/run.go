package api

import (
	"context"
	"slices"
	"strconv"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/grpcserver"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// RunServer serves RunService.
type RunServer struct {
	coordinatorv1.UnimplementedRunServiceServer
	*backend
}

const (
	pageDefault = 50
	pageLimit   = 500
)

// ListRuns returns runs, newest first.
func (s *RunServer) ListRuns(ctx context.Context, req *coordinatorv1.ListRunsRequest) (*coordinatorv1.ListRunsResponse, error) {
	size := int(req.GetPageSize())
	if size == 0 {
		size = pageDefault
	}
	if size > pageLimit {
		return nil, invalid("page_size is %d: at most %d runs fit on a page", size, pageLimit)
	}
	var before uint64
	if token := req.GetPageToken(); token != "" {
		n, err := strconv.ParseUint(token, 36, 64)
		if err != nil {
			return nil, invalid("page_token %q is none that a page ended with", token)
		}
		before = n
	}
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	runs := view.Runs()
	slices.Reverse(runs)
	response := &coordinatorv1.ListRunsResponse{}
	for _, run := range runs {
		if before > 0 && run.GetFence() >= before || req.GetStack() != "" && run.GetStack() != req.GetStack() || req.GetActive() && state.Terminal(run.GetState()) ||
			req.GetProcedure() != "" && run.GetProcedure() != req.GetProcedure() {
			continue
		}
		if len(response.Runs) == size {
			response.NextPageToken = strconv.FormatUint(response.Runs[size-1].GetFence(), 36)
			break
		}
		response.Runs = append(response.Runs, run)
	}
	return response, nil
}

// GetRun returns one run with its steps and what blocks it.
func (s *RunServer) GetRun(ctx context.Context, req *coordinatorv1.GetRunRequest) (*coordinatorv1.GetRunResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	run := view.Run(req.GetRunId())
	if run == nil {
		return nil, noRun(req.GetRunId())
	}
	response := &coordinatorv1.GetRunResponse{Run: run, Steps: view.Steps(run.GetId()), Blockers: view.Blockers(run.GetId())}
	if req.GetPlan() {
		response.Plan = view.Plan(run.GetId())
	}
	return response, nil
}

func noRun(id string) error {
	return notFound(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, "there is no run %q: `musterctl run list` shows them", id)
}

// WatchRun sends the run and all its steps, then every change, and ends after the terminal one.
func (s *RunServer) WatchRun(req *coordinatorv1.WatchRunRequest, stream grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error {
	return s.watch(stream.Context(), req, stream.Send)
}

func (s *RunServer) watch(ctx context.Context, req *coordinatorv1.WatchRunRequest, send func(*coordinatorv1.WatchRunResponse) error) error {
	if err := s.Cluster.Read(ctx); err != nil {
		return s.mapError(err)
	}
	// A client that comes from another coordinator must not be taken back in time.
	if err := s.State.Wait(ctx, req.GetFromIndex()); err != nil {
		return s.mapError(err)
	}
	for seen := req.GetFromIndex(); ; {
		changed := s.State.Changed()
		view := s.State.View()
		run := view.Run(req.GetRunId())
		if run == nil {
			return noRun(req.GetRunId())
		}
		if run.GetRevision() > seen || seen == 0 || state.Terminal(run.GetState()) {
			if err := send(since(view, run, seen)); err != nil {
				return err
			}
		}
		seen = view.Index()
		if state.Terminal(run.GetState()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s.mapError(ctx.Err())
		}
	}
}

// since returns what changed of a run after an index.
func since(view *state.View, run *coordinatorv1.Run, index uint64) *coordinatorv1.WatchRunResponse {
	response := &coordinatorv1.WatchRunResponse{Index: view.Index(), Run: run, Blockers: view.Blockers(run.GetId())}
	for _, step := range view.Steps(run.GetId()) {
		if step.GetRevision() > index {
			response.Steps = append(response.Steps, step)
		}
	}
	return response
}

// CancelRun takes a run back.
func (s *RunServer) CancelRun(ctx context.Context, req *coordinatorv1.CancelRunRequest) (*coordinatorv1.CancelRunResponse, error) {
	run, err := s.control(ctx, req, raftv1.RunControl_RUN_CONTROL_CANCEL)
	return &coordinatorv1.CancelRunResponse{Run: run}, err
}

// PauseRun starts no further step.
func (s *RunServer) PauseRun(ctx context.Context, req *coordinatorv1.PauseRunRequest) (*coordinatorv1.PauseRunResponse, error) {
	run, err := s.control(ctx, req, raftv1.RunControl_RUN_CONTROL_PAUSE)
	return &coordinatorv1.PauseRunResponse{Run: run}, err
}

// ResumeRun lets a paused run go on.
func (s *RunServer) ResumeRun(ctx context.Context, req *coordinatorv1.ResumeRunRequest) (*coordinatorv1.ResumeRunResponse, error) {
	run, err := s.control(ctx, req, raftv1.RunControl_RUN_CONTROL_RESUME)
	return &coordinatorv1.ResumeRunResponse{Run: run}, err
}

// controlRequest is what the three requests have in common.
type controlRequest interface {
	GetRunId() string
	GetRequestId() string
	GetReason() string
}

func (s *RunServer) control(ctx context.Context, req controlRequest, control raftv1.RunControl) (*coordinatorv1.Run, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), true); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(),
		Op:        &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: req.GetRunId(), Control: control, Reason: req.GetReason()}},
	})
	return result.GetRun(), err
}

// DecideStep answers a step that asks for approval.
func (s *RunServer) DecideStep(ctx context.Context, req *coordinatorv1.DecideStepRequest) (*coordinatorv1.DecideStepResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), true); err != nil {
		return nil, err
	}
	caller, _ := grpcserver.CallerFrom(ctx)
	result, err := s.propose(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(),
		Op: &raftv1.Command_DecideStep{DecideStep: &raftv1.DecideStep{
			RunId: req.GetRunId(), StepId: req.GetStepId(), PlanHash: req.GetPlanHash(), Approve: req.GetApprove(), Reason: req.GetReason(), Role: caller.ID.Role,
		}},
	})
	return &coordinatorv1.DecideStepResponse{Run: result.GetRun()}, err
}

// ResolveStep says what became of an operation whose outcome was lost.
func (s *RunServer) ResolveStep(ctx context.Context, req *coordinatorv1.ResolveStepRequest) (*coordinatorv1.ResolveStepResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), true); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(),
		Op: &raftv1.Command_ResolveStep{ResolveStep: &raftv1.ResolveStep{
			RunId: req.GetRunId(), StepId: req.GetStepId(), Resolution: req.GetResolution(), Reason: req.GetReason(),
		}},
	})
	return &coordinatorv1.ResolveStepResponse{Run: result.GetRun()}, err
}

// ListLocks returns the locks that runs hold.
func (s *RunServer) ListLocks(ctx context.Context, req *coordinatorv1.ListLocksRequest) (*coordinatorv1.ListLocksResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	response := &coordinatorv1.ListLocksResponse{}
	for _, lock := range view.Locks() {
		response.Locks = append(response.Locks, &coordinatorv1.HeldLock{
			Name: lock.GetName(), RunId: lock.GetRunId(), Fence: lock.GetFence(), TakenAt: lock.GetTakenAt(), Reason: lock.GetReason(),
			Owner: view.Run(lock.GetRunId()).GetCreatedBy(),
		})
	}
	return response, nil
}

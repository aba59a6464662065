package api

import (
	"context"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// drainLimit is the longest deadline of a stack's run.
const drainLimit = 7 * 24 * time.Hour

// CordonHost keeps new instances away from a host.
func (s *HostServer) CordonHost(ctx context.Context, req *coordinatorv1.CordonHostRequest) (*coordinatorv1.CordonHostResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), true); err != nil {
		return nil, err
	}
	host, err := s.cordon(ctx, req.GetHost(), true, req.GetReason(), req.GetRequestId())
	return &coordinatorv1.CordonHostResponse{Host: host}, err
}

// UncordonHost lets new instances come to a host again.
func (s *HostServer) UncordonHost(ctx context.Context, req *coordinatorv1.UncordonHostRequest) (*coordinatorv1.UncordonHostResponse, error) {
	if err := checkRequest(req.GetRequestId(), "", true); err != nil {
		return nil, err
	}
	host, err := s.cordon(ctx, req.GetHost(), false, "", req.GetRequestId())
	return &coordinatorv1.UncordonHostResponse{Host: host}, err
}

func (s *HostServer) cordon(ctx context.Context, host string, cordoned bool, reason, requestID string) (*coordinatorv1.Host, error) {
	result, err := s.propose(ctx, &raftv1.Command{
		RequestId: requestID,
		Op:        &raftv1.Command_CordonHost{CordonHost: &raftv1.CordonHost{Host: host, Cordoned: cordoned, Reason: reason}},
	})
	return result.GetHost(), err
}

// DrainHost plans the leaving of all instances and, unless it is a dry run, cordons the host and starts the first stack's run. Nothing is
// changed unless every stack can leave.
func (s *HostServer) DrainHost(ctx context.Context, req *coordinatorv1.DrainHostRequest) (*coordinatorv1.DrainHostResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	deadline := req.GetDeadline().AsDuration()
	if deadline < 0 || deadline > drainLimit {
		return nil, invalid("deadline is %s: it must be more than 0 and at most %s", deadline, drainLimit)
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	run, _, err := replayed(view, req.GetRequestId(), req.GetDryRun(), func(release *coordinatorv1.Release) bool {
		return view.Run(release.GetRunId()).GetProcedure() == runbook.DrainProcedure && (req.GetStack() == "" || req.GetStack() == release.GetStack())
	})
	if err != nil {
		return nil, err
	}
	if run != nil {
		stacks := runbook.StacksOn(view, req.GetHost(), req.GetStack())
		return &coordinatorv1.DrainHostResponse{Plans: []*coordinatorv1.Plan{view.Plan(run.GetId())}, Run: run, Remaining: others(stacks, run.GetStack())}, nil
	}
	proposals, err := s.planner.Drain(ctx, view, runbook.DrainRequest{Host: req.GetHost(), Stack: req.GetStack(), Lost: req.GetLost(), Deadline: deadline})
	if err != nil {
		return nil, s.mapError(err)
	}
	response := &coordinatorv1.DrainHostResponse{Remaining: uint32(max(0, len(proposals)-1))}
	if req.GetDryRun() {
		for _, proposal := range proposals {
			response.Plans = append(response.Plans, proposal.Plan)
			response.Warnings = append(response.Warnings, proposal.Warnings...)
		}
		return response, nil
	}
	if len(proposals) > 0 {
		if err := checkHash(proposals[0].Plan, req.GetPlanHash()); err != nil {
			return nil, err
		}
	}
	if !view.Host(req.GetHost()).GetCordoned() {
		reason := req.GetReason()
		if reason == "" {
			reason = "drained"
		}
		if _, err := s.cordon(ctx, req.GetHost(), true, reason, ""); err != nil { // Repeating it does no harm, and the id is the run's.
			return nil, err
		}
	}
	if len(proposals) == 0 {
		return response, nil
	}
	first := proposals[0]
	response.Plans, response.Warnings = []*coordinatorv1.Plan{first.Plan}, first.Warnings
	response.Run, err = s.start(ctx, first, startRequest{planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// others counts the stacks but one.
func others(stacks []string, but string) uint32 {
	var n uint32
	for _, name := range stacks {
		if name != but {
			n++
		}
	}
	return n
}

package api

import (
	"context"
	"regexp"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/spheroseg/muster/coordinator/internal/definition"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ProcedureServer serves ProcedureService.
type ProcedureServer struct {
	coordinatorv1.UnimplementedProcedureServiceServer
	*backend
}

// findingsTold is how many findings the details of an error hold: a status must fit into the headers of an answer.
const findingsTold = 20

var fileName = regexp.MustCompile(`^[^\x00-\x1f\x7f]{0,255}$`)

// LintProcedure checks a file and stores nothing.
func (s *ProcedureServer) LintProcedure(_ context.Context, req *coordinatorv1.LintProcedureRequest) (*coordinatorv1.LintProcedureResponse, error) {
	if !fileName.MatchString(req.GetFile()) {
		return nil, invalid("file is not a name of at most 255 characters")
	}
	return &coordinatorv1.LintProcedureResponse{Findings: definition.Load(req.GetFile(), req.GetSource()).Findings}, nil
}

// PutProcedure stores a version of a procedure.
func (s *ProcedureServer) PutProcedure(ctx context.Context, req *coordinatorv1.PutProcedureRequest) (*coordinatorv1.PutProcedureResponse, error) {
	if err := checkRequest(req.GetRequestId(), "", true); err != nil {
		return nil, err
	}
	document, err := s.load(req.GetFile(), req.GetSource())
	if err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(),
		Op: &raftv1.Command_PutProcedure{PutProcedure: &raftv1.PutProcedure{Procedure: &coordinatorv1.StoredProcedure{
			Name: document.Procedure.GetName(), Title: document.Procedure.GetTitle(), Source: req.GetSource(),
		}}},
	})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.PutProcedureResponse{Procedure: withoutSource(result.GetProcedure()), Findings: document.Warnings()}, nil
}

// load reads a file that must be free of errors.
func (s *ProcedureServer) load(file string, source []byte) (*definition.Document, error) {
	if !fileName.MatchString(file) {
		return nil, invalid("file is not a name of at most 255 characters")
	}
	document := definition.Load(file, source)
	err := document.Err()
	if err == nil {
		return document, nil
	}
	status, ok := rpcerr.Status(err)
	if !ok {
		return nil, s.mapError(err)
	}
	var details []protoadapt.MessageV1
	for _, finding := range document.Findings[:min(len(document.Findings), findingsTold)] {
		details = append(details, protoadapt.MessageV1Of(finding))
	}
	if detailed, err := status.WithDetails(details...); err == nil {
		status = detailed
	}
	return nil, status.Err()
}

func withoutSource(stored *coordinatorv1.StoredProcedure) *coordinatorv1.StoredProcedure {
	short := proto.CloneOf(stored)
	if short != nil {
		short.Source = nil
	}
	return short
}

// ListProcedures returns the procedures in order of their names.
func (s *ProcedureServer) ListProcedures(ctx context.Context, req *coordinatorv1.ListProceduresRequest) (*coordinatorv1.ListProceduresResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	response := &coordinatorv1.ListProceduresResponse{}
	for _, stored := range view.Procedures() {
		response.Procedures = append(response.Procedures, withoutSource(stored))
	}
	return response, nil
}

// GetProcedure returns one procedure.
func (s *ProcedureServer) GetProcedure(ctx context.Context, req *coordinatorv1.GetProcedureRequest) (*coordinatorv1.GetProcedureResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	stored, err := findProcedure(view, req.GetName())
	return &coordinatorv1.GetProcedureResponse{Procedure: stored}, err
}

func findProcedure(view *state.View, name string) (*coordinatorv1.StoredProcedure, error) {
	stored := view.Procedure(name)
	if stored == nil {
		return nil, notFound(coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_NOT_FOUND, "there is no procedure %q: `musterctl procedure list` shows them", name)
	}
	return stored, nil
}

// DeleteProcedure forgets a procedure; its runs stay.
func (s *ProcedureServer) DeleteProcedure(ctx context.Context, req *coordinatorv1.DeleteProcedureRequest) (*coordinatorv1.DeleteProcedureResponse, error) {
	if err := checkRequest(req.GetRequestId(), "", true); err != nil {
		return nil, err
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if view.Request(req.GetRequestId()) == nil { // Repeated, it is gone already, and the state knows the answer.
		if _, err := findProcedure(view, req.GetName()); err != nil {
			return nil, err
		}
	}
	_, err = s.propose(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(), Op: &raftv1.Command_DropProcedure{DropProcedure: &raftv1.DropProcedure{Name: req.GetName()}},
	})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.DeleteProcedureResponse{}, nil
}

// StartProcedure plans a procedure against the fleet and, unless it is a dry run, starts it.
func (s *ProcedureServer) StartProcedure(ctx context.Context, req *coordinatorv1.StartProcedureRequest) (*coordinatorv1.StartProcedureResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), !req.GetDryRun()); err != nil {
		return nil, err
	}
	if (req.GetName() == "") == (len(req.GetSource()) == 0) {
		return nil, invalid("give the name of a stored procedure, or the source of one that is not stored")
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	file, source := req.GetFile(), req.GetSource()
	if req.GetName() != "" {
		stored, err := findProcedure(view, req.GetName())
		if err != nil {
			return nil, err
		}
		file, source = stored.GetName(), stored.GetSource()
	}
	document, err := s.load(file, source)
	if err != nil {
		return nil, err
	}
	run, err := replayedProcedure(view, req, document.Procedure.GetName())
	if run != nil || err != nil {
		return &coordinatorv1.StartProcedureResponse{Plan: view.Plan(run.GetId()), Run: run}, err
	}
	proposal, err := definition.Compile(ctx, document, req.GetInputs(), definition.Fleet{View: view, Planner: s.planner})
	if err != nil {
		return nil, s.mapError(err)
	}
	run, err = s.start(ctx, proposal, startRequest{dryRun: req.GetDryRun(), planHash: req.GetPlanHash(), requestID: req.GetRequestId(), reason: req.GetReason()})
	if err != nil {
		return nil, err
	}
	warnings := proposal.Warnings
	for _, finding := range document.Warnings() {
		warnings = append(warnings, definition.Line(finding))
	}
	return &coordinatorv1.StartProcedureResponse{Plan: proposal.Plan, Run: run, Warnings: warnings}, nil
}

// replayedProcedure returns the run that an earlier call with the same request id started.
func replayedProcedure(view *state.View, req *coordinatorv1.StartProcedureRequest, name string) (*coordinatorv1.Run, error) {
	if req.GetRequestId() == "" || req.GetDryRun() || view.Request(req.GetRequestId()) == nil {
		return nil, nil
	}
	run := view.RunOfRequest(req.GetRequestId())
	if run == nil || run.GetProcedure() != name {
		return nil, rpcerr.New(codes.AlreadyExists, coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED,
			"request id %q was used for another request: use a new one", req.GetRequestId())
	}
	return run, nil
}

package api

import (
	"context"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// operationServer serves OperationService.
type operationServer struct {
	agentv1.UnimplementedOperationServiceServer
	base
}

// CancelOperation ends a running operation that has no effect.
func (s *operationServer) CancelOperation(_ context.Context, req *agentv1.CancelOperationRequest) (*agentv1.CancelOperationResponse, error) {
	if err := valid(req); err != nil {
		return nil, invalid(err)
	}
	if err := s.ledger.Cancel(req.GetOperationId(), req.GetEpoch()); err != nil {
		return nil, s.wire(err)
	}
	return &agentv1.CancelOperationResponse{}, nil
}

// ListOperations returns what the ledger holds.
func (s *operationServer) ListOperations(_ context.Context, req *agentv1.ListOperationsRequest) (*agentv1.ListOperationsResponse, error) {
	if epoch := req.GetEpoch(); epoch > 0 {
		if err := s.ledger.Meet(epoch); err != nil {
			return nil, s.wire(err)
		}
	}
	return &agentv1.ListOperationsResponse{Operations: s.ledger.List(req.GetPrefix(), int(req.GetLimit()))}, nil
}

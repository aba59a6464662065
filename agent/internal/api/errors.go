package api

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// wire is the agent's one map from errors to what a caller gets. A definite failure of an operation passes as it is; nothing else may look
// like one, for the caller would take it for the operation's outcome.
func (b base) wire(err error) error {
	var failure *rpcerr.OperationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failure):
		return failure
	case errors.Is(err, ledger.ErrStaleEpoch):
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "%v", err)
	case errors.Is(err, ledger.ErrUnknown):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, ledger.ErrClosed), errors.Is(err, ledger.ErrBroken):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	default:
		b.logger.Error("internal error", "err", err)
		return status.Error(codes.Internal, "the agent could not answer; its log has the cause")
	}
}

// wireRead maps the error of a method that is no operation: a capability's failure is told by a code and a reason.
func (b base) wireRead(err error) error {
	var failure *rpcerr.OperationError
	if !errors.As(err, &failure) {
		return b.wire(err)
	}
	switch message := failure.Failure.GetMessage(); failure.Failure.GetReason() {
	case agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND:
		return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, "%s", message)
	case agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND:
		return status.Error(codes.NotFound, message)
	case agentv1.FailureReason_FAILURE_REASON_INVALID:
		return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "%s", message)
	case agentv1.FailureReason_FAILURE_REASON_REFUSED:
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_POLICY, "%s", message)
	default:
		return status.Error(codes.Unavailable, message)
	}
}

// invalid is the answer to a request that cannot be served as it stands.
func invalid(err error) error {
	return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "%v", err)
}

package api

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// mapError is the one place where errors become statuses. An error that has a status keeps it; one that nobody foresaw is logged, and told as
// internal without its text.
func (b *backend) mapError(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := rpcerr.Status(err); ok {
		return s.Err()
	}
	switch {
	case errors.Is(err, cluster.ErrNoLeader):
		return rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER,
			"the coordinators have no leader now: more than half of them must be up; `musterctl operator raft peers` shows them")
	case errors.Is(err, cluster.ErrInvalidCommand):
		return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_TOO_LARGE,
			"this is more than the coordinators can agree on in one step (%s): make it smaller, for example one stack of this into two", err)
	case errors.Is(err, cluster.ErrOutcomeUnknown):
		return rpcerr.New(codes.Unknown, coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"leadership was lost while the request was under way: repeat it with the same request id")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the request was cancelled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the request did not end in time")
	}
	b.log.Error("request failed", "err", err)
	return status.Error(codes.Internal, "internal error: the coordinator's log tells more")
}

// refusalError is the error of a command that the state refused.
func refusalError(refusal *raftv1.CommandError) error {
	reason := coordinatorv1.ErrorReason(refusal.GetReason())
	return rpcerr.New(refusalCode(reason), reason, "%s", refusal.GetMessage())
}

// refusalCode is the code that tells a program which knows no reasons whether and how to go on. Codes of errors that are not the state's are
// the same, wherever they are made.
func refusalCode(reason coordinatorv1.ErrorReason) codes.Code {
	switch reason {
	case coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND,
		coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, coordinatorv1.ErrorReason_ERROR_REASON_RELEASE_NOT_FOUND,
		coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, coordinatorv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND,
		coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND, coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_NOT_FOUND,
		coordinatorv1.ErrorReason_ERROR_REASON_PEER_NOT_FOUND:
		return codes.NotFound
	case coordinatorv1.ErrorReason_ERROR_REASON_INVALID, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID,
		coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_INVALID, coordinatorv1.ErrorReason_ERROR_REASON_SNAPSHOT_INVALID:
		return codes.InvalidArgument
	case coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT:
		return codes.Aborted
	case coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED:
		return codes.AlreadyExists
	case coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED:
		return codes.PermissionDenied
	case coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY:
		return codes.Unauthenticated
	case coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, coordinatorv1.ErrorReason_ERROR_REASON_STALE:
		return codes.Unavailable
	case coordinatorv1.ErrorReason_ERROR_REASON_TOO_LARGE, coordinatorv1.ErrorReason_ERROR_REASON_RATE_LIMITED:
		return codes.ResourceExhausted
	case coordinatorv1.ErrorReason_ERROR_REASON_COMPACTED:
		return codes.OutOfRange
	case coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:
		return codes.Unknown
	case coordinatorv1.ErrorReason_ERROR_REASON_UNSPECIFIED:
		return codes.Internal // nobody foresaw it
	}
	return codes.FailedPrecondition
}

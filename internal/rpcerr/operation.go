package rpcerr

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// maxEvidence is what the contract allows in OperationFailure.evidence.
const maxEvidence = 2048

// OperationError is the definite failure of an operation on a host: the agent knows that it failed and why.
// Any other error of a call to an agent leaves the outcome open.
type OperationError struct {
	// Failure is what crosses the wire.
	Failure *agentv1.OperationFailure
}

// Fail returns a definite failure. A permanent one would fail again in the same way.
func Fail(reason agentv1.FailureReason, permanent bool, format string, args ...any) *OperationError {
	return &OperationError{Failure: &agentv1.OperationFailure{
		Reason:    reason,
		Permanent: permanent,
		Message:   strings.ToValidUTF8(fmt.Sprintf(format, args...), "\uFFFD"),
	}}
}

// WithEvidence returns a copy of e that carries the end of text, which is where logs tell why: at most 2048 bytes of valid UTF-8.
func (e *OperationError) WithEvidence(text string) *OperationError {
	text = strings.ToValidUTF8(text, "?")
	if len(text) > maxEvidence {
		text = text[len(text)-maxEvidence:]
		for len(text) > 0 && !utf8.RuneStart(text[0]) {
			text = text[1:]
		}
	}
	f := e.Failure
	return &OperationError{Failure: &agentv1.OperationFailure{
		OperationId: f.GetOperationId(),
		Reason:      f.GetReason(),
		Message:     f.GetMessage(),
		Permanent:   f.GetPermanent(),
		Evidence:    text,
	}}
}

// Error returns the message for the operator.
func (e *OperationError) Error() string { return e.Failure.GetMessage() }

// GRPCStatus lets grpc-go send e: an ABORTED status whose detail is the failure.
func (e *OperationError) GRPCStatus() *status.Status {
	st := status.New(codes.Aborted, e.Failure.GetMessage())
	full, err := st.WithDetails(e.Failure)
	if err != nil { // a field that is not valid UTF-8 cannot be sent: without the detail the outcome stays open, which is safe.
		return st
	}
	return full
}

// Failure returns the definite failure in err, made here or received over gRPC; false means that err leaves the outcome open.
func Failure(err error) (*agentv1.OperationFailure, bool) {
	var local *OperationError
	if errors.As(err, &local) {
		return local.Failure, true
	}
	st, ok := statusOf(err)
	if !ok {
		return nil, false
	}
	for _, d := range st.Details() {
		if f, ok := d.(*agentv1.OperationFailure); ok {
			return f, true
		}
	}
	return nil, false
}

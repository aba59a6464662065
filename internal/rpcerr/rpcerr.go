// Package rpcerr owns the shape of errors that cross a wire: a gRPC status with one ErrorInfo, by which a client may decide what to do.
// Which code and reason an error has is left to the services; failures of operations on a host are in operation.go.
package rpcerr

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Domain is the domain of every ErrorInfo made here.
const Domain = "muster"

// reasonPrefix is what the names of the enum values have and the reasons on the wire have not.
const reasonPrefix = "ERROR_REASON_"

// New returns an error with a code, a reason and a message for the operator.
func New(code codes.Code, reason fmt.Stringer, format string, args ...any) error {
	info := &errdetails.ErrorInfo{Reason: strings.TrimPrefix(reason.String(), reasonPrefix), Domain: Domain}
	return withDetails(code, fmt.Sprintf(format, args...), info)
}

// WithMetadata adds facts to the ErrorInfo of err. An error without an ErrorInfo of ours, and nil, are returned as they are.
func WithMetadata(err error, kv map[string]string) error {
	st, ok := statusOf(err)
	if !ok {
		return err
	}
	found := false
	details := make([]protoadapt.MessageV1, 0, len(st.Details()))
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			found = true
			if info.Metadata == nil {
				info.Metadata = make(map[string]string, len(kv))
			}
			maps.Copy(info.Metadata, kv)
		}
		if m, ok := d.(protoadapt.MessageV1); ok {
			details = append(details, m)
		}
	}
	if !found {
		return err
	}
	return withDetails(st.Code(), st.Message(), details...)
}

// Reason returns the reason of err, such as STACK_INVALID, and "" if it has none.
func Reason(err error) string {
	if info := infoOf(err); info != nil {
		return info.GetReason()
	}
	return ""
}

// Metadata returns the facts of err; nil if there are none.
func Metadata(err error) map[string]string {
	return infoOf(err).GetMetadata()
}

// Message returns what err says to an operator, without gRPC's words in it; "" for nil.
func Message(err error) string {
	if err == nil {
		return ""
	}
	st, ok := statusOf(err)
	if !ok {
		return err.Error()
	}
	return strings.ReplaceAll(err.Error(), st.Err().Error(), st.Message())
}

// Status returns what to answer with: the status in the chain of err, its details kept, with the Message of err. False means that there is none.
func Status(err error) (*status.Status, bool) {
	st, ok := statusOf(err)
	if !ok {
		return nil, false
	}
	p := st.Proto()
	p.Message = strings.ToValidUTF8(Message(err), "\uFFFD")
	return status.FromProto(p), true
}

func infoOf(err error) *errdetails.ErrorInfo {
	st, ok := statusOf(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info
		}
	}
	return nil
}

// statusOf finds the status in the chain of err without the text of what wraps it, which status.FromError would put in front.
func statusOf(err error) (*status.Status, bool) {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil, false
	}
	st := s.GRPCStatus()
	return st, st != nil && st.Code() != codes.OK
}

func withDetails(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st := status.New(code, strings.ToValidUTF8(message, "\uFFFD"))
	full, err := st.WithDetails(details...)
	if err != nil { // only for codes.OK, or a detail that is not valid UTF-8: the plain status is better than none.
		return st.Err()
	}
	return full.Err()
}

// Package output owns what musterctl writes and with which code it exits: tables, JSON, YAML, times, errors. What is
// written and when is the commands' concern, in package command.
package output

import (
	"google.golang.org/grpc/codes"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Code is an exit code of musterctl.
type Code int

// The exit codes. Scripts rely on them: a code is never given another meaning.
const (
	CodeDone        Code = 0
	CodeFailed      Code = 1
	CodeUsage       Code = 2
	CodeNotFound    Code = 3
	CodeDenied      Code = 4
	CodeDeclined    Code = 5
	CodeDetached    Code = 6
	CodeUnreachable Code = 7
	CodeRefused     Code = 8
	CodePartly      Code = 9
	CodeChanges     Code = 10
	CodeInterrupted Code = 130
)

// CodeInfo is one line of the table of exit codes.
type CodeInfo struct {
	Code    Code
	Meaning string
	// Statuses are the gRPC codes that end in this exit code.
	Statuses []codes.Code
	// Runs are the states of a followed run that end in this exit code.
	Runs []coordinatorv1.RunState
}

// Codes returns the table of exit codes. It is the only place that says which code means what.
func Codes() []CodeInfo {
	return []CodeInfo{
		{CodeDone, "done, or nothing to do", []codes.Code{codes.OK},
			[]coordinatorv1.RunState{coordinatorv1.RunState_RUN_STATE_SUCCEEDED}},
		{CodeFailed, "the run failed, or an unexpected error",
			[]codes.Code{codes.Unknown, codes.Internal, codes.Aborted, codes.Unimplemented, codes.DataLoss},
			[]coordinatorv1.RunState{
				coordinatorv1.RunState_RUN_STATE_ROLLED_BACK,
				coordinatorv1.RunState_RUN_STATE_FAILED,
				coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN,
			}},
		{CodeUsage, "usage, bad input, or a confirmation flag is missing",
			[]codes.Code{codes.InvalidArgument, codes.OutOfRange}, nil},
		{CodeNotFound, "no such host, stack, service, release or run", []codes.Code{codes.NotFound}, nil},
		{CodeDenied, "not logged in, or not allowed", []codes.Code{codes.Unauthenticated, codes.PermissionDenied}, nil},
		{CodeDeclined, "declined at the prompt, or the run was cancelled", []codes.Code{codes.Canceled},
			[]coordinatorv1.RunState{coordinatorv1.RunState_RUN_STATE_CANCELLED}},
		{CodeDetached, "detached, or --timeout passed; a run that was started goes on", []codes.Code{codes.DeadlineExceeded}, nil},
		{CodeUnreachable, "no leader, or no coordinator answers", []codes.Code{codes.Unavailable}, nil},
		{CodeRefused, "refused by a guard: lock held, gate red, stale plan, no capacity",
			[]codes.Code{codes.FailedPrecondition, codes.AlreadyExists, codes.ResourceExhausted}, nil},
		{CodePartly, "partly: some hosts did not answer, or a check is red", nil, nil},
		{CodeChanges, "the plan has changes (--detailed-exitcode)", nil, nil},
		{CodeInterrupted, "stopped by Ctrl-C before anything was started", nil, nil},
	}
}

// CodeOfStatus returns the exit code of a gRPC code.
func CodeOfStatus(c codes.Code) Code {
	for _, info := range Codes() {
		for _, s := range info.Statuses {
			if s == c {
				return info.Code
			}
		}
	}
	return CodeFailed
}

// CodeOfRun returns the exit code of a run in state s. The second result is false for a state in which a run goes on by
// itself or by an operator's word.
func CodeOfRun(s coordinatorv1.RunState) (Code, bool) {
	for _, info := range Codes() {
		for _, r := range info.Runs {
			if r == s {
				return info.Code, true
			}
		}
	}
	return CodeFailed, false
}

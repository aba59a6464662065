package output_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// TestCodes has one case for each line of the table of exit codes: what ends in it.
func TestCodes(t *testing.T) {
	run := func(s coordinatorv1.RunState) output.Code {
		code, ok := output.CodeOfRun(s)
		if !ok {
			return -1
		}
		return code
	}
	grpc := func(c codes.Code) output.Code { return output.CodeOf(output.FromRPC("x", status.Error(c, "y"), nil)) }
	tests := []struct {
		line  output.Code
		cases map[string]output.Code
	}{
		{0, map[string]output.Code{"no error": output.CodeOf(nil), "succeeded": run(coordinatorv1.RunState_RUN_STATE_SUCCEEDED)}},
		{1, map[string]output.Code{
			"rolled back": run(coordinatorv1.RunState_RUN_STATE_ROLLED_BACK), "failed": run(coordinatorv1.RunState_RUN_STATE_FAILED),
			"needs human": run(coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN), "internal": grpc(codes.Internal), "unknown": grpc(codes.Unknown),
			"aborted": grpc(codes.Aborted), "unimplemented": grpc(codes.Unimplemented), "data loss": grpc(codes.DataLoss), "any error": output.CodeOf(errors.New("x")),
		}},
		{2, map[string]output.Code{
			"usage": output.CodeOf(output.Usage("", "x")), "invalid": grpc(codes.InvalidArgument), "out of range": grpc(codes.OutOfRange),
			"too large": output.CodeOf(output.FromRPC("x", rpcerr.New(codes.ResourceExhausted, coordinatorv1.ErrorReason_ERROR_REASON_TOO_LARGE, "y"), nil)),
		}},
		{3, map[string]output.Code{"not found": grpc(codes.NotFound)}},
		{4, map[string]output.Code{"unauthenticated": grpc(codes.Unauthenticated), "denied": grpc(codes.PermissionDenied)}},
		{5, map[string]output.Code{"cancelled run": run(coordinatorv1.RunState_RUN_STATE_CANCELLED), "cancelled": grpc(codes.Canceled)}},
		{6, map[string]output.Code{"deadline": grpc(codes.DeadlineExceeded), "our own": output.CodeOf(fmt.Errorf("x: %w", context.DeadlineExceeded))}},
		{7, map[string]output.Code{
			"unavailable": grpc(codes.Unavailable),
			"no leader":   output.CodeOf(output.FromRPC("x", rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "y"), nil)),
		}},
		{8, map[string]output.Code{"precondition": grpc(codes.FailedPrecondition), "exists": grpc(codes.AlreadyExists), "exhausted": grpc(codes.ResourceExhausted)}},
		{9, map[string]output.Code{"partly": output.CodeOf(output.Exit{Code: output.CodePartly})}},
		{10, map[string]output.Code{"changes": output.CodeOf(output.Exit{Code: output.CodeChanges})}},
		{130, map[string]output.Code{"interrupted": output.CodeOf(fmt.Errorf("x: %w", context.Canceled))}},
	}
	table := output.Codes()
	if len(table) != len(tests) {
		t.Fatalf("the table has %d lines, and %d are tested", len(table), len(tests))
	}
	for i, tt := range tests {
		if table[i].Code != tt.line || table[i].Meaning == "" {
			t.Errorf("line %d of the table is %d (%s), want %d", i, table[i].Code, table[i].Meaning, tt.line)
		}
		for name, got := range tt.cases {
			if got != tt.line {
				t.Errorf("%s: exit code %d, want %d", name, got, tt.line)
			}
		}
	}
}

// TestEveryStateHasItsPlace makes sure that a state or a code which is added later is not forgotten here.
func TestEveryStateHasItsPlace(t *testing.T) {
	goesOn := map[coordinatorv1.RunState]bool{
		coordinatorv1.RunState_RUN_STATE_UNSPECIFIED: true, coordinatorv1.RunState_RUN_STATE_RUNNING: true,
		coordinatorv1.RunState_RUN_STATE_PAUSED: true, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK: true,
	}
	for n := range coordinatorv1.RunState_name {
		s := coordinatorv1.RunState(n)
		if _, ended := output.CodeOfRun(s); ended == goesOn[s] {
			t.Errorf("%s: has an exit code %v, goes on %v", s, ended, goesOn[s])
		}
	}
	seen := map[codes.Code]int{}
	for _, line := range output.Codes() {
		for _, c := range line.Statuses {
			seen[c]++
		}
	}
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		if seen[c] != 1 {
			t.Errorf("%s is on %d lines of the table, want 1", c, seen[c])
		}
	}
}

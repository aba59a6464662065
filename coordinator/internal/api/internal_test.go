package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// A new reason must be given a code here: what it falls through to is seldom what it means.
func TestEveryReasonHasACode(t *testing.T) {
	want := map[string]codes.Code{
		"UNSPECIFIED": codes.Internal, "STACK_INVALID": codes.InvalidArgument, "STACK_NOT_FOUND": codes.NotFound,
		"RELEASE_NOT_FOUND": codes.NotFound, "IMAGE_NOT_FOUND": codes.NotFound, "SECRET_NOT_FOUND": codes.NotFound,
		"NO_GATE": codes.FailedPrecondition, "NO_CAPACITY": codes.FailedPrecondition, "HOST_DOWN": codes.FailedPrecondition,
		"PORT_TAKEN": codes.FailedPrecondition, "PLACEMENT": codes.FailedPrecondition, "PLAN_CHANGED": codes.FailedPrecondition,
		"LOCK_HELD": codes.FailedPrecondition, "CONFLICT": codes.Aborted, "RUN_NOT_FOUND": codes.NotFound,
		"RUN_FINISHED": codes.FailedPrecondition, "RUN_NOT_RUNNING": codes.FailedPrecondition, "RUN_NOT_PAUSED": codes.FailedPrecondition,
		"HOST_NOT_FOUND": codes.NotFound, "NO_LEADER": codes.Unavailable, "NOT_LEADER": codes.FailedPrecondition,
		"OUTCOME_UNKNOWN": codes.Unknown, "JOIN_DENIED": codes.PermissionDenied, "NOT_ALLOWED": codes.PermissionDenied,
		"UNKNOWN_IDENTITY": codes.Unauthenticated, "INVALID": codes.InvalidArgument, "TOO_LARGE": codes.ResourceExhausted,
		"COMPACTED": codes.OutOfRange, "REQUEST_REUSED": codes.AlreadyExists, "STALE": codes.Unavailable,
		"POLICY": codes.FailedPrecondition, "RATE_LIMITED": codes.ResourceExhausted, "SERVICE_NOT_FOUND": codes.NotFound,
		"CANNOT_DRAIN": codes.FailedPrecondition, "STEP_NOT_ASKING": codes.FailedPrecondition, "PROCEDURE_INVALID": codes.InvalidArgument,
		"PROCEDURE_NOT_FOUND": codes.NotFound, "PEER_NOT_FOUND": codes.NotFound, "QUORUM": codes.FailedPrecondition,
		"SNAPSHOT_INVALID": codes.InvalidArgument,
	}
	for number, name := range coordinatorv1.ErrorReason_name {
		reason := strings.TrimPrefix(name, "ERROR_REASON_")
		err := refusalError(&raftv1.CommandError{Reason: number, Message: "why"})
		code, known := want[reason]
		if !known || status.Code(err) != code || rpcerr.Message(err) != "why" {
			t.Errorf("%s is %v with message %q, want %s (in this table: %t)", reason, status.Code(err), rpcerr.Message(err), code, known)
		}
		if number != 0 && rpcerr.Reason(err) != reason {
			t.Errorf("%s came out as %q", reason, rpcerr.Reason(err))
		}
	}
}

func TestErrorsAreMappedOnce(t *testing.T) {
	var logged strings.Builder
	b := &backend{log: slog.New(slog.NewTextHandler(&logged, nil))}
	wrap := func(err error) error { return fmt.Errorf("somewhere: %w", err) }
	for _, test := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{wrap(cluster.ErrNoLeader), codes.Unavailable, "NO_LEADER"},
		{wrap(cluster.ErrInvalidCommand), codes.InvalidArgument, "TOO_LARGE"},
		{wrap(cluster.ErrOutcomeUnknown), codes.Unknown, "OUTCOME_UNKNOWN"},
		{wrap(context.Canceled), codes.Canceled, ""},
		{wrap(context.DeadlineExceeded), codes.DeadlineExceeded, ""},
		{wrap(noRun("r-1")), codes.NotFound, "RUN_NOT_FOUND"},
	} {
		if err := b.mapError(test.err); status.Code(err) != test.code || rpcerr.Reason(err) != test.reason {
			t.Errorf("%v became %v, want %s with %q", test.err, err, test.code, test.reason)
		}
	}
	if logged.Len() > 0 {
		t.Errorf("errors that callers are told were logged: %s", logged.String())
	}
	err := b.mapError(errors.New("the disk at /secret is full"))
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("an error that nobody foresaw was told as %v", err)
	}
	if !strings.Contains(logged.String(), "the disk at /secret is full") {
		t.Errorf("it was not logged: %q", logged.String())
	}
	if b.mapError(nil) != nil {
		t.Error("no error became one")
	}
}

func TestSelector(t *testing.T) {
	labels := map[string]string{"zone": "a", "role": "db"}
	for selector, want := range map[string]bool{
		"": true, "zone=a": true, "zone==a": true, "zone=b": false, "zone!=b": true, "zone!=a": false,
		"zone=a,role=db": true, "zone=a,role=web": false, "zone = a , role != web": true, "zone=a,,": true,
		"gpu=yes": false, "gpu!=yes": true, "gpu=": true, "zone=": false, "zone!=": true,
	} {
		matches, err := parseSelector(selector)
		if err != nil {
			t.Errorf("%q: %v", selector, err)
			continue
		}
		if got := matches(labels); got != want {
			t.Errorf("%q matches: %t, want %t", selector, got, want)
		}
	}
	for _, selector := range []string{"zone", "=a", "!=a", "zone=a,role", " = "} {
		if _, err := parseSelector(selector); rpcerr.Reason(err) != "INVALID" || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v, want it refused", selector, err)
		}
	}
}

func TestTokenLife(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{0: 15 * time.Minute, time.Second: time.Second, 24 * time.Hour: 24 * time.Hour} {
		if got, err := life(given); err != nil || got != want {
			t.Errorf("life(%s) = %s, %v, want %s", given, got, err, want)
		}
	}
	for _, given := range []time.Duration{-1, -time.Hour, 24*time.Hour + 1, 1 << 62} {
		if got, err := life(given); rpcerr.Reason(err) != "INVALID" {
			t.Errorf("life(%s) = %s, %v, want it refused", given, got, err)
		}
	}
}

func TestJoinAddress(t *testing.T) {
	coordinator := accessv1.Role_ROLE_COORDINATOR
	for _, address := range []string{"c1.example:7443", "10.0.0.1:7443", "[fd00::1]:7443", strings.Repeat("a", 250) + ":7443"} {
		if err := checkAddress(coordinator, address); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
	for _, address := range []string{
		"", "c1", ":7443", "c1:", "c1:0", "c1:port", "c1:70000", "c1:7443:1", strings.Repeat("a", 251) + ":7443", strings.Repeat("a", 200<<10) + ":7443",
	} {
		if err := checkAddress(coordinator, address); rpcerr.Reason(err) != "INVALID" || len(err.Error()) > 1000 {
			t.Errorf("%.40q: %.300v, want it refused briefly", address, err)
		}
	}
	for _, role := range []accessv1.Role{accessv1.Role_ROLE_AGENT, accessv1.Role_ROLE_ADMIN} {
		if err := checkAddress(role, ""); err != nil {
			t.Errorf("%s without an address: %v", role, err)
		}
		if err := checkAddress(role, "h1:1"); rpcerr.Reason(err) != "INVALID" {
			t.Errorf("%s with an address: %v, want it refused", role, err)
		}
	}
}

package rpcerr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const invalid = coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID

// received returns the error that a client gets.
func received(t *testing.T, err error) error {
	t.Helper()
	st, ok := rpcerr.Status(err)
	if !ok {
		t.Fatalf("%v is not a status", err)
	}
	data, merr := proto.Marshal(st.Proto())
	if merr != nil {
		t.Fatal(merr)
	}
	p := st.Proto()
	proto.Reset(p)
	if merr := proto.Unmarshal(data, p); merr != nil {
		t.Fatal(merr)
	}
	return status.ErrorProto(p)
}

func TestErrorsCrossTheWire(t *testing.T) {
	err := rpcerr.New(codes.InvalidArgument, invalid, "key %q is not supported", "links")
	err = rpcerr.WithMetadata(err, map[string]string{"file": "compose.yaml"})
	err = rpcerr.WithMetadata(err, map[string]string{"line": "7"})
	for name, err := range map[string]error{
		"local": err, "received": received(t, err), "wrapped": fmt.Errorf("apply: %w", err), "received wrapped": received(t, fmt.Errorf("apply: %w", err)),
	} {
		if got := rpcerr.Reason(err); got != "STACK_INVALID" {
			t.Errorf("%s: Reason = %q", name, got)
		}
		if got := status.Code(err); got != codes.InvalidArgument {
			t.Errorf("%s: Code = %v", name, got)
		}
		if m := rpcerr.Metadata(err); m["file"] != "compose.yaml" || m["line"] != "7" {
			t.Errorf("%s: Metadata = %v", name, m)
		}
		want := `key "links" is not supported`
		if strings.HasSuffix(name, "wrapped") {
			want = "apply: " + want
		}
		if got := rpcerr.Message(err); got != want {
			t.Errorf("%s: Message = %q, want %q", name, got, want)
		}
	}
}

func TestErrorsWithoutReason(t *testing.T) {
	for _, tc := range []struct {
		err     error
		message string
	}{
		{nil, ""}, {errors.New("disk full"), "disk full"}, {status.Error(codes.Unavailable, "gone"), "gone"}, {context.Canceled, "context canceled"},
	} {
		if got := rpcerr.Reason(tc.err); got != "" {
			t.Errorf("Reason(%v) = %q", tc.err, got)
		}
		if got := rpcerr.Message(tc.err); got != tc.message {
			t.Errorf("Message(%v) = %q, want %q", tc.err, got, tc.message)
		}
		if got := rpcerr.WithMetadata(tc.err, map[string]string{"a": "b"}); !errors.Is(got, tc.err) {
			t.Errorf("WithMetadata(%v) = %v", tc.err, got)
		}
		if st, ok := rpcerr.Status(tc.err); ok && st.Code() != codes.Unavailable {
			t.Errorf("Status(%v) = %v", tc.err, st)
		}
		if f, ok := rpcerr.Failure(tc.err); ok {
			t.Errorf("Failure(%v) = %v: only an agent's word is definite", tc.err, f)
		}
	}
	if f, ok := rpcerr.Failure(rpcerr.New(codes.Aborted, invalid, "x")); ok {
		t.Errorf("Failure of an ErrorInfo = %v", f)
	}
}

func TestInvalidUTF8IsSent(t *testing.T) {
	err := received(t, rpcerr.New(codes.NotFound, invalid, "image %s", "a\xffb"))
	if rpcerr.Reason(err) != "STACK_INVALID" || !utf8.ValidString(rpcerr.Message(err)) {
		t.Errorf("%q with reason %q", rpcerr.Message(err), rpcerr.Reason(err))
	}
}

func TestOperationError(t *testing.T) {
	const reason = agentv1.FailureReason_FAILURE_REASON_NOT_READY
	log := "first line\n" + strings.Repeat("é", 2000) + "\xff\xfepanic: last line"
	plain := rpcerr.Fail(reason, true, "web-1 %s", "was not\xff ready")
	err := plain.WithEvidence(log)
	if plain.Failure.GetEvidence() != "" {
		t.Error("WithEvidence changed its receiver")
	}
	for name, err := range map[string]error{"local": err, "wrapped": fmt.Errorf("await: %w", err), "received": received(t, err)} {
		f, ok := rpcerr.Failure(err)
		if !ok || f.GetReason() != reason || !f.GetPermanent() || f.GetMessage() != "web-1 was not\uFFFD ready" {
			t.Errorf("%s: Failure = %v, %v", name, f, ok)
		}
		ev := f.GetEvidence()
		if len(ev) > 2048 || len(ev) < 2040 || !utf8.ValidString(ev) || !strings.HasSuffix(ev, "panic: last line") {
			t.Errorf("%s: evidence of %d bytes ends %q", name, len(ev), ev[max(0, len(ev)-20):])
		}
	}
	if got := rpcerr.Fail(reason, false, "x").WithEvidence("short").Failure.GetEvidence(); got != "short" {
		t.Errorf("evidence %q", got)
	}
}

package api_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	restart = coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART
	stop    = coordinatorv1.ServiceVerb_SERVICE_VERB_STOP
)

// released puts a release of a stack in place: service web with an instance on h1, service idle without any.
func (w *world) released(stack string) {
	w.t.Helper()
	w.propose(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: &coordinatorv1.Plan{Procedure: "rolling-update", Stack: stack, ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)},
		Release: &coordinatorv1.Release{
			Stack: stack, Number: 1,
			Services: []*coordinatorv1.Service{
				{Name: "idle", Template: &agentv1.ContainerSpec{Image: "idle@sha256:1"}},
				{Name: "web", Replicas: 1, Template: &agentv1.ContainerSpec{Image: "web@sha256:1"}},
			},
			Assignments: []*coordinatorv1.Assignment{{Service: "web", Slot: 1, Host: "h1", Container: stack + ".web.1.r1", Release: 1}},
		},
	}}})
}

func TestOperateServiceRefusals(t *testing.T) {
	w := newWorld(t)
	w.released("shop")
	w.host("h1", nil)
	services := coordinatorv1.NewServiceServiceClient(w.conn)
	for name, test := range map[string]struct {
		req    *coordinatorv1.OperateServiceRequest
		code   codes.Code
		reason string
	}{
		"no request id":    {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: restart}, codes.InvalidArgument, "INVALID"},
		"no verb":          {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", RequestId: "a"}, codes.InvalidArgument, "INVALID"},
		"a long reason":    {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: restart, DryRun: true, Reason: strings.Repeat("r", 1001)}, codes.InvalidArgument, "INVALID"},
		"no such stack":    {&coordinatorv1.OperateServiceRequest{Stack: "shpo", Service: "web", Verb: restart, DryRun: true}, codes.NotFound, "STACK_NOT_FOUND"},
		"no such service":  {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "wbe", Verb: restart, DryRun: true}, codes.NotFound, "SERVICE_NOT_FOUND"},
		"a host not up":    {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: restart, RequestId: "b"}, codes.FailedPrecondition, "HOST_DOWN"},
		"another plan":     {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "idle", Verb: stop, RequestId: "c", PlanHash: "other"}, codes.FailedPrecondition, "PLAN_CHANGED"},
		"no instance at 3": {&coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: stop, DryRun: true, Slots: []uint32{3}}, codes.InvalidArgument, "INVALID"},
	} {
		if _, err := services.OperateService(t.Context(), test.req); status.Code(err) != test.code || rpcerr.Reason(err) != test.reason {
			t.Errorf("%s: %v, want %s with %s", name, err, test.code, test.reason)
		}
	}
	if len(w.state.View().ActiveRuns()) > 0 {
		t.Error("a refused request has started a run")
	}
}

func TestOperateServiceWithNothingToDo(t *testing.T) {
	w := newWorld(t)
	w.released("shop")
	runs := len(w.state.View().Runs())
	answer, err := coordinatorv1.NewServiceServiceClient(w.conn).OperateService(t.Context(), &coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "idle", Verb: stop, RequestId: "a"})
	if err != nil || answer.GetRun() != nil || answer.GetPlan().GetHash() == "" || answer.GetPlan().GetTitle() != "stop shop/idle" {
		t.Errorf("the answer is %v, %v", answer, err)
	}
	if now := len(w.state.View().Runs()); now != runs {
		t.Errorf("%d runs were started", now-runs)
	}
}

// TestOperateServiceRepeated: a request that has been carried out is not planned again.
func TestOperateServiceRepeated(t *testing.T) {
	w := newWorld(t)
	w.released("shop")
	run := w.propose(&raftv1.Command{RequestId: "once", Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		StackRevision: w.state.View().Stack("shop").GetRevision(),
		Plan: &coordinatorv1.Plan{
			Procedure: "restart", Stack: "shop", MaxDuration: durationpb.New(time.Hour), Hash: "h", Locks: []string{"stack/shop"},
			Changes: []*coordinatorv1.ServiceChange{{Service: "web", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE}},
			Steps:   []*coordinatorv1.Step{{Id: "s", Host: "h1", Timeout: durationpb.New(time.Minute), Action: &coordinatorv1.Action{Method: "test/do"}}},
		},
	}}}).GetRun()
	services := coordinatorv1.NewServiceServiceClient(w.conn)
	answer, err := services.OperateService(t.Context(), &coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: restart, RequestId: "once"})
	if err != nil || answer.GetRun().GetId() != run.GetId() || answer.GetPlan().GetHash() != "h" {
		t.Errorf("the repeated request: %v, %v, want run %s", answer, err, run.GetId())
	}
	for name, req := range map[string]*coordinatorv1.OperateServiceRequest{
		"another verb":    {Stack: "shop", Service: "web", Verb: stop, RequestId: "once"},
		"another service": {Stack: "shop", Service: "idle", Verb: restart, RequestId: "once"},
		"another stack":   {Stack: "other", Service: "web", Verb: restart, RequestId: "once"},
	} {
		if _, err := services.OperateService(t.Context(), req); rpcerr.Reason(err) != "REQUEST_REUSED" {
			t.Errorf("%s with the same request id: %v", name, err)
		}
	}
	if _, err := services.OperateService(t.Context(), &coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: stop, RequestId: "new"}); rpcerr.Reason(err) != "LOCK_HELD" {
		t.Errorf("while a run changes the stack: %v", err)
	}
}

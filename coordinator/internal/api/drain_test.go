package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// willing is a host's agent that agrees to whatever is planned.
type willing struct{}

// Invoke answers a call.
func (willing) Invoke(_ context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	switch r := request.(type) {
	case *agentv1.ResolveImageRequest:
		proto.Merge(response.(proto.Message), &agentv1.ResolveImageResponse{Pinned: r.GetImage(), Present: true})
	case *agentv1.ListContainersRequest, *agentv1.CheckContainersRequest:
	default:
		return status.Errorf(codes.Unimplemented, "the test's agent has no %s", method)
	}
	return nil
}

// NewStream is not needed by planners.
func (willing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

// towns makes two hosts that are up, and stacks with four instances each, two on each host.
func towns(t *testing.T, stacks ...string) *world {
	t.Helper()
	w := newWorld(t)
	for _, host := range []string{"h1", "h2"} {
		w.host(host, nil)
		w.is(host, coordinatorv1.HostState_HOST_STATE_UP)
	}
	w.servers.Reach(func(_ context.Context, host string) (grpc.ClientConnInterface, error) {
		if w.state.View().Host(host).GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			return nil, errors.New("no connection")
		}
		return willing{}, nil
	})
	for _, name := range stacks {
		release := &coordinatorv1.Release{Stack: name, Number: 1, Services: []*coordinatorv1.Service{{
			Name: "web", Replicas: 4, Image: "web", Template: &agentv1.ContainerSpec{Image: "registry.test/web@sha256:" + strings.Repeat("0", 64)},
			Gate: &agentv1.Gate{Probe: &agentv1.Gate_Running{Running: &agentv1.RunningProbe{}}}, Update: &coordinatorv1.UpdatePolicy{Parallelism: 1, Order: "start-first"},
		}}}
		for slot := range uint32(4) {
			release.Assignments = append(release.Assignments, &coordinatorv1.Assignment{
				Service: "web", Slot: slot + 1, Host: fmt.Sprintf("h%d", slot%2+1), Release: 1, Container: stack.ContainerName(name, "web", slot+1, 1),
			})
		}
		w.propose(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
			Plan: &coordinatorv1.Plan{Procedure: "test", Stack: name, ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)}, Release: release,
		}}})
	}
	return w
}

func (w *world) is(host string, state coordinatorv1.HostState) {
	w.propose(&raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: []*raftv1.HostUpdate{{
		Host: host, State: state, Inventory: &agentv1.Inventory{Address: "10.0.0." + host[1:], NanoCpus: 4e9, MemoryBytes: 4 << 30},
	}}}}})
}

// do carries out all steps of a run.
func (w *world) do(run *coordinatorv1.Run) {
	w.t.Helper()
	for range 1000 {
		open := w.state.View().OpenSteps()
		if len(open) == 0 {
			return
		}
		for _, step := range open {
			w.propose(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{
				Epoch: w.epoch, Outcomes: []*raftv1.Outcome{{RunId: run.GetId(), StepId: step.GetStepId(), Attempt: step.GetAttempt()}},
			}}})
		}
	}
	w.t.Fatalf("run %s never ends", run.GetId())
}

func TestCordon(t *testing.T) {
	w := towns(t)
	hosts := coordinatorv1.NewHostServiceClient(w.conn)
	answer, err := hosts.CordonHost(t.Context(), &coordinatorv1.CordonHostRequest{Host: "h1", Reason: "disk", RequestId: "a"})
	if err != nil || !answer.GetHost().GetCordoned() || answer.GetHost().GetCordonReason() != "disk" || answer.GetHost().GetCordonedBy() == "" {
		t.Fatalf("host %v, %v", answer.GetHost(), err)
	}
	freed, err := hosts.UncordonHost(t.Context(), &coordinatorv1.UncordonHostRequest{Host: "h1", RequestId: "b"})
	if err != nil || freed.GetHost().GetCordoned() || freed.GetHost().GetCordonReason() != "" {
		t.Fatalf("host %v, %v", freed.GetHost(), err)
	}
	if _, err := hosts.CordonHost(t.Context(), &coordinatorv1.CordonHostRequest{Host: "h9", RequestId: "c"}); rpcerr.Reason(err) != "HOST_NOT_FOUND" {
		t.Errorf("error %v", err)
	}
	if _, err := hosts.CordonHost(t.Context(), &coordinatorv1.CordonHostRequest{Host: "h1"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a request id: %v", err)
	}
}

func TestScaleService(t *testing.T) {
	w := towns(t, "shop")
	services := coordinatorv1.NewServiceServiceClient(w.conn)
	req := &coordinatorv1.ScaleServiceRequest{Stack: "shop", Service: "web", Replicas: 6, DryRun: true}
	seen, err := services.ScaleService(t.Context(), req)
	if err != nil || seen.GetRun() != nil || len(seen.GetPlan().GetSteps()) == 0 {
		t.Fatalf("dry run: %v, %v", seen, err)
	}
	req.DryRun, req.RequestId, req.PlanHash = false, "a", "other"
	if _, err := services.ScaleService(t.Context(), req); rpcerr.Reason(err) != "PLAN_CHANGED" {
		t.Errorf("another plan: %v", err)
	}
	req.PlanHash = seen.GetPlan().GetHash()
	started, err := services.ScaleService(t.Context(), req)
	if err != nil || started.GetRun().GetProcedure() != "scale" {
		t.Fatalf("start: %v, %v", started, err)
	}
	again, err := services.ScaleService(t.Context(), req)
	if err != nil || again.GetRun().GetId() != started.GetRun().GetId() {
		t.Errorf("repeated: %v, %v", again.GetRun(), err)
	}
	req.Replicas = 5
	if _, err := services.ScaleService(t.Context(), req); rpcerr.Reason(err) != "REQUEST_REUSED" {
		t.Errorf("the id for another number: %v", err)
	}
	req.RequestId, req.PlanHash = "b", ""
	if _, err := services.ScaleService(t.Context(), req); rpcerr.Reason(err) != "LOCK_HELD" {
		t.Errorf("while a run changes the stack: %v", err)
	}
	w.do(started.GetRun())
	if release := w.state.View().CurrentRelease("shop"); release.GetNumber() != 2 || len(release.GetAssignments()) != 6 || release.GetServices()[0].GetReplicas() != 6 {
		t.Errorf("release %v", release)
	}
	req.Replicas = 6
	if same, err := services.ScaleService(t.Context(), req); err != nil || same.GetRun() != nil || len(same.GetPlan().GetSteps()) > 0 {
		t.Errorf("nothing to do: %v, %v", same, err)
	}
	for reason, bad := range map[string]*coordinatorv1.ScaleServiceRequest{
		"STACK_NOT_FOUND":   {Stack: "none", Service: "web", RequestId: "c"},
		"SERVICE_NOT_FOUND": {Stack: "shop", Service: "wep", RequestId: "c"},
		"PLACEMENT":         {Stack: "shop", Service: "web", Replicas: 20000, RequestId: "c"},
		"INVALID":           {Stack: "shop", Service: "web"},
	} {
		if _, err := services.ScaleService(t.Context(), bad); rpcerr.Reason(err) != reason {
			t.Errorf("error %v, want %s", err, reason)
		}
	}
}

// TestDrainHost calls again and again, as musterctl does, until no run comes back.
func TestDrainHost(t *testing.T) {
	w := towns(t, "shop", "zoo")
	hosts := coordinatorv1.NewHostServiceClient(w.conn)
	seen, err := hosts.DrainHost(t.Context(), &coordinatorv1.DrainHostRequest{Host: "h2", DryRun: true})
	if err != nil || len(seen.GetPlans()) != 2 || seen.GetRun() != nil || w.state.View().Host("h2").GetCordoned() {
		t.Fatalf("dry run: %v, %v, cordoned %t", seen, err, w.state.View().Host("h2").GetCordoned())
	}
	hash := seen.GetPlans()[0].GetHash()
	for i, want := range []string{"shop", "zoo"} {
		req := &coordinatorv1.DrainHostRequest{Host: "h2", RequestId: want, PlanHash: hash, Reason: "kernel", Deadline: durationpb.New(time.Minute)}
		if i == 0 {
			if _, err := hosts.DrainHost(t.Context(), &coordinatorv1.DrainHostRequest{Host: "h2", RequestId: "x", PlanHash: "other"}); rpcerr.Reason(err) != "PLAN_CHANGED" {
				t.Errorf("another plan: %v", err)
			}
			if w.state.View().Host("h2").GetCordoned() {
				t.Error("a plan that changed left the host cordoned")
			}
			req.Deadline = nil // The plan that was seen had none.
		}
		answer, err := hosts.DrainHost(t.Context(), req)
		if err != nil || answer.GetRun().GetStack() != want || answer.GetRemaining() != uint32(1-i) {
			t.Fatalf("%s: %v, %v", want, answer, err)
		}
		if again, err := hosts.DrainHost(t.Context(), req); err != nil || again.GetRun().GetId() != answer.GetRun().GetId() || again.GetRemaining() != uint32(1-i) {
			t.Errorf("repeated: %v, %v", again, err)
		}
		if host := w.state.View().Host("h2"); !host.GetCordoned() || host.GetCordonReason() != "kernel" {
			t.Errorf("host %v", host)
		}
		w.do(answer.GetRun())
		for _, a := range w.state.View().CurrentRelease(want).GetAssignments() {
			if a.GetHost() != "h1" {
				t.Errorf("%s is on %s", a.GetContainer(), a.GetHost())
			}
		}
		hash = ""
	}
	end, err := hosts.DrainHost(t.Context(), &coordinatorv1.DrainHostRequest{Host: "h2", RequestId: "c"})
	if err != nil || end.GetRun() != nil || len(end.GetPlans()) > 0 {
		t.Errorf("at the end: %v, %v", end, err)
	}
}

func TestDrainHostRefusals(t *testing.T) {
	w := towns(t, "shop")
	hosts := coordinatorv1.NewHostServiceClient(w.conn)
	drain := func(req *coordinatorv1.DrainHostRequest) string {
		t.Helper()
		req.RequestId = "a"
		_, err := hosts.DrainHost(t.Context(), req)
		return rpcerr.Reason(err)
	}
	for _, test := range []struct {
		want string
		req  *coordinatorv1.DrainHostRequest
	}{
		{"HOST_NOT_FOUND", &coordinatorv1.DrainHostRequest{Host: "h9"}},
		{"STACK_NOT_FOUND", &coordinatorv1.DrainHostRequest{Host: "h2", Stack: "none"}},
		{"CANNOT_DRAIN", &coordinatorv1.DrainHostRequest{Host: "h2", Lost: true}},
		{"INVALID", &coordinatorv1.DrainHostRequest{Host: "h2", Deadline: durationpb.New(-time.Second)}},
	} {
		if got := drain(test.req); got != test.want {
			t.Errorf("%v: %s, want %s", test.req, got, test.want)
		}
	}
	if _, err := hosts.CordonHost(t.Context(), &coordinatorv1.CordonHostRequest{Host: "h1", RequestId: "b"}); err != nil {
		t.Fatal(err)
	}
	if got := drain(&coordinatorv1.DrainHostRequest{Host: "h2"}); got != "CANNOT_DRAIN" {
		t.Errorf("with nowhere to go: %s", got)
	}
	if w.state.View().Host("h2").GetCordoned() || len(w.state.View().ActiveRuns()) > 0 {
		t.Error("what was refused left something behind")
	}
}

func TestDrainOfALostHost(t *testing.T) {
	w := towns(t, "shop")
	hosts := coordinatorv1.NewHostServiceClient(w.conn)
	w.is("h2", coordinatorv1.HostState_HOST_STATE_DOWN)
	if _, err := hosts.DrainHost(t.Context(), &coordinatorv1.DrainHostRequest{Host: "h2", RequestId: "a"}); rpcerr.Reason(err) != "HOST_DOWN" || !strings.Contains(err.Error(), "--lost") {
		t.Errorf("not said to be lost: %v", err)
	}
	answer, err := hosts.DrainHost(t.Context(), &coordinatorv1.DrainHostRequest{Host: "h2", Lost: true, RequestId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	w.do(answer.GetRun())
	shop := w.state.View().Stack("shop")
	if len(shop.GetAbandoned()) != 2 || shop.GetAbandoned()[0].GetContainer() != "shop.web.2.r1" || shop.GetCurrentRelease() != 2 {
		t.Errorf("stack %v", shop)
	}
}

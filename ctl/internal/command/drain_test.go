package command_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func drainPlan(stack string) *coordinatorv1.Plan {
	return &coordinatorv1.Plan{
		Procedure: "drain", Title: "drain host web-1 of stack " + stack, Stack: stack, Hash: "hash-" + stack, Locks: []string{"stack/" + stack}, MaxDuration: durationpb.New(time.Hour),
		Changes: []*coordinatorv1.ServiceChange{{Service: "api", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE, InstancesBefore: 2, InstancesAfter: 2, Order: "start-first", Parallelism: 1}},
		Notes:   []string{"from host web-1: api.1 to web-2"},
		Steps:   []*coordinatorv1.Step{{Id: "api.1/create", Title: "create", Host: "web-2"}, {Id: "api.1/stop", Title: "stop", Host: "web-1"}},
	}
}

// draining lets the coordinator drain web-1 of two stacks, one for each call. The runs of the stacks in bad are rolled back.
func (d *desk) draining(bad ...string) {
	d.fill()
	n := d.cluster.Nodes[0]
	left := []string{"demo", "zoo"}
	coordinatortest.On(n, "DrainHost", func(_ context.Context, q *coordinatorv1.DrainHostRequest) (*coordinatorv1.DrainHostResponse, error) {
		if q.GetHost() == "web-2" {
			return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_CANNOT_DRAIN,
				"host web-2 cannot be drained, because of 1 of its instances; nothing was changed\n  demo.db.1: its data is there (volume data)")
		}
		if q.GetHost() != "web-1" {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q", q.GetHost())
		}
		if len(left) == 0 {
			return &coordinatorv1.DrainHostResponse{}, nil
		}
		if q.GetDryRun() {
			a := &coordinatorv1.DrainHostResponse{Warnings: []string{"host web-1 drives a proxy"}}
			for _, stack := range left {
				a.Plans = append(a.Plans, drainPlan(stack))
			}
			return a, nil
		}
		stack := left[0]
		if q.GetPlanHash() != "" && q.GetPlanHash() != "hash-"+stack {
			return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED, "the plan has changed")
		}
		left = left[1:]
		return &coordinatorv1.DrainHostResponse{
			Plans: []*coordinatorv1.Plan{drainPlan(stack)}, Remaining: uint32(len(left)),
			Run: &coordinatorv1.Run{Id: "r-" + stack, Stack: stack, State: coordinatorv1.RunState_RUN_STATE_RUNNING, CreatedAt: ago(time.Second), StepsTotal: 2},
		}, nil
	})
	n.OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		stack := strings.TrimPrefix(q.GetRunId(), "r-")
		run := &coordinatorv1.Run{Id: q.GetRunId(), Stack: stack, State: coordinatorv1.RunState_RUN_STATE_SUCCEEDED, CreatedAt: ago(time.Second), FinishedAt: ago(0), StepsTotal: 2, StepsSettled: 2, Revision: 9}
		if slices.Contains(bad, stack) {
			run.State, run.Cause = coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, "api.1 was never ready"
		}
		return s.Send(&coordinatorv1.WatchRunResponse{Index: 9, Run: run})
	})
}

func TestDrain(t *testing.T) {
	d := loggedIn(t, 1)
	d.draining()
	golden(t, "drain", d.transcript("host drain web-1 --dry-run", "host drain web-1 --dry-run --detailed-exitcode -o name", "host drain web-1", "host drain web-2 --yes", "host drain web-9 --yes",
		"host drain web-1 --yes --progress plain --reason kernel --deadline 10m", "host drain web-1 --yes"))
	var ids []string
	for _, m := range d.cluster.Nodes[0].Calls("DrainHost") {
		q := m.(*coordinatorv1.DrainHostRequest)
		if q.GetHost() != "web-1" || q.GetDryRun() {
			continue
		}
		if slices.Contains(ids, q.GetRequestId()) || q.GetRequestId() == "" {
			t.Errorf("request id %q of %v", q.GetRequestId(), ids)
		}
		ids = append(ids, q.GetRequestId())
		if first := len(ids) == 1; (q.GetPlanHash() != "") != first {
			t.Errorf("call %d has the hash %q", len(ids), q.GetPlanHash())
		}
	}
	if len(ids) != 4 { // Two stacks, the end, and the end again.
		t.Errorf("%d calls", len(ids))
	}
}

func TestDrainStopsWithTheFirstFailure(t *testing.T) {
	d := loggedIn(t, 1)
	d.draining("demo")
	r := d.run("host drain web-1 --yes --progress quiet")
	if r.code != 1 || !strings.Contains(r.stderr, "musterctl host drain web-1 goes on") || strings.Contains(r.stdout, "r-zoo") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestDrainStopsAtAPause: a drain that has passed its deadline asks, and musterctl does not wait for the answer.
func TestDrainStopsAtAPause(t *testing.T) {
	d := loggedIn(t, 1)
	d.draining()
	d.cluster.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		run := &coordinatorv1.Run{Id: q.GetRunId(), Stack: "demo", State: coordinatorv1.RunState_RUN_STATE_PAUSED, Cause: "the run did not end within 10m0s", CreatedAt: ago(time.Second), Revision: 9}
		if err := s.Send(&coordinatorv1.WatchRunResponse{Index: 9, Run: run}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	})
	r := d.run("host drain web-1 --yes --progress plain")
	for _, want := range []string{"run/r-demo is paused: the run did not end within 10m0s", "musterctl run resume r-demo", "musterctl host drain web-1 goes on"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q is not in\n%s", want, r.stderr)
		}
	}
	if r.code != 6 {
		t.Errorf("exit code %d", r.code)
	}
}

func TestDrainDetached(t *testing.T) {
	d := loggedIn(t, 1)
	d.draining()
	r := d.run("host drain web-1 --yes --detach --stack demo --lost")
	if r.code != 0 || !strings.Contains(r.stderr, "1 more stack has instances on web-1") || strings.Contains(r.stdout, "zoo") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for _, m := range d.cluster.Nodes[0].Calls("DrainHost") {
		if q := m.(*coordinatorv1.DrainHostRequest); !q.GetLost() || q.GetStack() != "demo" {
			t.Errorf("request %v", q)
		}
	}
}

func TestCordonCommands(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	n := d.cluster.Nodes[0]
	host := &coordinatorv1.Host{Name: "web-1", State: coordinatorv1.HostState_HOST_STATE_UP, StateSince: ago(time.Hour), JoinedAt: ago(time.Hour)}
	coordinatortest.On(n, "CordonHost", func(_ context.Context, q *coordinatorv1.CordonHostRequest) (*coordinatorv1.CordonHostResponse, error) {
		if q.GetHost() != "web-1" {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q", q.GetHost())
		}
		host.Cordoned, host.CordonedBy, host.CordonReason = true, alice, q.GetReason()
		return &coordinatorv1.CordonHostResponse{Host: host}, nil
	})
	coordinatortest.On(n, "UncordonHost", func(context.Context, *coordinatorv1.UncordonHostRequest) (*coordinatorv1.UncordonHostResponse, error) {
		host.Cordoned = false
		return &coordinatorv1.UncordonHostResponse{Host: host}, nil
	})
	coordinatortest.On(n, "ListHosts", func(context.Context, *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
		return &coordinatorv1.ListHostsResponse{Hosts: []*coordinatorv1.Host{host}}, nil
	})
	coordinatortest.On(n, "GetHost", func(context.Context, *coordinatorv1.GetHostRequest) (*coordinatorv1.GetHostResponse, error) {
		return &coordinatorv1.GetHostResponse{Host: host}, nil
	})
	golden(t, "cordon", d.transcript("host cordon web-1 --reason disk", "host list", "host show web-1", "host cordon wep-1", "host undrain web-1", "host uncordon host/web-1 -o name", "host list"))
}

func TestScale(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "ScaleService", func(_ context.Context, q *coordinatorv1.ScaleServiceRequest) (*coordinatorv1.ScaleServiceResponse, error) {
		if q.GetReplicas() > 100 {
			return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NO_CAPACITY, "service api needs 1 GiB of memory for instance 9: web-1 has 512 MiB of 4 GiB memory free")
		}
		p := &coordinatorv1.Plan{
			Procedure: "scale", Title: fmt.Sprintf("scale api of demo from 2 to %d", q.GetReplicas()), Stack: "demo", Hash: "3f9c0000", MaxDuration: durationpb.New(time.Hour),
			Changes: []*coordinatorv1.ServiceChange{{Service: "api", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE, InstancesBefore: 2, InstancesAfter: q.GetReplicas(), Order: "start-first", Parallelism: 1}},
		}
		a := &coordinatorv1.ScaleServiceResponse{Plan: p}
		if q.GetReplicas() == 2 {
			p.Changes = nil
			return a, nil
		}
		p.Steps = []*coordinatorv1.Step{{Id: "api.3/create", Title: "create", Host: "web-2"}}
		if !q.GetDryRun() {
			a.Run = runs()[0]
		}
		return a, nil
	})
	n.OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		return s.Send(ended(coordinatorv1.RunState_RUN_STATE_SUCCEEDED))
	})
	golden(t, "scale", d.transcript("service scale demo/api 3 --dry-run", "service scale api 3 --progress plain", "service scale demo/api 2", "service scale demo/api 0", "service scale demo/api 0 --yes --progress quiet -o name",
		"service scale demo/api 200", "service scale web 3", "service scale wbe 3", "service scale demo/api many", "service scale demo/api"))
}

// TestLostHostIsTold: whoever looks sees which instances are on a host that does not answer.
func TestLostHostIsTold(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	n := d.cluster.Nodes[0]
	lost := hosts()
	lost[1].State = coordinatorv1.HostState_HOST_STATE_DOWN
	coordinatortest.On(n, "ListHosts", func(context.Context, *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
		return &coordinatorv1.ListHostsResponse{Hosts: lost}, nil
	})
	for _, line := range []string{"status", "stack show demo", "service ps demo/api"} {
		r := d.run(line)
		for _, want := range []string{"host web-2 does not answer for 14s: 1 instance of stack demo there (api.2)", "musterctl host drain web-2 --lost"} {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("%s says nothing of %q:\n%s", line, want, r.stderr)
			}
		}
		if strings.Contains(r.stderr, "by themselves") {
			t.Errorf("%s promises what nobody asked for:\n%s", line, r.stderr)
		}
	}
	coordinatortest.On(n, "GetStack", func(context.Context, *coordinatorv1.GetStackRequest) (*coordinatorv1.GetStackResponse, error) {
		r := release()
		r.Services[0].OnHostLost, r.Services[0].ReplaceAfter = "replace", durationpb.New(time.Minute)
		return &coordinatorv1.GetStackResponse{Stack: &coordinatorv1.Stack{Name: "demo", Abandoned: []*coordinatorv1.Abandoned{{Host: "web-2", Container: "demo.api.9.r1"}}}, Release: r}, nil
	})
	r := d.run("stack show demo")
	if !strings.Contains(r.stderr, "they are started elsewhere by themselves at 2025-01-02T12:00:46Z") || !strings.Contains(r.stdout, "demo.api.9.r1 on web-2") {
		t.Errorf("stdout %s\nstderr %s", r.stdout, r.stderr)
	}
}

// TestPolicyAloneIsApplied: a release that differs in a policy takes no steps, and must be put in place all the same.
func TestPolicyAloneIsApplied(t *testing.T) {
	p := plan()
	p.Steps, p.Changes = nil, p.Changes[:1]
	p.Changes[0].Fields = []*coordinatorv1.FieldChange{{Path: "on_host_lost", After: "replace"}}
	d := planner(t, 1, p)
	coordinatortest.On(d.cluster.Nodes[0], "ApplyStack", func(_ context.Context, q *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
		a := &coordinatorv1.ApplyStackResponse{Plan: p, Release: release()}
		if !q.GetDryRun() {
			a.Run = runs()[0]
		}
		return a, nil
	})
	r := d.run("stack apply --progress plain")
	if r.code != 0 || !strings.Contains(r.stdout, "release 3 of stack demo is current") || strings.Contains(r.stderr, "nothing to do") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := d.run("stack diff --detailed-exitcode"); r.code != 10 {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
}

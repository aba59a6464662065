package command_test

import (
	"context"
	"strings"
	"testing"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// answering lets the coordinator take answers and locks be listed.
func answering(t *testing.T) *desk {
	t.Helper()
	d := loggedIn(t, 1)
	d.fill()
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "DecideStep", func(context.Context, *coordinatorv1.DecideStepRequest) (*coordinatorv1.DecideStepResponse, error) {
		return &coordinatorv1.DecideStepResponse{Run: runs()[0]}, nil
	})
	coordinatortest.On(n, "ResolveStep", func(context.Context, *coordinatorv1.ResolveStepRequest) (*coordinatorv1.ResolveStepResponse, error) {
		return &coordinatorv1.ResolveStepResponse{Run: runs()[0]}, nil
	})
	coordinatortest.On(n, "ListLocks", func(context.Context, *coordinatorv1.ListLocksRequest) (*coordinatorv1.ListLocksResponse, error) {
		return &coordinatorv1.ListLocksResponse{Locks: []*coordinatorv1.HeldLock{{
			Name: "stack/demo", RunId: "r-3", Fence: 112, TakenAt: ago(90e9), Reason: "apply demo, release 4", Owner: "spiffe://user.fleet.muster/operator/alice",
		}}}, nil
	})
	return d
}

func TestAnswers(t *testing.T) {
	d := answering(t)
	for _, line := range []string{
		"run approve r-3 --plan 3f9c01d2ab45 --step ask --reason seen",
		"run reject run/r-3 --plan 3f9c01d2ab45",
		"run resolve r-3 --step swap --done --reason looked",
		"run resolve r-3 --not-done",
		"run resolve r-3 --failed",
	} {
		if r := d.run(line); r.code != 0 {
			t.Errorf("%s: exit code %d: %s", line, r.code, r.stderr)
		}
	}
	n := d.cluster.Nodes[0]
	var decisions, resolutions []string
	for _, m := range n.Calls("DecideStep") {
		q := m.(*coordinatorv1.DecideStepRequest)
		word := map[bool]string{true: "yes", false: "no"}[q.GetApprove()]
		decisions = append(decisions, strings.Join([]string{q.GetRunId(), q.GetStepId(), q.GetPlanHash(), word, q.GetReason()}, "|"))
		if q.GetRequestId() == "" {
			t.Error("an answer without a request id")
		}
	}
	for _, m := range n.Calls("ResolveStep") {
		q := m.(*coordinatorv1.ResolveStepRequest)
		resolutions = append(resolutions, q.GetStepId()+"|"+q.GetResolution().String()+"|"+q.GetReason())
	}
	if got, want := strings.Join(decisions, " "), "r-3|ask|3f9c01d2ab45|yes|seen r-3||3f9c01d2ab45|no|"; got != want {
		t.Errorf("decisions %s, want %s", got, want)
	}
	if got, want := strings.Join(resolutions, " "), "swap|RESOLUTION_DONE|looked |RESOLUTION_NOT_DONE| |RESOLUTION_FAILED|"; got != want {
		t.Errorf("resolutions %s, want %s", got, want)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	d := answering(t)
	for _, tt := range []struct{ line, want string }{
		{"run approve r-3", "needs the hash of the plan that was seen"},
		{"run resolve r-3", "say one of --done, --not-done and --failed, not 0 of them"},
		{"run resolve r-3 --done --failed", "not 2 of them"},
		{"run approve", "RUN"},
	} {
		if r := d.run(tt.line); r.code != 2 || !strings.Contains(r.stderr, tt.want) {
			t.Errorf("%s: exit code %d, %q; want 2 and %q", tt.line, r.code, r.stderr, tt.want)
		}
	}
	for _, method := range []string{"DecideStep", "ResolveStep"} {
		if n := len(d.cluster.Nodes[0].Calls(method)); n > 0 {
			t.Errorf("%s was called %d times", method, n)
		}
	}
}

func TestLockList(t *testing.T) {
	r := answering(t).run("lock list")
	for _, want := range []string{"stack/demo", "r-3", "112", "alice", "apply demo, release 4"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in\n%s", want, r.stdout)
		}
	}
}

// TestSupersede ends the run before, follows it, and then starts the new one.
func TestSupersede(t *testing.T) {
	d := planner(t, 1, plan())
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "ApplyStack", func(_ context.Context, q *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
		if len(n.Calls("ApplyStack")) == 1 {
			before := runs()[0]
			before.Id = "r-2"
			return &coordinatorv1.ApplyStackResponse{Superseded: before}, nil
		}
		return &coordinatorv1.ApplyStackResponse{Plan: plan(), Run: runs()[0]}, nil
	})
	r := d.run("stack apply --supersede --yes")
	if r.code != 0 || !strings.Contains(r.stderr, "run/r-2 is taken back first") {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	calls := n.Calls("ApplyStack")
	if len(calls) != 2 {
		t.Fatalf("%d calls", len(calls))
	}
	for _, m := range calls {
		q := m.(*coordinatorv1.ApplyStackRequest)
		if !q.GetSupersede() || q.GetDryRun() || q.GetRequestId() != calls[0].(*coordinatorv1.ApplyStackRequest).GetRequestId() {
			t.Errorf("request %v", q)
		}
	}
	if r := d.run("stack apply --supersede"); r.code == 0 {
		t.Error("a run was taken back without a word")
	}
}

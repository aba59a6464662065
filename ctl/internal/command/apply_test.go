package command_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const composeFile = "services:\n  api: {image: 'api:${VERSION}', env_file: api.env}\n"

// planner returns a desk with a compose file and coordinators that plan p.
func planner(t *testing.T, nodes int, p *coordinatorv1.Plan, warnings ...string) *desk {
	t.Helper()
	d := loggedIn(t, nodes)
	d.file("compose.yaml", composeFile)
	d.file("api.env", "A=1\n")
	d.env["VERSION"] = "2"
	d.fill()
	d.planning(p, warnings...)
	return d
}

func TestPlanView(t *testing.T) {
	d := planner(t, 1, plan(), "service api: container_name is not used: Muster names instances itself")
	golden(t, "plan", d.transcript("stack apply --dry-run", "stack apply --dry-run -o wide", "stack apply --dry-run --detailed-exitcode -o name", "stack diff", "stack diff --detailed-exitcode",
		"stack apply", "stack apply --plan 3f9c0000 --progress quiet", "stack apply --plan stale", "stack apply --detach", "stack apply --detach -o name", "stack rollback demo", "stack rollback demo --dry-run",
		"stack rollback demo --yes --progress quiet", "stack rollback deom -y"))
	for _, m := range d.cluster.Nodes[0].Calls("ApplyStack") {
		q := m.(*coordinatorv1.ApplyStackRequest)
		if !q.GetDryRun() && (q.GetRequestId() == "" || q.GetPlanHash() == "") {
			t.Errorf("a plan was started without its hash or a request id: %v", q)
		}
	}
}

func TestNothingToDo(t *testing.T) {
	p := plan()
	p.Steps, p.Changes = nil, p.Changes[2:]
	d := planner(t, 1, p, "service api: container_name is not used")
	golden(t, "nothing", d.transcript("stack apply", "stack apply -o json", "stack apply --dry-run --detailed-exitcode", "stack diff --detailed-exitcode"))
	for _, m := range d.cluster.Nodes[0].Calls("ApplyStack") {
		if !m.(*coordinatorv1.ApplyStackRequest).GetDryRun() {
			t.Error("a plan without steps was started")
		}
	}
}

// TestRemovalNeedsAWord makes sure that a pipeline never removes a service by accident.
func TestRemovalNeedsAWord(t *testing.T) {
	d := planner(t, 1, removal())
	golden(t, "removal", d.transcript("stack apply", "stack apply --yes", "stack apply --plan 3f9c0000"))
	started := 0
	for _, m := range d.cluster.Nodes[0].Calls("ApplyStack") {
		if !m.(*coordinatorv1.ApplyStackRequest).GetDryRun() {
			started++
		}
	}
	if started != 2 {
		t.Errorf("%d were started, want 2", started)
	}
}

// TestWhatIsSent looks at the request of an apply.
func TestWhatIsSent(t *testing.T) {
	d := planner(t, 1, plan())
	if r := d.run("stack apply -y --no-gate --profile a,b --name n --request-id id-1 --reason", "two words"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	calls := d.cluster.Nodes[0].Calls("ApplyStack")
	if len(calls) != 2 {
		t.Fatalf("%d calls, want 2", len(calls))
	}
	q := calls[1].(*coordinatorv1.ApplyStackRequest)
	s := q.GetSource()
	if q.GetDryRun() || q.GetPlanHash() != "3f9c0000" || q.GetRequestId() != "id-1" || q.GetReason() != "two words" || !q.GetNoGate() {
		t.Errorf("request %v", q)
	}
	if s.GetName() != "n" || s.GetProjectDirectory() != d.dir || strings.Join(s.GetComposeFiles(), " ") != "compose.yaml" || strings.Join(s.GetProfiles(), " ") != "a b" || len(s.GetFiles()) != 2 ||
		string(s.GetFiles()[1].GetContent()) != "A=1\n" || len(s.GetEnvironment()) != 1 || s.GetEnvironment()["VERSION"] != "2" {
		t.Errorf("source %v", s)
	}
}

// TestEndsOfRuns has one case for each state in which a run ends.
func TestEndsOfRuns(t *testing.T) {
	var b strings.Builder
	for _, state := range []coordinatorv1.RunState{
		coordinatorv1.RunState_RUN_STATE_SUCCEEDED, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, coordinatorv1.RunState_RUN_STATE_FAILED,
		coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN, coordinatorv1.RunState_RUN_STATE_CANCELLED,
	} {
		d := planner(t, 1, plan())
		d.cluster.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
			a := ended(state)
			if state == coordinatorv1.RunState_RUN_STATE_ROLLED_BACK {
				a.Steps = runDetail().GetSteps()
			}
			if state == coordinatorv1.RunState_RUN_STATE_CANCELLED {
				a.Run.Cause, a.Run.CancelledBy = "", alice
			}
			return s.Send(a)
		})
		fmt.Fprintf(&b, "%s\n%s\n", state, d.transcript("stack apply --progress quiet", "run watch r-3", "run watch run/r-3 -o name"))
	}
	golden(t, "ends", b.String())
}

// TestFollowingAcrossCoordinators kills the coordinator that shows the run and starts nothing twice.
func TestFollowingAcrossCoordinators(t *testing.T) {
	d := planner(t, 3, plan())
	d.cluster.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		if err := s.Send(&coordinatorv1.WatchRunResponse{Index: 4, Run: runs()[0], Steps: runDetail().GetSteps()[:1]}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	})
	d.stderr = when{"web.1/pull done", func() {
		d.cluster.Nodes[0].Stop()
		d.cluster.Nodes[1].Stop()
	}}
	r := d.run("stack apply -y")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "run/r-3 succeeded: release 3 of stack demo is current (12 of 12 steps, ") {
		t.Errorf("exit code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if want := "connection to c1:7443 was lost, following run/r-3 on c3:7443\n"; strings.Count(r.stderr, "connection") != 1 || !strings.Contains(r.stderr, want) {
		t.Errorf("want %q in\n%s", want, r.stderr)
	}
	if q := d.cluster.Nodes[2].Calls("WatchRun")[0].(*coordinatorv1.WatchRunRequest); q.GetFromIndex() != 4 {
		t.Errorf("resumed at %d, want 4", q.GetFromIndex())
	}
	if n := len(d.cluster.Nodes[2].Calls("ApplyStack")); n != 0 {
		t.Errorf("it was applied again, %d times", n)
	}
}

// when does something when a text is written.
type when struct {
	text string
	do   func()
}

func (w when) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.text)) {
		w.do()
	}
	return len(b), nil
}

// TestTheRequestIDSurvivesALostLeader repeats an apply whose outcome was lost, on another coordinator.
func TestTheRequestIDSurvivesALostLeader(t *testing.T) {
	d := planner(t, 2, plan())
	coordinatortest.On(d.cluster.Nodes[0], "ApplyStack", func(_ context.Context, q *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
		if q.GetDryRun() {
			t.Error("a plan that nobody is shown was asked for")
		}
		return nil, rpcerr.New(codes.Unknown, coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN, "leadership was lost")
	})
	if r := d.run("stack apply -y --progress quiet"); r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	a := d.cluster.Nodes[0].Calls("ApplyStack")[0].(*coordinatorv1.ApplyStackRequest).GetRequestId()
	b := d.cluster.Nodes[1].Calls("ApplyStack")[0].(*coordinatorv1.ApplyStackRequest).GetRequestId()
	if a == "" || a != b {
		t.Errorf("request ids %q and %q", a, b)
	}
}

// TestRepeatedByHand gives the request id of an apply whose answer was lost: the run that it started is followed, although it holds the lock.
func TestRepeatedByHand(t *testing.T) {
	d := planner(t, 1, plan())
	var hashes []string
	coordinatortest.On(d.cluster.Nodes[0], "ApplyStack", func(_ context.Context, q *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
		if !q.GetDryRun() {
			hashes = append(hashes, q.GetPlanHash())
		}
		if !q.GetDryRun() && q.GetRequestId() == "id-1" {
			return &coordinatorv1.ApplyStackResponse{Plan: plan(), Run: runs()[0]}, nil
		}
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD, "run r-3 changes stack demo")
	})
	if r := d.run("stack apply --progress quiet --request-id id-1"); r.code != 0 || !strings.HasPrefix(r.stdout, "run/r-3 succeeded") {
		t.Errorf("the same request: exit code %d: %s", r.code, r.stderr)
	}
	for _, line := range []string{"stack apply --request-id id-2", "stack apply", "stack apply --dry-run --request-id id-1"} {
		if r := d.run(line); r.code != 8 || !strings.Contains(r.stderr, "run r-3 changes stack demo (LOCK_HELD)") {
			t.Errorf("%s: exit code %d: %s", line, r.code, r.stderr)
		}
	}
	for _, h := range hashes {
		if h != "repeated" {
			t.Errorf("a plan of hash %q might have been started unseen", h)
		}
	}
}

// endless lets the first coordinator show a run that goes on until it is cancelled.
func (d *desk) endless() {
	cancelled := make(chan struct{}, 1)
	d.cluster.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		if q.GetFromIndex() == 0 {
			if err := s.Send(&coordinatorv1.WatchRunResponse{Index: 4, Run: runs()[0], Steps: runDetail().GetSteps()[:1]}); err != nil {
				return err
			}
		}
		select {
		case <-cancelled:
			return s.Send(ended(coordinatorv1.RunState_RUN_STATE_CANCELLED))
		case <-s.Context().Done():
			return s.Context().Err()
		}
	})
	coordinatortest.On(d.cluster.Nodes[0], "CancelRun", func(context.Context, *coordinatorv1.CancelRunRequest) (*coordinatorv1.CancelRunResponse, error) {
		cancelled <- struct{}{}
		r := runs()[0]
		r.State = coordinatorv1.RunState_RUN_STATE_ROLLING_BACK
		return &coordinatorv1.CancelRunResponse{Run: r}, nil
	})
}

func TestCtrlCDetaches(t *testing.T) {
	for _, line := range []string{"stack apply -y", "run watch r-3"} {
		d := planner(t, 1, plan())
		d.endless()
		d.stderr = when{"run/r-3 started", func() { d.interrupts <- syscall.SIGINT }}
		if line == "run watch r-3" {
			d.stderr = nil
			watch := d.cluster.Nodes[0]
			watch.OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
				d.interrupts <- syscall.SIGINT
				<-s.Context().Done()
				return s.Context().Err()
			})
		}
		r := d.run(line)
		want := "detached: run/r-3 goes on\n  musterctl run watch r-3    follows it\n  musterctl run cancel r-3   takes it back\n"
		if r.code != 6 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit code %d, want 6:\n%s", line, r.code, r.stderr)
		}
		if n := len(d.cluster.Nodes[0].Calls("CancelRun")); n != 0 {
			t.Errorf("%s: the run was cancelled", line)
		}
	}
}

// TestCtrlCBeforeAnythingWasStarted ends at once, and starts nothing.
func TestCtrlCBeforeAnythingWasStarted(t *testing.T) {
	d := planner(t, 1, plan())
	coordinatortest.On(d.cluster.Nodes[0], "ApplyStack", func(ctx context.Context, _ *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
		d.interrupts <- syscall.SIGINT
		<-ctx.Done()
		return nil, ctx.Err()
	})
	r := d.run("stack apply -y")
	if want := "Error: the stack was not applied\nCause: interrupted\n"; r.code != 130 || r.stderr != want {
		t.Errorf("exit code %d, want 130: %q, want %q", r.code, r.stderr, want)
	}
}

// TestTimeout bounds the following when it is given, and only then.
func TestTimeout(t *testing.T) {
	d := planner(t, 1, plan())
	d.endless()
	r := d.run("stack apply -y --timeout 300ms")
	if want := "run/r-3 goes on after 300ms; musterctl run watch r-3 follows it, musterctl run cancel r-3 takes it back\n"; r.code != 6 || !strings.HasSuffix(r.stderr, want) {
		t.Errorf("exit code %d, want 6: %s", r.code, r.stderr)
	}
}

func TestRunControl(t *testing.T) {
	d := planner(t, 1, plan())
	d.endless()
	paused := runs()[0]
	paused.State = coordinatorv1.RunState_RUN_STATE_PAUSED
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "PauseRun", func(context.Context, *coordinatorv1.PauseRunRequest) (*coordinatorv1.PauseRunResponse, error) {
		return &coordinatorv1.PauseRunResponse{Run: paused}, nil
	})
	coordinatortest.On(n, "ResumeRun", func(context.Context, *coordinatorv1.ResumeRunRequest) (*coordinatorv1.ResumeRunResponse, error) {
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_PAUSED, "run r-3 is running")
	})
	golden(t, "control", d.transcript("run pause r-3", "run pause r-3 -o name --reason lunch", "run resume run/r-3", "run cancel r-3", "run cancel r-3 --yes --progress quiet"))
	for _, m := range n.Calls("CancelRun") {
		if q := m.(*coordinatorv1.CancelRunRequest); q.GetRunId() != "r-3" || q.GetRequestId() == "" {
			t.Errorf("cancel: %v", q)
		}
	}
}

// TestProgress shows the same run in each way, other than live rows.
func TestProgress(t *testing.T) {
	d := planner(t, 1, plan())
	d.cluster.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		if err := s.Send(&coordinatorv1.WatchRunResponse{Index: 4, Run: runs()[0], Steps: runDetail().GetSteps(), Blockers: runDetail().GetBlockers()}); err != nil {
			return err
		}
		a := ended(coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
		a.Steps = []*coordinatorv1.StepStatus{{StepId: "web.2/pull", Host: "web-2", State: coordinatorv1.StepState_STEP_STATE_DONE, Attempt: 1, Revision: 8, FinishedAt: ago(0),
			Failure: &agentv1.OperationFailure{Message: "of an earlier attempt"}}}
		return s.Send(a)
	})
	golden(t, "progress", d.transcript("run watch r-3", "run watch r-3 -o name", "run watch r-3 --progress quiet", "run watch r-3 -o name --progress quiet", "stack apply -y"))

	// Whoever asks for JSON gets nothing else on that output.
	for line, stderr := range map[string]bool{"run watch r-3 -o json": false, "run watch r-3 --progress json": false, "run watch r-3 -o json --progress plain": false,
		"stack apply -y --progress json": true, "stack apply -y --progress json -o json": true} {
		r := d.run(line)
		text := r.stdout
		if stderr {
			text = r.stderr
		}
		n := 0
		for l := range strings.Lines(text) {
			var event struct{ Index string }
			if err := json.Unmarshal([]byte(l), &event); err != nil || event.Index == "" {
				t.Errorf("%s: %q: %v", line, l, err)
			}
			n++
		}
		if n != 2 || r.code != 0 {
			t.Errorf("%s: %d lines, exit code %d", line, n, r.code)
		}
	}
}

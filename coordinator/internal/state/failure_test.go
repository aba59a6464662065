package state_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// What happens when a failure that a budget tolerates cannot be taken back, or is still being taken back.

func (w *world) control(run string, control raftv1.RunControl) {
	w.t.Helper()
	result := w.apply(&raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: control}}})
	if result.GetError() != nil {
		w.t.Fatal(result.GetError().GetMessage())
	}
}

// finish lets everything that is open, and what it lets come, end well.
func (w *world) finish(run string) {
	w.t.Helper()
	for range 100 {
		open := w.open()
		if len(open) == 0 {
			return
		}
		w.done(run, open[0])
	}
	w.t.Fatalf("still open: %v", w.open())
}

func TestGroupThatCannotBeUndoneTakesTheRunWithIt(t *testing.T) {
	for _, cleanUp := range []bool{true, false} {
		w := newWorld(t)
		plan := rolling(3, 0.5, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
		if !cleanUp {
			plan.Steps = slices.DeleteFunc(plan.Steps, func(s *coordinatorv1.Step) bool { return s.GetCleanUp() })
		}
		run := w.start(plan).GetId()
		for _, step := range []string{"web.1/start", "web.1/ready", "web.1/stop", "web.1/watch", "web.2/start"} {
			w.done(run, step)
		}
		w.fail(run, "web.2/ready")
		w.want(run, coordinatorv1.RunState_RUN_STATE_RUNNING)
		w.fail(run, "undo/web.2/start/0")
		w.want(run, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN)
		w.control(run, raftv1.RunControl_RUN_CONTROL_RESUME)
		w.finish(run)
		w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
		if w.state.View().Step(run, "undo/web.1/start/0").GetState() != coordinatorv1.StepState_STEP_STATE_DONE {
			t.Error("the run is rolled back and web.1/start was never undone")
		}
	}
}

func TestNothingStaysDue(t *testing.T) {
	w := newWorld(t)
	plan := rolling(3, 0.5, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
	for _, step := range plan.GetSteps() {
		if step.GetId() == "web.3/start" {
			step.Delay, step.After = durationpb.New(10*time.Second), []string{"web.1/ready"}
		}
	}
	run := w.start(plan).GetId()
	w.done(run, "web.1/start")
	w.done(run, "web.1/ready")
	w.fail(run, "web.2/start")
	w.fail(run, "undo/web.2/start/0")
	w.control(run, raftv1.RunControl_RUN_CONTROL_RESUME)
	w.now = w.now.Add(11 * time.Second)
	for range 5 {
		at := state.NextDue(w.state.View(), w.state.View().Run(run))
		if at.IsZero() || w.now.Before(at) {
			return
		}
		w.tick(run)
	}
	t.Error("a tick is due again and again and changes nothing: the engine would fill the log")
}

func TestNextGroupWaitsForTheFailedOneToBeBack(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(2, 0.5, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	w.done(run, "web.1/start")
	w.fail(run, "web.1/ready")
	if slices.Contains(w.open(), "web.2/start") {
		t.Fatalf("web.2 is touched while web.1 is away: %v", w.open())
	}
	w.done(run, "undo/web.1/start/0")
	if !slices.Contains(w.open(), "web.2/start") {
		t.Fatalf("web.2 does not go on once web.1 is back: %v", w.open())
	}
}

func TestFailedGroupIsTakenBackWhilePaused(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(2, 0, coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE)).GetId()
	w.done(run, "web.1/start")
	w.fail(run, "web.1/ready")
	w.want(run, coordinatorv1.RunState_RUN_STATE_PAUSED)
	if got := w.open(); !slices.Equal(got, []string{"undo/web.1/start/0"}) {
		t.Fatalf("open: %v, want the failed group's undo and nothing else", got)
	}
	w.done(run, "undo/web.1/start/0")
	if len(w.open()) > 0 {
		t.Fatalf("a paused run started %v", w.open())
	}
}

func TestSilentHostMovesTheRunsRevision(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	seen := w.state.Index()
	w.apply(&raftv1.Command{Op: &raftv1.Command_Tick{Tick: &raftv1.Tick{Epoch: w.epoch, Unreachable: []*raftv1.StepRef{{RunId: run, StepId: "web.1/start"}}}}})
	v := w.state.View()
	if len(v.Blockers(run)) != 1 || v.Run(run).GetRevision() <= seen {
		t.Errorf("blockers %v, revision %d after %d: who watches the run sees nothing", v.Blockers(run), v.Run(run).GetRevision(), seen)
	}
}

func TestNoCommandPanics(t *testing.T) {
	w := newWorld(t)
	plan := rolling(1, 0, 0)
	plan.Steps[0].Id = "undo/x/0"
	for name, command := range map[string]*raftv1.Command{
		"a step with the id of an undo step": {Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan}}},
		"an empty start":                     {Op: &raftv1.Command_StartRun{}},
		"an empty token":                     {Op: &raftv1.Command_PutToken{}},
		"an empty join":                      {Op: &raftv1.Command_Join{}},
		"an empty bootstrap":                 {Op: &raftv1.Command_Bootstrap{}},
		"an empty control":                   {Op: &raftv1.Command_ControlRun{}},
		"an empty secret":                    {Op: &raftv1.Command_PutSecret{}},
	} {
		before := w.state.Index()
		w.apply(command)
		if w.state.Index() != before+1 {
			t.Errorf("%s: the index did not move", name)
		}
	}
}

// TestRollbackKeepsItsOrderThroughAnUndoneGroup: a group that was tolerated and undone stands between two others, and hides neither from the other.
func TestRollbackKeepsItsOrderThroughAnUndoneGroup(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(3, 0.5, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	for _, step := range []string{"web.1/start", "web.1/ready", "web.1/stop", "web.1/watch", "web.2/start"} {
		w.done(run, step)
	}
	w.fail(run, "web.2/ready")
	w.done(run, "undo/web.2/start/0")
	w.done(run, "web.3/start")
	w.fail(run, "web.3/ready")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK)
	w.done(run, "undo/web.1/stop/0")
	if got := w.open(); !slices.Equal(got, []string{"undo/web.3/start/0"}) {
		t.Fatalf("open: %v, want web.1 to be taken back after web.3, which came after it", got)
	}
	w.done(run, "undo/web.3/start/0")
	w.done(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

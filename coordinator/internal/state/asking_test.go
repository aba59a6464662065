package state_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const testHash = "0123456789abcdef0123456789abcdef"

// guarded makes a plan: prepare, ask, act once.
func guarded(approval *coordinatorv1.Approval, budget ...*coordinatorv1.FailureBudget) *coordinatorv1.Plan {
	act := func(name string, effect accessv1.Effect) *coordinatorv1.Action {
		return &coordinatorv1.Action{Method: "test/" + name, Effect: effect}
	}
	return &coordinatorv1.Plan{
		Procedure: "test", Locks: []string{"db/x"}, MaxDuration: durationpb.New(4 * time.Hour), Hash: testHash, Budgets: budget,
		Steps: []*coordinatorv1.Step{
			{
				Id: "prepare", Title: "prepare", Host: "h1", Action: act("prepare", accessv1.Effect_EFFECT_IDEMPOTENT), Timeout: durationpb.New(time.Minute),
				Undo: []*coordinatorv1.Undo{{Title: "unprepare", Action: act("unprepare", accessv1.Effect_EFFECT_IDEMPOTENT), Timeout: durationpb.New(time.Minute)}},
			},
			{Id: "ask", Title: "ask", After: []string{"prepare"}, Approval: approval},
			{
				Id: "swap", Title: "swap", Host: "h1", After: []string{"ask"}, Action: act("swap", accessv1.Effect_EFFECT_ONCE), Timeout: durationpb.New(time.Minute),
				Undo: []*coordinatorv1.Undo{{Title: "swap back", Action: act("swapback", accessv1.Effect_EFFECT_IDEMPOTENT), Timeout: durationpb.New(time.Minute)}},
			},
		},
	}
}

// as applies a command on behalf of somebody.
func (w *world) as(actor string, command *raftv1.Command) *raftv1.Result {
	command.Version, command.Now, command.Actor = state.CommandVersion, timestamppb.New(w.now), actor
	w.log = append(w.log, command)
	return w.state.Apply(uint64(len(w.log)), command)
}

func (w *world) decide(actor string, run string, yes bool) *raftv1.Result {
	return w.as(actor, &raftv1.Command{Op: &raftv1.Command_DecideStep{DecideStep: &raftv1.DecideStep{
		RunId: run, PlanHash: testHash[:12], Approve: yes, Role: accessv1.Role_ROLE_OPERATOR,
	}}})
}

func (w *world) resolve(run string, resolution coordinatorv1.Resolution) *raftv1.Result {
	return w.as("bob", &raftv1.Command{Op: &raftv1.Command_ResolveStep{ResolveStep: &raftv1.ResolveStep{RunId: run, Resolution: resolution, Reason: "I looked"}}})
}

func (w *world) lose(run, step string) {
	w.t.Helper()
	status := w.state.View().Step(run, step)
	w.apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: w.epoch, Outcomes: []*raftv1.Outcome{{
		RunId: run, StepId: step, Attempt: status.GetAttempt(), Lost: true,
		Failure: &agentv1.OperationFailure{Reason: agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, Message: "the agent died while it acted"},
	}}}}})
}

func (w *world) stepIs(run, step string, want coordinatorv1.StepState) {
	w.t.Helper()
	if got := w.state.View().Step(run, step).GetState(); got != want {
		w.t.Fatalf("step %s is %s, want %s", step, got, want)
	}
}

func TestApprovalNeedsDifferentPeople(t *testing.T) {
	w := newWorld(t)
	run := w.start(guarded(&coordinatorv1.Approval{Prompt: "swap the databases?", Count: 2})).GetId()
	w.done(run, "prepare")
	w.stepIs(run, "ask", coordinatorv1.StepState_STEP_STATE_ASKING)
	if b := w.state.View().Blockers(run); len(b) != 1 || !strings.Contains(b[0].GetSummary(), "(0 of 2): swap the databases?") {
		t.Errorf("blockers %v", b)
	}
	for _, tt := range []struct {
		name, actor string
		decide      *raftv1.DecideStep
		want        coordinatorv1.ErrorReason
	}{
		{"the initiator", "alice", &raftv1.DecideStep{PlanHash: testHash}, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED},
		{"another role", "carol", &raftv1.DecideStep{PlanHash: testHash, Role: accessv1.Role_ROLE_VIEWER}, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED},
		{"another plan", "bob", &raftv1.DecideStep{PlanHash: "ffff23456789"}, coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED},
		{"too little of the hash", "bob", &raftv1.DecideStep{PlanHash: testHash[:6]}, coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED},
		{"a step that does not ask", "bob", &raftv1.DecideStep{PlanHash: testHash, StepId: "swap"}, coordinatorv1.ErrorReason_ERROR_REASON_STEP_NOT_ASKING},
		{"a step that is not there", "bob", &raftv1.DecideStep{PlanHash: testHash, StepId: "swop"}, coordinatorv1.ErrorReason_ERROR_REASON_INVALID},
	} {
		tt.decide.RunId, tt.decide.Approve = run, true
		if tt.decide.GetRole() == 0 {
			tt.decide.Role = accessv1.Role_ROLE_OPERATOR
		}
		got := w.as(tt.actor, &raftv1.Command{Op: &raftv1.Command_DecideStep{DecideStep: tt.decide}})
		if got.GetError().GetReason() != int32(tt.want) {
			t.Errorf("%s: got %v, want %s", tt.name, got.GetError(), tt.want)
		}
	}
	if e := w.decide("bob", run, true).GetError(); e != nil {
		t.Fatal(e)
	}
	if e := w.decide("bob", run, true).GetError(); e == nil {
		t.Error("one person said yes twice")
	}
	w.stepIs(run, "swap", coordinatorv1.StepState_STEP_STATE_PENDING)
	if e := w.decide("carol", run, true).GetError(); e != nil {
		t.Fatal(e)
	}
	w.done(run, "swap")
	w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
}

// TestNoIsNotCountedAsYes: a run that was paused by a no goes on by nobody's answer before it is resumed and has asked anew.
func TestNoIsNotCountedAsYes(t *testing.T) {
	w := newWorld(t)
	run := w.start(guarded(&coordinatorv1.Approval{Prompt: "go?", Count: 2, OnExpiry: coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE})).GetId()
	w.done(run, "prepare")
	w.decide("bob", run, false)
	if e := w.decide("carol", run, true).GetError(); e.GetReason() != int32(coordinatorv1.ErrorReason_ERROR_REASON_STEP_NOT_ASKING) {
		t.Errorf("got %v, want the question to be over", e)
	}
	w.stepIs(run, "ask", coordinatorv1.StepState_STEP_STATE_ASKING)
	w.control(run, raftv1.RunControl_RUN_CONTROL_RESUME)
	w.decide("carol", run, true)
	w.stepIs(run, "ask", coordinatorv1.StepState_STEP_STATE_ASKING)
	w.decide("bob", run, true)
	w.done(run, "swap")
	w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
}

func TestNoAndSilenceEndAnApproval(t *testing.T) {
	for _, tt := range []struct {
		name     string
		onExpiry coordinatorv1.FailureAction
		end      func(w *world, run string)
		want     coordinatorv1.RunState
	}{
		{"no, rollback", coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, func(w *world, run string) { w.decide("bob", run, false) }, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK},
		{"no, pause", coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE, func(w *world, run string) { w.decide("bob", run, false) }, coordinatorv1.RunState_RUN_STATE_PAUSED},
		{"silence, rollback", 0, func(w *world, run string) { w.now = w.now.Add(16 * time.Minute); w.tick(run) }, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK},
		{"silence, pause", coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE, func(w *world, run string) { w.now = w.now.Add(16 * time.Minute); w.tick(run) }, coordinatorv1.RunState_RUN_STATE_PAUSED},
		{"not yet", 0, func(w *world, run string) { w.now = w.now.Add(14 * time.Minute); w.tick(run) }, coordinatorv1.RunState_RUN_STATE_RUNNING},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			run := w.start(guarded(&coordinatorv1.Approval{Prompt: "go?", Expires: durationpb.New(15 * time.Minute), OnExpiry: tt.onExpiry})).GetId()
			w.done(run, "prepare")
			if due := state.NextDue(w.state.View(), w.state.View().Run(run)); !due.Equal(w.now.Add(15 * time.Minute)) {
				t.Errorf("next due at %s", due)
			}
			tt.end(w, run)
			w.want(run, tt.want)
			switch tt.want {
			case coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
				w.done(run, "undo/prepare/0")
				w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
			case coordinatorv1.RunState_RUN_STATE_PAUSED:
				w.now = w.now.Add(time.Hour)
				w.as("alice", &raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_RESUME}}})
				w.tick(run)
				w.stepIs(run, "ask", coordinatorv1.StepState_STEP_STATE_ASKING) // It is asked anew.
				w.decide("bob", run, true)
				w.done(run, "swap")
				w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
			}
		})
	}
}

func TestLostOutcomeIsResolved(t *testing.T) {
	begin := func(t *testing.T) (*world, string) {
		w := newWorld(t)
		run := w.start(guarded(&coordinatorv1.Approval{Prompt: "go?"})).GetId()
		w.done(run, "prepare")
		w.decide("bob", run, true)
		w.lose(run, "swap")
		w.stepIs(run, "swap", coordinatorv1.StepState_STEP_STATE_ASKING)
		if b := w.state.View().Blockers(run); len(b) != 1 || !strings.Contains(b[0].GetUnblocks(), "musterctl run resolve "+run) {
			t.Errorf("blockers %v", b)
		}
		return w, run
	}
	t.Run("done", func(t *testing.T) {
		w, run := begin(t)
		w.resolve(run, coordinatorv1.Resolution_RESOLUTION_DONE)
		w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	})
	t.Run("not done", func(t *testing.T) {
		w, run := begin(t)
		w.resolve(run, coordinatorv1.Resolution_RESOLUTION_NOT_DONE)
		w.stepIs(run, "swap", coordinatorv1.StepState_STEP_STATE_RUNNING)
		if got := w.state.View().Step(run, "swap").GetAttempt(); got != 2 {
			t.Errorf("attempt %d, want 2", got)
		}
		w.done(run, "swap")
		w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	})
	t.Run("failed", func(t *testing.T) {
		w, run := begin(t)
		w.resolve(run, coordinatorv1.Resolution_RESOLUTION_FAILED)
		w.done(run, "undo/swap/0")
		w.done(run, "undo/prepare/0")
		w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
	})
	t.Run("a rollback waits for the answer", func(t *testing.T) {
		w, run := begin(t)
		w.as("alice", &raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_CANCEL}}})
		if len(w.open()) != 0 {
			t.Fatalf("open: %v, before anybody knows what is to be undone", w.open())
		}
		w.resolve(run, coordinatorv1.Resolution_RESOLUTION_NOT_DONE)
		w.stepIs(run, "undo/swap/0", coordinatorv1.StepState_STEP_STATE_SKIPPED)
		w.done(run, "undo/prepare/0")
		w.want(run, coordinatorv1.RunState_RUN_STATE_CANCELLED)
	})
	t.Run("nothing was lost", func(t *testing.T) {
		w, run := begin(t)
		w.resolve(run, coordinatorv1.Resolution_RESOLUTION_DONE)
		if e := w.resolve(run, coordinatorv1.Resolution_RESOLUTION_DONE).GetError(); e.GetReason() != int32(coordinatorv1.ErrorReason_ERROR_REASON_RUN_FINISHED) {
			t.Errorf("got %v", e)
		}
	})
}

func TestSparedStepIsNotUndone(t *testing.T) {
	w := newWorld(t)
	run := w.start(guarded(&coordinatorv1.Approval{Prompt: "go?"})).GetId()
	w.apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: w.epoch, Outcomes: []*raftv1.Outcome{
		{RunId: run, StepId: "prepare", Attempt: 1, Spared: true},
	}}}})
	w.decide("bob", run, false)
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

func TestMaxFailedIsAbsolute(t *testing.T) {
	plan := rolling(4, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
	for _, step := range plan.GetSteps() {
		if strings.HasSuffix(step.GetId(), "/start") {
			step.After = nil
		}
	}
	plan.Budgets[0].MaxFailed = proto.Uint32(1)
	w := newWorld(t)
	run := w.start(plan).GetId()
	w.fail(run, "web.1/start")
	w.want(run, coordinatorv1.RunState_RUN_STATE_RUNNING)
	w.fail(run, "web.2/start")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK)
}

func TestRetryBacksOff(t *testing.T) {
	plan := guarded(&coordinatorv1.Approval{Prompt: "go?"})
	plan.Steps[0].MaxAttempts, plan.Steps[0].RetryDelay, plan.Steps[0].RetryBackoff = 9, durationpb.New(10*time.Second), 3
	w := newWorld(t)
	run := w.start(plan).GetId()
	for _, seconds := range []int{10, 30, 90, 270, 300, 300} {
		want := time.Duration(seconds) * time.Second
		w.outcome(w.state.View().Step(run, "prepare"), &agentv1.OperationFailure{Message: "busy"})
		if got := w.state.View().Step(run, "prepare").GetNotBefore().AsTime().Sub(w.now); got != want {
			t.Fatalf("waits %s, want %s", got, want)
		}
		w.now = w.now.Add(want)
		w.tick(run)
	}
}

func TestDeadlineMayAsk(t *testing.T) {
	plan := rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
	plan.OnDeadline = coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE
	w := newWorld(t)
	run := w.start(plan).GetId()
	w.now = w.now.Add(time.Hour)
	w.tick(run)
	w.want(run, coordinatorv1.RunState_RUN_STATE_PAUSED)
	w.as("alice", &raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_RESUME}}})
	w.tick(run)
	w.want(run, coordinatorv1.RunState_RUN_STATE_RUNNING)
	if got := w.state.View().Run(run).GetDeadline().AsTime(); !got.Equal(w.now.Add(time.Hour)) {
		t.Errorf("deadline %s, want another hour from %s", got, w.now)
	}
}

func TestStepsThatCannotBeRunAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*coordinatorv1.Plan){
		"neither action nor approval": func(p *coordinatorv1.Plan) { p.Steps[0].Action = nil },
		"both":                        func(p *coordinatorv1.Plan) { p.Steps[1].Action = p.Steps[0].GetAction() },
		"goes on unanswered": func(p *coordinatorv1.Plan) {
			p.Steps[1].Approval.OnExpiry = coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE
		},
		"no prompt":                 func(p *coordinatorv1.Plan) { p.Steps[1].Approval.Prompt = "" },
		"probe without done_if":     func(p *coordinatorv1.Plan) { p.Steps[2].IfUnknown = coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE },
		"done_if without a probe":   func(p *coordinatorv1.Plan) { p.Steps[2].DoneIf = &coordinatorv1.Check{Expression: "true"} },
		"verify without expression": func(p *coordinatorv1.Plan) { p.Steps[2].Verify = &coordinatorv1.Check{} },
	} {
		plan := guarded(&coordinatorv1.Approval{Prompt: "go?"})
		spoil(plan)
		w := newWorld(t)
		got := w.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan}}})
		if got.GetError().GetReason() != int32(coordinatorv1.ErrorReason_ERROR_REASON_INVALID) {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

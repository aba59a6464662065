package state_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// world is a state with the log that led to it.
type world struct {
	t     *testing.T
	state *state.State
	log   []*raftv1.Command
	now   time.Time
	epoch uint64
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, state: state.New(), now: time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)}
	w.apply(&raftv1.Command{Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{ClusterId: "test-1", Identity: &raftv1.Identity{
		Id: "c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1",
	}}}})
	w.epoch = w.apply(&raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: "c1", Term: 1}}}).GetEpoch()
	return w
}

func (w *world) apply(command *raftv1.Command) *raftv1.Result {
	command.Version, command.Now, command.Actor = state.CommandVersion, timestamppb.New(w.now), "alice"
	w.log = append(w.log, command)
	return w.state.Apply(uint64(len(w.log)), command)
}

func (w *world) start(plan *coordinatorv1.Plan) *coordinatorv1.Run {
	w.t.Helper()
	result := w.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan}}})
	if result.GetError() != nil {
		w.t.Fatalf("start: %s", result.GetError().GetMessage())
	}
	return result.GetRun()
}

func (w *world) outcome(step *coordinatorv1.StepStatus, failure *agentv1.OperationFailure) {
	w.apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: w.epoch, Outcomes: []*raftv1.Outcome{
		{RunId: step.GetRunId(), StepId: step.GetStepId(), Attempt: step.GetAttempt(), Failure: failure},
	}}}})
}

func (w *world) tick(run string) {
	w.apply(&raftv1.Command{Op: &raftv1.Command_Tick{Tick: &raftv1.Tick{Epoch: w.epoch, RunIds: []string{run}}}})
}

func (w *world) open() []string {
	var ids []string
	for _, step := range w.state.View().OpenSteps() {
		ids = append(ids, step.GetStepId())
	}
	return ids
}

func (w *world) done(run, step string) {
	w.t.Helper()
	status := w.state.View().Step(run, step)
	if status.GetState() != coordinatorv1.StepState_STEP_STATE_RUNNING {
		w.t.Fatalf("step %s is %s, open are %v", step, status.GetState(), w.open())
	}
	w.outcome(status, nil)
}

func (w *world) fail(run, step string) {
	w.t.Helper()
	status := w.state.View().Step(run, step)
	w.outcome(status, &agentv1.OperationFailure{Message: "it broke", Permanent: true})
}

func (w *world) want(run string, want coordinatorv1.RunState) {
	w.t.Helper()
	if got := w.state.View().Run(run); got.GetState() != want {
		w.t.Fatalf("run is %s (%s), want %s; open: %v", got.GetState(), got.GetCause(), want, w.open())
	}
}

// rolling makes the plan of n instances, one after the other, each with four steps of which two can be undone.
func rolling(n int, ratio float64, action coordinatorv1.FailureAction) *coordinatorv1.Plan {
	plan := &coordinatorv1.Plan{Procedure: "test", Locks: []string{"stack/test"}, MaxDuration: durationpb.New(time.Hour), Hash: "h"}
	budget := &coordinatorv1.FailureBudget{Name: "web", MaxFailureRatio: ratio, FailureAction: action}
	do := func(name string, effect accessv1.Effect) *coordinatorv1.Action {
		return &coordinatorv1.Action{Method: "test/" + name, Effect: effect}
	}
	for i := range n {
		group := fmt.Sprintf("web.%d", i+1)
		budget.Groups = append(budget.Groups, group)
		step := func(name string, effect accessv1.Effect, undo bool, after ...string) {
			s := &coordinatorv1.Step{
				Id: group + "/" + name, Title: name + " " + group, Group: group, Host: "h1", After: after, Action: do(name, effect),
				Timeout: durationpb.New(time.Minute), MaxAttempts: 2, RetryDelay: durationpb.New(time.Second),
			}
			if undo {
				s.Undo = []*coordinatorv1.Undo{{Title: "un-" + name, Action: do("un"+name, accessv1.Effect_EFFECT_IDEMPOTENT), Timeout: durationpb.New(time.Minute)}}
			}
			plan.Steps = append(plan.Steps, s)
		}
		var after []string
		if i > 0 {
			after = []string{fmt.Sprintf("web.%d/ready", i)}
		}
		step("start", accessv1.Effect_EFFECT_IDEMPOTENT, true, after...)
		step("ready", accessv1.Effect_EFFECT_NONE, false, group+"/start")
		step("stop", accessv1.Effect_EFFECT_IDEMPOTENT, true, group+"/ready")
		step("watch", accessv1.Effect_EFFECT_NONE, false, group+"/ready")
		plan.Steps = append(plan.Steps, &coordinatorv1.Step{
			Id: group + "/remove", Group: group, Host: "h1", Action: do("remove", accessv1.Effect_EFFECT_IDEMPOTENT),
			Timeout: durationpb.New(time.Minute), CleanUp: true,
		})
	}
	plan.Budgets = []*coordinatorv1.FailureBudget{budget}
	return plan
}

func TestRunSucceedsAndCleansUpLast(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	for _, step := range []string{"start", "ready", "stop"} {
		w.done(run, "web.1/"+step)
	}
	if got := fmt.Sprint(w.open()); got != "[web.1/watch]" {
		t.Fatalf("open before the watch ended: %s", got)
	}
	w.done(run, "web.1/watch")
	if !w.state.View().Run(run).GetCommitted() {
		t.Fatal("the run is not committed although only clean-up is left")
	}
	w.done(run, "web.1/remove")
	w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	if w.state.View().Lock("stack/test") != nil {
		t.Error("the lock is still held")
	}
}

func TestFailureRollsBackInReverse(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(2, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	for _, step := range []string{"web.1/start", "web.1/ready", "web.1/stop", "web.2/start"} {
		w.done(run, step)
	}
	w.fail(run, "web.2/ready")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK)
	// The watch has no effect and is given up; what came last is undone first, and what is independent at the same time.
	if got := fmt.Sprint(w.open()); got != "[undo/web.1/stop/0 undo/web.2/start/0]" {
		t.Fatalf("open: %s", got)
	}
	w.done(run, "undo/web.1/stop/0")
	if got := fmt.Sprint(w.open()); got != "[undo/web.2/start/0]" {
		t.Fatalf("web.1/start must not be undone before web.2/start, which came after it: %s", got)
	}
	w.done(run, "undo/web.2/start/0")
	w.done(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

func TestUndoWaitsForTheOpenOperation(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	result := w.apply(&raftv1.Command{RequestId: "q1", Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_CANCEL}}})
	if result.GetError() != nil {
		t.Fatal(result.GetError().GetMessage())
	}
	if got := fmt.Sprint(w.open()); got != "[web.1/start]" {
		t.Fatalf("open: %s, want the start that may be under way", got)
	}
	w.done(run, "web.1/start")
	if got := fmt.Sprint(w.open()); got != "[undo/web.1/start/0]" {
		t.Fatalf("open: %s", got)
	}
	w.done(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_CANCELLED)
	again := w.apply(&raftv1.Command{RequestId: "q1", Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_CANCEL}}})
	if !again.GetReplayed() || again.GetError() != nil {
		t.Errorf("a repeated request gave %v, want its first result", again)
	}
}

func TestFailureWithinTheBudgetUndoesItsGroupOnly(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(2, 0.5, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	w.done(run, "web.1/start")
	w.fail(run, "web.1/ready")
	w.want(run, coordinatorv1.RunState_RUN_STATE_RUNNING)
	w.done(run, "undo/web.1/start/0")
	for _, step := range []string{"start", "ready", "stop", "watch", "remove"} {
		w.done(run, "web.2/"+step)
	}
	w.want(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	if got := w.state.View().Run(run).GetFailedGroups(); len(got) != 1 || got[0] != "web.1" {
		t.Errorf("failed groups %v, want web.1", got)
	}
}

func TestFailedUndoNeedsAHumanAndIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	w.done(run, "web.1/start")
	w.fail(run, "web.1/ready")
	w.fail(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN)
	if w.state.View().Lock("stack/test") == nil {
		t.Error("the lock was released although a human is needed")
	}
	if blockers := w.state.View().Blockers(run); len(blockers) != 1 {
		t.Errorf("blockers %v, want one", blockers)
	}
	w.apply(&raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_RESUME}}})
	w.done(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

func TestPauseStopsTheClockAndStartsNothing(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE)).GetId()
	deadline := w.state.View().Run(run).GetDeadline().AsTime()
	control := func(c raftv1.RunControl) {
		w.apply(&raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: c}}})
	}
	control(raftv1.RunControl_RUN_CONTROL_PAUSE)
	w.done(run, "web.1/start")
	if len(w.open()) != 0 {
		t.Fatalf("a paused run started %v", w.open())
	}
	w.now = w.now.Add(3 * time.Hour)
	w.tick(run)
	w.want(run, coordinatorv1.RunState_RUN_STATE_PAUSED)
	control(raftv1.RunControl_RUN_CONTROL_RESUME)
	if got := w.state.View().Run(run).GetDeadline().AsTime(); !got.Equal(deadline.Add(3 * time.Hour)) {
		t.Errorf("deadline %s, want it moved by the pause to %s", got, deadline.Add(3*time.Hour))
	}
	w.fail(run, "web.1/ready")
	w.want(run, coordinatorv1.RunState_RUN_STATE_PAUSED)
}

func TestDeadlines(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	w.now = w.now.Add(2 * time.Minute)
	w.tick(run)
	if got := w.state.View().Step(run, "web.1/start").GetState(); got != coordinatorv1.StepState_STEP_STATE_UNKNOWN {
		t.Fatalf("a step past its deadline is %s, want unknown: silence is not failure", got)
	}
	w.want(run, coordinatorv1.RunState_RUN_STATE_RUNNING)
	w.now = w.now.Add(time.Hour)
	w.tick(run)
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLING_BACK)
	w.outcome(w.state.View().Step(run, "web.1/start"), nil)
	w.done(run, "undo/web.1/start/0")
	w.want(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

func TestStaleEngineAndLateOutcomesChangeNothing(t *testing.T) {
	w := newWorld(t)
	run := w.start(rolling(1, 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)).GetId()
	step := w.state.View().Step(run, "web.1/start")
	old := w.epoch
	w.epoch = w.apply(&raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: "c2", Term: 2}}}).GetEpoch()
	result := w.apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: old, Outcomes: []*raftv1.Outcome{{RunId: run, StepId: "web.1/start", Attempt: 1}}}}})
	if result.GetError() == nil {
		t.Error("an outcome of a replaced engine was taken")
	}
	w.outcome(step, nil)
	w.outcome(step, &agentv1.OperationFailure{Message: "late", Permanent: true})
	if got := w.state.View().Step(run, "web.1/start").GetState(); got != coordinatorv1.StepState_STEP_STATE_DONE {
		t.Errorf("a late outcome turned the step %s; the first one wins", got)
	}
}

func TestLockIsHeldByOneRun(t *testing.T) {
	w := newWorld(t)
	first := w.start(rolling(1, 0, 0)).GetId()
	result := w.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: rolling(1, 0, 0)}}})
	if got := coordinatorv1.ErrorReason(result.GetError().GetReason()); got != coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD {
		t.Fatalf("second run: %s, want LOCK_HELD", got)
	}
	if !bytes.Contains([]byte(result.GetError().GetMessage()), []byte(first)) {
		t.Errorf("the refusal %q does not name the run %s", result.GetError().GetMessage(), first)
	}
}

func snapshot(t *testing.T, s *state.State) []byte {
	t.Helper()
	frozen, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := frozen.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCampaign runs plans against random outcomes, delays and operators. Whatever happens, every run ends or asks a human, nothing is undone that was
// not started, and the same log gives the same bytes.
func TestCampaign(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t)
		ratio := []float64{0, 0.4, 1}[rng.IntN(3)]
		run := w.start(rolling(1+rng.IntN(4), ratio, coordinatorv1.FailureAction(rng.IntN(4)))).GetId()
		for range 400 {
			w.move(rng, run)
			if r := w.state.View().Run(run); state.Terminal(r.GetState()) || r.GetState() == coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN {
				break
			}
		}
		w.check(seed, run)
	}
}

func (w *world) move(rng *rand.Rand, run string) {
	w.now = w.now.Add(time.Duration(rng.IntN(3)) * time.Second)
	control := func(c raftv1.RunControl) {
		w.apply(&raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: c}}})
	}
	open := w.state.View().OpenSteps()
	switch p := rng.IntN(40); {
	case p == 0:
		control(raftv1.RunControl_RUN_CONTROL_CANCEL)
	case p == 1:
		control(raftv1.RunControl_RUN_CONTROL_PAUSE)
	case p < 6:
		control(raftv1.RunControl_RUN_CONTROL_RESUME)
	case p < 10 || len(open) == 0:
		w.tick(run)
	case p < 13:
		w.outcome(open[rng.IntN(len(open))], &agentv1.OperationFailure{Message: "no", Permanent: rng.IntN(2) == 0})
	default:
		w.outcome(open[rng.IntN(len(open))], nil)
	}
}

func (w *world) check(seed uint64, id string) {
	w.t.Helper()
	v := w.state.View()
	run := v.Run(id)
	if !state.Terminal(run.GetState()) && run.GetState() != coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN {
		w.t.Fatalf("seed %d: run is %s for ever; open: %v", seed, run.GetState(), w.open())
	}
	undone := map[string]bool{}
	for _, step := range v.Steps(id) {
		if def := state.Definition(v.Plan(id), step.GetStepId()); def == nil {
			w.t.Fatalf("seed %d: step %s has no definition", seed, step.GetStepId())
		}
		if len(step.GetStepId()) > 5 && step.GetStepId()[:5] == "undo/" {
			undone[step.GetStepId()[5:len(step.GetStepId())-2]] = step.GetState() == coordinatorv1.StepState_STEP_STATE_DONE
		}
	}
	for _, step := range v.Plan(id).GetSteps() {
		status := v.Step(id, step.GetId())
		full := run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLED_BACK || run.GetState() == coordinatorv1.RunState_RUN_STATE_CANCELLED
		if full && status.GetDispatched() && len(step.GetUndo()) > 0 && !undone[step.GetId()] {
			w.t.Fatalf("seed %d: run is %s but %s was not undone", seed, run.GetState(), step.GetId())
		}
		if undone[step.GetId()] && !status.GetDispatched() {
			w.t.Fatalf("seed %d: %s was undone but never done", seed, step.GetId())
		}
	}
	if state.Terminal(run.GetState()) && (len(v.Locks()) > 0 || len(v.OpenSteps()) > 0) {
		w.t.Fatalf("seed %d: run is %s and holds %v, open %v", seed, run.GetState(), v.Locks(), w.open())
	}
	replica := state.New()
	for i, command := range w.log {
		replica.Apply(uint64(i+1), command)
	}
	image := snapshot(w.t, w.state)
	if !bytes.Equal(image, snapshot(w.t, replica)) {
		w.t.Fatalf("seed %d: the same log gave two states", seed)
	}
	restored := state.New()
	if err := restored.Restore(bytes.NewReader(image)); err != nil {
		w.t.Fatalf("seed %d: restore: %v", seed, err)
	}
	if !bytes.Equal(image, snapshot(w.t, restored)) {
		w.t.Fatalf("seed %d: a restored snapshot is not the same", seed)
	}
}

func TestDamagedSnapshotLeavesTheStateAlone(t *testing.T) {
	w := newWorld(t)
	w.start(rolling(2, 0, 0))
	image := snapshot(t, w.state)
	for _, cut := range []int{0, 1, len(image) / 2, len(image) - 1} {
		fresh := newWorld(t)
		before := snapshot(t, fresh.state)
		if err := fresh.state.Restore(bytes.NewReader(image[:cut])); err == nil {
			t.Errorf("a snapshot cut at %d of %d bytes was restored", cut, len(image))
		}
		if !bytes.Equal(before, snapshot(t, fresh.state)) {
			t.Errorf("a snapshot cut at %d bytes changed the state", cut)
		}
	}
	flipped := bytes.Clone(image)
	flipped[len(flipped)/2] ^= 1
	if err := state.New().Restore(bytes.NewReader(flipped)); err == nil {
		t.Error("a snapshot with a flipped bit was restored")
	}
}

func TestUnknownCommandStops(t *testing.T) {
	for _, command := range []*raftv1.Command{{Version: 1}, {Version: 2, Op: &raftv1.Command_Tick{}}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("command %v was skipped", command)
				}
			}()
			state.New().Apply(1, command)
		}()
	}
}

package simulation

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// bugSeeds is how many campaigns a planted bug may need to show.
const bugSeeds = 40

// inPlan is a state machine that reads plans wrongly.
func inPlan(spoil func(plan *coordinatorv1.Plan)) func(string, *raftv1.Command) *raftv1.Command {
	return func(_ string, command *raftv1.Command) *raftv1.Command {
		if plan := command.GetStartRun().GetPlan(); plan != nil {
			spoil(plan)
		}
		return command
	}
}

func everyStep(spoil func(s *coordinatorv1.Step)) func(string, *raftv1.Command) *raftv1.Command {
	return inPlan(func(plan *coordinatorv1.Plan) {
		for _, s := range plan.GetSteps() {
			spoil(s)
		}
	})
}

// ownClock is a state machine that reads the clock of its machine.
func ownClock(_ string, command *raftv1.Command) *raftv1.Command {
	command.Now = timestamppb.Now()
	return command
}

// deafLeader goes on with steps of a run that is taken back: it calls the hosts for what was skipped.
func deafLeader(ctx context.Context, s *sim, n *node) error {
	for rest(ctx, 300*time.Millisecond) {
		view := n.state.View()
		for _, run := range view.ActiveRuns() {
			if run.GetState() != coordinatorv1.RunState_RUN_STATE_ROLLING_BACK {
				continue
			}
			for _, step := range view.Steps(run.GetId()) {
				conn, err := s.connect(n.name, step.GetHost())
				if err != nil || step.GetState() != coordinatorv1.StepState_STEP_STATE_SKIPPED || step.GetAttempt() > 0 || !strings.HasSuffix(step.GetStepId(), "/start") {
					continue
				}
				request := &agentv1.StartContainerRequest{Name: "late", Operation: &agentv1.Operation{
					Id: run.GetId() + "/" + step.GetStepId() + "/1", Epoch: view.Meta().GetEpoch(), Fence: run.GetFence(), Timeout: durationpb.New(time.Second),
				}}
				calling, cancel := context.WithTimeout(ctx, time.Second)
				_ = conn.Invoke(calling, "/"+containers+"StartContainer", request, &agentv1.StartContainerResponse{}) // Its effect is what counts.
				cancel()
			}
		}
	}
	return nil
}

// TestCheckersFindPlantedBugs plants one mistake at a time and wants the checker that is there for it to speak up: a checker that cannot fail
// proves nothing.
func TestCheckersFindPlantedBugs(t *testing.T) {
	if raceDetector || testing.Short() {
		t.Skip("the checkers are not checked with the race detector or -short: it takes minutes, and TestSeeds plays the same code")
	}
	clumsy := temper{failing: 0.25, slow: 0.03}
	planted := []struct {
		name   string
		temper temper
		bugs   bugs
		want   string
	}{
		{"a ledger that forgets", temper{forgetful: true}, bugs{}, "performed once"},
		{"a once-only operation is performed again after a crash", temper{impatience: true, slow: 0.1}, bugs{}, "performed once"},
		{"a host that listens to any epoch", temper{indulgent: true}, bugs{}, "epochs never fall"},
		{"reads that ask no leader", ordinary(), bugs{hasty: true}, "reads and writes are linearizable"},
		{"requests tried again without their ids", ordinary(), bugs{amnesia: true}, "acknowledged is kept"},
		{"writes acknowledged before they are committed", ordinary(), bugs{gossip: true}, "acknowledged is kept"},
		{"a state machine that reads the clock", ordinary(), bugs{apply: ownClock}, "the log is deterministic"},
		{"a state machine that reads the clock, on replicas", ordinary(), bugs{apply: ownClock}, "replicas agree"},
		{"steps dispatched after a cancel", clumsy, bugs{lead: deafLeader}, "no act without an intent"},
		{"locks that are not taken", ordinary(), bugs{apply: inPlan(func(p *coordinatorv1.Plan) { p.Locks = nil })}, "one holder of a lock"},
		{"nothing is undone", clumsy, bugs{apply: everyStep(func(s *coordinatorv1.Step) { s.Undo = nil })}, "taken back whole"},
		{"steps that wait for nothing", ordinary(), bugs{apply: everyStep(func(s *coordinatorv1.Step) { s.After = nil })}, "steps in order"},
		{"an update whose steps wait for nothing", ordinary(), bugs{apply: everyStep(func(s *coordinatorv1.Step) { s.After = nil })}, "the floor holds"},
		{"an update of which nothing is undone", clumsy, bugs{apply: everyStep(func(s *coordinatorv1.Step) { s.Undo = nil })}, "the release runs"},
		{"one approval instead of two", ordinary(), bugs{apply: everyStep(func(s *coordinatorv1.Step) {
			if s.GetApproval() != nil {
				s.Approval.Count = 1
			}
		})}, "asked before going on"},
		{"budgets without a limit", clumsy, bugs{apply: inPlan(func(p *coordinatorv1.Plan) {
			for _, b := range p.GetBudgets() {
				b.FailureAction = coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE
			}
		})}, "budgets hold"},
		{"failures reported as success", clumsy, bugs{outcome: func(o *raftv1.Outcome) { o.Failure = nil }}, "outcomes are the hosts'"},
		{"an engine without a clock", ordinary(), bugs{ticks: true}, "every run ends"},
		{"a stream that loses events", ordinary(), bugs{leaky: true}, "no event is missed"},
	}
	for _, tt := range planted {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= bugSeeds; seed++ {
				e := campaign{seed: seed, length: 40 * time.Second, temper: tt.temper, bugs: tt.bugs, patience: 3 * time.Minute}.run(t)
				if found := e.judge(tt.want); len(found) > 0 {
					t.Logf("seed %d: %s", seed, found[0])
					return
				}
			}
			t.Errorf("the checker %q has found nothing in %d campaigns", tt.want, bugSeeds)
		})
	}
}

// judge asks one checker.
func (e *evidence) judge(name string) []string {
	for _, c := range checkers() {
		if c.name == name {
			return c.check(e)
		}
	}
	return nil
}

// TestCheckersFindForgedLogs adds to the log of a good campaign what the state machine would never write, for the checkers of rules that no planted
// bug can break from outside.
func TestCheckersFindForgedLogs(t *testing.T) {
	e := campaign{seed: 1, length: 40 * time.Second, temper: ordinary(), calm: true}.run(t)
	if found := e.violations(); len(found) > 0 {
		t.Fatalf("a calm campaign breaks what must hold:\n%s", e.report(found))
	}
	var step *coordinatorv1.StepStatus // of a run that has ended
	for _, steps := range e.walk(func(*entry, *book) {}).steps {
		for _, s := range steps {
			if s.GetAttempt() > 0 {
				step = clone(s)
			}
		}
	}
	if step == nil {
		t.Fatal("the campaign began no step")
	}
	step.State, step.Attempt = coordinatorv1.StepState_STEP_STATE_RUNNING, step.GetAttempt()+1
	last := e.log[len(e.log)-1]
	e.log = append(e.log, &entry{
		index: last.index + 1, seq: last.seq + 1, command: &raftv1.Command{}, result: &raftv1.Result{}, steps: []*coordinatorv1.StepStatus{step},
	})
	for _, name := range []string{"no dispatch after an abort", "terminal is terminal"} {
		if len(e.judge(name)) == 0 {
			t.Errorf("the checker %q does not see a step that begins in a run that has ended", name)
		}
	}
}

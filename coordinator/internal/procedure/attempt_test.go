package procedure_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// InspectContainer answers with the states that were set, the last one for ever.
func (a *agent) InspectContainer(_ context.Context, req *agentv1.InspectContainerRequest) (*agentv1.InspectContainerResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inspected++
	states := a.states[req.GetName()]
	if len(states) == 0 {
		return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "the engine does not answer")
	}
	if len(states) > 1 {
		a.states[req.GetName()] = states[1:]
	}
	return &agentv1.InspectContainerResponse{State: states[0]}, nil
}

// ListOperations knows what had an effect.
func (a *agent) ListOperations(_ context.Context, req *agentv1.ListOperationsRequest) (*agentv1.ListOperationsResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := &agentv1.ListOperationsResponse{}
	for id := range a.effects {
		if strings.HasPrefix(id, req.GetPrefix()) {
			answer.Operations = append(answer.Operations, &agentv1.LedgerEntry{OperationId: id})
		}
	}
	return answer, nil
}

func running(t *testing.T, name string) *coordinatorv1.Check {
	t.Helper()
	return &coordinatorv1.Check{
		Probe:      step(t, "x", "InspectContainer", accessv1.Effect_EFFECT_NONE, &agentv1.InspectContainerRequest{Name: name}).GetAction(),
		Expression: `result.state == "running"`,
	}
}

func interrupted() error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, true, "the agent died while it acted")
}

func TestDoneIfSparesTheAction(t *testing.T) {
	for _, tt := range []struct {
		name   string
		states []string
		want   int
		spared bool
	}{
		{"there already", []string{"running"}, 0, true},
		{"not yet", []string{"created"}, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.agent.states = map[string][]string{"a": tt.states}
			s := start(t, "a")
			s.DoneIf = running(t, "a")
			defer b.lead()()
			run := b.start(s)
			b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
			if got := b.agent.effects[run+"/a/start/1"]; got != tt.want {
				t.Errorf("%d effects, want %d", got, tt.want)
			}
			if got := b.state.View().Step(run, "a/start").GetSpared(); got != tt.spared {
				t.Errorf("spared %v, want %v", got, tt.spared)
			}
		})
	}
}

func TestDoneIfThatCannotTellIsAFailure(t *testing.T) {
	b := newBench(t)
	s := start(t, "a")
	s.DoneIf = running(t, "a")
	defer b.lead()()
	run := b.start(s)
	b.ends(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
	if got := b.state.View().Run(run).GetCause(); !strings.Contains(got, "cannot tell whether it is done already") {
		t.Errorf("cause %q", got)
	}
}

// TestSentOperationIsAttachedTo: its agent knows it, so that a probe of the next leader decides nothing.
func TestSentOperationIsAttachedTo(t *testing.T) {
	b := newBench(t)
	b.agent.states = map[string][]string{"a": {"created"}}
	b.agent.lose = 1 << 20
	s := start(t, "a")
	s.DoneIf = running(t, "a")
	stop := b.lead()
	run := b.start(s)
	b.agent.waitFor(t, func() bool { return b.agent.effects[run+"/a/start/1"] == 1 })
	stop()
	b.agent.mu.Lock()
	b.agent.lose, b.agent.states["a"] = 0, []string{"running"}
	before := b.agent.inspected
	b.agent.mu.Unlock()
	defer b.lead()()
	b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	if b.agent.inspected != before || b.state.View().Step(run, "a/start").GetSpared() {
		t.Error("the next leader probed for an operation that was under way")
	}
}

func (a *agent) waitFor(t *testing.T, met func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		a.mu.Lock()
		ok := met()
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the agent never came to it")
		}
	}
}

func TestVerifyIsPolled(t *testing.T) {
	for _, tt := range []struct {
		name   string
		states []string
		within time.Duration
		want   coordinatorv1.RunState
	}{
		{"at once", []string{"running"}, 0, coordinatorv1.RunState_RUN_STATE_SUCCEEDED},
		{"later", []string{"created", "created", "running"}, 5 * time.Second, coordinatorv1.RunState_RUN_STATE_SUCCEEDED},
		{"never", []string{"exited"}, 300 * time.Millisecond, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.agent.states = map[string][]string{"a": tt.states}
			s := start(t, "a")
			s.Verify, s.VerifyFor = running(t, "a"), durationpb.New(tt.within)
			defer b.lead()()
			run := b.start(s)
			b.ends(run, tt.want)
			if failed := tt.want != coordinatorv1.RunState_RUN_STATE_SUCCEEDED; failed && b.agent.effects[run+"/undo/a/start/0/1"] != 1 {
				t.Error("what was not verified was not undone")
			}
		})
	}
}

func TestLostOutcome(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ifUnknown coordinatorv1.IfUnknown
		states    []string
		want      coordinatorv1.StepState
		attempts  uint32
	}{
		{"asks by default", 0, []string{"created"}, coordinatorv1.StepState_STEP_STATE_ASKING, 1},
		{"stops", coordinatorv1.IfUnknown_IF_UNKNOWN_STOP, []string{"created"}, coordinatorv1.StepState_STEP_STATE_FAILED, 1},
		{"is probed: done", coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE, []string{"created", "running"}, coordinatorv1.StepState_STEP_STATE_DONE, 1},
		{"is probed: not done", coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE, []string{"created"}, coordinatorv1.StepState_STEP_STATE_DONE, 2},
		{"is repeated", coordinatorv1.IfUnknown_IF_UNKNOWN_REPEAT, []string{"created"}, coordinatorv1.StepState_STEP_STATE_DONE, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.agent.states = map[string][]string{"a": tt.states}
			b.agent.once = map[string]error{"a": interrupted()}
			s := start(t, "a")
			s.IfUnknown = tt.ifUnknown
			s.DoneIf = running(t, "a")
			defer b.lead()()
			run := b.start(s)
			b.until("the step is "+tt.want.String(), func(v *state.View) bool { return v.Step(run, "a/start").GetState() == tt.want })
			if got := b.state.View().Step(run, "a/start").GetAttempt(); got != tt.attempts {
				t.Errorf("attempt %d, want %d", got, tt.attempts)
			}
			if tt.want != coordinatorv1.StepState_STEP_STATE_ASKING {
				return
			}
			_, _ = b.propose(context.Background(), &raftv1.Command{Version: 1, Now: timestamppb.Now(), Actor: "bob", Op: &raftv1.Command_ResolveStep{ResolveStep: &raftv1.ResolveStep{
				RunId: run, Resolution: coordinatorv1.Resolution_RESOLUTION_DONE,
			}}})
			b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
		})
	}
}

func TestConditionThatCannotBeIsRefused(t *testing.T) {
	b := newBench(t)
	s := start(t, "a")
	s.Verify = running(t, "a")
	s.Verify.Expression = "result.stat == 'running'"
	defer b.lead()()
	run := b.start(s)
	b.ends(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
	if len(b.agent.effects) > 1 || b.agent.effects[run+"/a/start/1"] != 0 {
		t.Errorf("effects %v before a condition that cannot be", b.agent.effects)
	}
}

package simulation

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func clone[T proto.Message](message T) T { return proto.CloneOf(message) }

func unmarshal(raw []byte, into proto.Message) {
	if err := proto.Unmarshal(raw, into); err != nil {
		panic("simulation: a plan holds an unreadable request: " + err.Error())
	}
}

// noActWithoutIntent: no host begins what the log did not order before, nor an action with an effect for a run that is over. Clean-up that was under
// way when the time of its run was over is the exception: the run has its release in place and ends, and the host may get the request after that.
func noActWithoutIntent(e *evidence) (found []string) {
	intents, ended := map[string]int64{}, map[string]int64{}
	final := e.walk(func(x *entry, b *book) {
		for _, s := range x.steps {
			if begins(b, s) {
				intents[state.OperationID(s)] = x.seq
			}
		}
		for _, r := range x.runs {
			if state.Terminal(r.GetState()) && r.GetState() != coordinatorv1.RunState_RUN_STATE_FAILED && ended[r.GetId()] == 0 {
				ended[r.GetId()] = x.seq
			}
		}
	})
	for _, f := range e.facts {
		if f.deed != accepted {
			continue
		}
		run, _, _ := strings.Cut(f.op, "/")
		ordered, _, _ := strings.Cut(f.op, "/check-") // A check belongs to the step that asks.
		if at := intents[ordered]; at == 0 || at > f.seq {
			found = append(found, fmt.Sprintf("%v, which no committed entry had ordered", f))
		}
		step, _, _ := strings.Cut(strings.TrimPrefix(f.op, run+"/"), "/check-")
		step = step[:max(0, strings.LastIndexByte(step, '/'))]
		left := final.steps[run][step].GetState() == coordinatorv1.StepState_STEP_STATE_SKIPPED &&
			state.Definition(final.plans[run], step).GetCleanUp()
		if over := ended[run]; over > 0 && !left && f.seq > over && f.effect != accessv1.Effect_EFFECT_NONE {
			found = append(found, fmt.Sprintf("%v, and run %s had ended at #%d", f, run, over))
		}
	}
	return found
}

// performedOnce: an operation is accepted once and has at most one effect, whatever dies; one that runs is never begun again, and a once-only
// one is never begun twice.
func performedOnce(e *evidence) (found []string) {
	type life struct {
		accepted, effects int
		began             map[int]int // by incarnation of the agent
		effect            accessv1.Effect
	}
	lives := map[string]*life{}
	for _, f := range e.facts {
		if f.op == "" {
			continue
		}
		l := lives[f.host+" "+f.op]
		if l == nil {
			l = &life{began: map[int]int{}, effect: f.effect}
			lives[f.host+" "+f.op] = l
		}
		switch f.deed {
		case accepted:
			l.accepted++
		case started:
			l.began[f.incarnation]++
		case effected:
			l.effects++
		}
	}
	for id, l := range lives {
		if l.effect != accessv1.Effect_EFFECT_NONE && l.accepted > 1 {
			found = append(found, fmt.Sprintf("%s was accepted %d times", id, l.accepted))
		}
		if l.effects > 1 {
			found = append(found, fmt.Sprintf("%s had its effect %d times", id, l.effects))
		}
		total := 0
		for _, n := range l.began {
			if total += n; n > 1 {
				found = append(found, fmt.Sprintf("%s was begun %d times in one life of the agent", id, n))
			}
		}
		if l.effect == accessv1.Effect_EFFECT_ONCE && total > 1 {
			found = append(found, fmt.Sprintf("%s may be performed once, and was begun %d times", id, total))
		}
	}
	slices.Sort(found)
	return found
}

// epochsNeverFall: no host listens to an engine after it has listened to a later one.
func epochsNeverFall(e *evidence) (found []string) {
	highest := map[string]fact{}
	for _, f := range bySeq(e.facts) {
		if f.deed != called {
			continue
		}
		if before := highest[f.host]; f.epoch < before.epoch {
			found = append(found, fmt.Sprintf("%v came after epoch %d", f, before.epoch))
			continue
		}
		highest[f.host] = f
	}
	return found
}

func bySeq(facts []fact) []fact {
	sorted := slices.Clone(facts)
	slices.SortFunc(sorted, func(a, b fact) int { return int(a.seq - b.seq) })
	return sorted
}

// outcomesAreTheHosts: what the log says of an operation is what its host recorded, and the host had recorded it before.
func outcomesAreTheHosts(e *evidence) (found []string) {
	recorded := map[string][]fact{}
	for _, f := range e.facts {
		if f.deed == finished {
			recorded[f.op] = append(recorded[f.op], f)
		}
	}
	e.walk(func(x *entry, b *book) {
		for _, o := range x.command.GetRecordOutcomes().GetOutcomes() {
			was := b.steps[o.GetRunId()][o.GetStepId()]
			changed := slices.ContainsFunc(x.steps, func(s *coordinatorv1.StepStatus) bool {
				return s.GetRunId() == o.GetRunId() && s.GetStepId() == o.GetStepId()
			})
			if !changed || was == nil || was.GetAttempt() != o.GetAttempt() || !isOpen(was) {
				continue // it came too late, and changed nothing
			}
			id, def := state.OperationID(was), state.Definition(b.plans[o.GetRunId()], o.GetStepId())
			same := slices.ContainsFunc(recorded[id], func(f fact) bool { return f.seq < x.seq && follows(def, f, o) })
			switch {
			case o.GetSpared() || o.GetFailure().GetReason() == agentv1.FailureReason_FAILURE_REASON_UNSPECIFIED && o.GetFailure() != nil:
				// done_if held, or could not be told: then the operation was not begun.
				if def.GetDoneIf() == nil || acceptedBefore(e.facts, id, x.seq) {
					found = append(found, fmt.Sprintf("entry %d says that %s was not needed, and it was performed", x.index, id))
				}
			case !same:
				found = append(found, fmt.Sprintf("entry %d says %v of %s, its host recorded %v", x.index, outcomeText(o.GetFailure().GetMessage()), id, recorded[id]))
			}
		}
	})
	return found
}

// follows says that an outcome is what a host's record of the operation means for its step.
func follows(def *coordinatorv1.Step, f fact, o *raftv1.Outcome) bool {
	interrupted := f.failure.GetReason() == agentv1.FailureReason_FAILURE_REASON_INTERRUPTED
	switch {
	case o.GetLost():
		return interrupted
	case interrupted && def.GetIfUnknown() == coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE && o.GetFailure() == nil:
		return true // its probe told
	case o.GetFailure().GetReason() == agentv1.FailureReason_FAILURE_REASON_NOT_VERIFIED:
		return f.failure == nil && def.GetVerify() != nil
	case o.GetFailure() != nil || f.failure != nil:
		return f.failure.GetReason() == o.GetFailure().GetReason()
	}
	return bytes.Equal(f.response, o.GetResult())
}

func acceptedBefore(facts []fact, op string, seq int64) bool {
	return slices.ContainsFunc(facts, func(f fact) bool { return f.deed == accepted && f.op == op && f.seq < seq })
}

func outcomeText(failure string) string {
	if failure == "" {
		return "success"
	}
	return "failure: " + failure
}

package simulation

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// A checker judges the evidence by what was asked for (the commands of the log), what the state machine said of it, and what the hosts did. None
// of them trusts the state machine's own rules: they read the plans again.
type checker struct {
	name  string
	check func(*evidence) []string
}

func checkers() []checker {
	return []checker{
		{"seen at once", func(e *evidence) []string { return e.blames }},
		{"no dispatch after an abort", noDispatchAfterAbort},
		{"no act without an intent", noActWithoutIntent},
		{"one holder of a lock", oneHolder},
		{"acknowledged is kept", acknowledgedIsKept},
		{"performed once", performedOnce},
		{"epochs never fall", epochsNeverFall},
		{"outcomes are the hosts'", outcomesAreTheHosts},
		{"steps in order", stepsInOrder},
		{"budgets hold", budgetsHold},
		{"asked before going on", askedBeforeGoingOn},
		{"taken back whole", takenBackWhole},
		{"the floor holds", floorHolds},
		{"the release runs", theReleaseRuns},
		{"terminal is terminal", terminalIsTerminal},
		{"every run ends", everyRunEnds},
		{"replicas agree", replicasAgree},
		{"the log is deterministic", deterministic},
		{"reads and writes are linearizable", linearizable},
		{"no event is missed", noEventIsMissed},
	}
}

// violations of everything that is checked.
func (e *evidence) violations() []string {
	var found []string
	for _, c := range checkers() {
		for i, text := range c.check(e) {
			if i == 5 {
				found = append(found, c.name+": and more")
				break
			}
			found = append(found, c.name+": "+text)
		}
	}
	return found
}

// book is the runs as they stand at some entry of the log.
type book struct {
	runs  map[string]*coordinatorv1.Run
	steps map[string]map[string]*coordinatorv1.StepStatus
	plans map[string]*coordinatorv1.Plan
}

// walk reads the log. The visitor sees every entry with the book before it.
func (e *evidence) walk(visit func(x *entry, before *book)) *book {
	b := &book{runs: map[string]*coordinatorv1.Run{}, steps: map[string]map[string]*coordinatorv1.StepStatus{}, plans: map[string]*coordinatorv1.Plan{}}
	for _, x := range e.log {
		if start := x.command.GetStartRun(); start != nil && len(x.runs) > 0 && !x.result.GetReplayed() {
			b.plans[x.result.GetRun().GetId()] = start.GetPlan()
		}
		visit(x, b)
		for _, r := range x.runs {
			b.runs[r.GetId()] = r
		}
		for _, s := range x.steps {
			if b.steps[s.GetRunId()] == nil {
				b.steps[s.GetRunId()] = map[string]*coordinatorv1.StepStatus{}
			}
			b.steps[s.GetRunId()][s.GetStepId()] = s
		}
	}
	return b
}

func isUndo(step string) bool { return strings.HasPrefix(step, "undo/") }

func isOpen(s *coordinatorv1.StepStatus) bool {
	return s.GetState() == coordinatorv1.StepState_STEP_STATE_RUNNING || s.GetState() == coordinatorv1.StepState_STEP_STATE_UNKNOWN
}

func isSettled(s *coordinatorv1.StepStatus) bool {
	switch s.GetState() {
	case coordinatorv1.StepState_STEP_STATE_DONE, coordinatorv1.StepState_STEP_STATE_FAILED, coordinatorv1.StepState_STEP_STATE_SKIPPED:
		return true
	}
	return false
}

// begins says that an entry commits the intent for an attempt that was not there before.
func begins(b *book, s *coordinatorv1.StepStatus) bool {
	was := b.steps[s.GetRunId()][s.GetStepId()]
	return isOpen(s) && (was == nil || s.GetAttempt() > was.GetAttempt())
}

// noDispatchAfterAbort: once a run is taken back, cancelled or over, none of its own steps begins any more, and its undo steps do so only while
// it is taken back.
func noDispatchAfterAbort(e *evidence) (found []string) {
	e.walk(func(x *entry, b *book) {
		for _, s := range x.steps {
			run := b.runs[s.GetRunId()]
			if run == nil || !begins(b, s) {
				continue
			}
			switch run.GetState() {
			case coordinatorv1.RunState_RUN_STATE_RUNNING, coordinatorv1.RunState_RUN_STATE_PAUSED:
			default:
				if !isUndo(s.GetStepId()) || state.Terminal(run.GetState()) {
					found = append(found, fmt.Sprintf("entry %d begins %s, and run is %v", x.index, state.OperationID(s), run.GetState()))
				}
			}
		}
	})
	return found
}

// oneHolder: two runs whose plans name the same lock are never under way at the same time, and the fence is the entry that took it.
func oneHolder(e *evidence) (found []string) {
	holders := map[string]string{}
	e.walk(func(x *entry, b *book) {
		for _, r := range x.runs {
			for _, lock := range b.plans[r.GetId()].GetLocks() {
				switch {
				case state.Terminal(r.GetState()):
					if holders[lock] == r.GetId() {
						delete(holders, lock)
					}
				case holders[lock] == "":
					holders[lock] = r.GetId()
				case holders[lock] != r.GetId():
					found = append(found, fmt.Sprintf("entry %d: run %s goes under lock %s, which run %s holds", x.index, r.GetId(), lock, holders[lock]))
				}
			}
			if x.result.GetRun().GetId() == r.GetId() && x.command.GetStartRun() != nil && r.GetFence() != x.index {
				found = append(found, fmt.Sprintf("run %s has fence %d and was started at %d", r.GetId(), r.GetFence(), x.index))
			}
		}
	})
	fences := map[string]uint64{}
	final := e.walk(func(*entry, *book) {})
	for id, r := range final.runs {
		fences[id] = r.GetFence()
	}
	for _, f := range e.facts {
		run, _, _ := strings.Cut(f.op, "/")
		if f.deed == called && fences[run] != f.fence {
			found = append(found, fmt.Sprintf("%v carried fence %d, the run has %d", f, f.fence, fences[run]))
		}
	}
	return found
}

// acknowledgedIsKept: what a client was told stands in the log, at the index that it was told, with that result. A request is in effect once.
func acknowledgedIsKept(e *evidence) (found []string) {
	byRequest := map[string]*entry{} // the entry in which a request had its effect
	for _, x := range e.log {
		if id := x.command.GetRequestId(); id != "" && !x.result.GetReplayed() && x.result.GetError() == nil {
			if first := byRequest[id]; first != nil {
				found = append(found, fmt.Sprintf("request %s had its effect at %d and at %d", id, first.index, x.index))
			}
			byRequest[id] = x
		}
	}
	at := map[uint64]*entry{}
	for _, x := range e.log {
		at[x.index] = x
	}
	for _, a := range e.acks {
		x := at[a.index]
		switch {
		case x == nil || x.command.GetRequestId() != a.request:
			found = append(found, fmt.Sprintf("request %s was acknowledged at index %d, where the log has another command or none", a.request, a.index))
		default:
			answer := x.answer
			if x.result.GetReplayed() {
				answer = unreplayed(x.result)
			}
			if !bytes.Equal(answer, a.answer) {
				found = append(found, fmt.Sprintf("request %s was told another result than that of index %d", a.request, a.index))
			}
		}
	}
	return found
}

// stepsInOrder: an attempt begins only when everything that its plan names before it has settled; an undo step only after its own step, and
// after the undoing of everything that came after that.
func stepsInOrder(e *evidence) (found []string) {
	e.walk(func(x *entry, b *book) {
		now := func(run, step string) *coordinatorv1.StepStatus {
			for _, s := range x.steps {
				if s.GetRunId() == run && s.GetStepId() == step {
					return s
				}
			}
			return b.steps[run][step]
		}
		for _, s := range x.steps {
			plan := b.plans[s.GetRunId()]
			if !begins(b, s) || plan == nil {
				continue
			}
			for _, before := range mustSettle(plan, s.GetStepId(), func(id string) bool { return now(s.GetRunId(), id) != nil }) {
				if other := now(s.GetRunId(), before); !isSettled(other) {
					found = append(found, fmt.Sprintf("entry %d begins %s before %s has settled (%v)", x.index, state.OperationID(s), before, other.GetState()))
				}
			}
		}
	})
	return found
}

// mustSettle reads from a plan what must be over when a step begins.
func mustSettle(plan *coordinatorv1.Plan, id string, entered func(string) bool) []string {
	byID := map[string]*coordinatorv1.Step{}
	for _, s := range plan.GetSteps() {
		byID[s.GetId()] = s
	}
	if !isUndo(id) {
		before := slices.Clone(byID[id].GetAfter())
		if byID[id].GetCleanUp() {
			for _, s := range plan.GetSteps() {
				if !s.GetCleanUp() {
					before = append(before, s.GetId())
				}
			}
		}
		return before
	}
	own, n := undone(id)
	before := []string{own}
	for i := range n {
		before = append(before, fmt.Sprintf("undo/%s/%d", own, i))
	}
	behind := map[string]bool{own: true}
	for _, s := range plan.GetSteps() { // in an order that satisfies the dependencies
		if slices.ContainsFunc(s.GetAfter(), func(a string) bool { return behind[a] }) {
			behind[s.GetId()] = true
			for i := range s.GetUndo() {
				if undo := fmt.Sprintf("undo/%s/%d", s.GetId(), i); entered(undo) {
					before = append(before, undo)
				}
			}
		}
	}
	return before
}

// undone takes the id of an undo step apart.
func undone(id string) (step string, n int) {
	at := strings.LastIndexByte(id, '/')
	_, _ = fmt.Sscan(id[at+1:], &n) // Ids of undo steps end in a number.
	return strings.TrimPrefix(id[:at], "undo/"), n
}

// budgetsHold: a run does not succeed with more failed groups than its budget tolerates, unless it was told to go on.
func budgetsHold(e *evidence) (found []string) {
	final := e.walk(func(*entry, *book) {})
	for id, run := range final.runs {
		if run.GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
			continue
		}
		failed := map[string]bool{}
		for _, s := range final.plans[id].GetSteps() {
			status := final.steps[id][s.GetId()]
			if status.GetState() == coordinatorv1.StepState_STEP_STATE_FAILED && !s.GetCleanUp() {
				if s.GetGroup() == "" {
					found = append(found, fmt.Sprintf("run %s succeeded, and its step %s failed", id, s.GetId()))
				}
				failed[s.GetGroup()] = true
			}
		}
		for _, budget := range final.plans[id].GetBudgets() {
			over := float64(len(failed)) > budget.GetMaxFailureRatio()*float64(len(budget.GetGroups()))
			if budget.MaxFailed != nil {
				over = len(failed) > int(budget.GetMaxFailed())
			}
			if over && budget.GetFailureAction() == coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK {
				found = append(found, fmt.Sprintf("run %s succeeded with %d failed groups of %d, tolerated are %v", id, len(failed), len(budget.GetGroups()), budget.GetMaxFailureRatio()))
			}
		}
	}
	return found
}

// askedBeforeGoingOn: a step that asks is done only when enough different people, none of them the one who started the run, have said yes to
// the very plan, and none has said no since it was asked last.
func askedBeforeGoingOn(e *evidence) (found []string) {
	said := map[string]map[string]bool{} // who said yes, by run and step
	e.walk(func(x *entry, b *book) {
		d := x.command.GetDecideStep()
		key := d.GetRunId() + " " + d.GetStepId()
		if d != nil && x.result.GetError() == nil && !x.result.GetReplayed() {
			if said[key] == nil || !d.GetApprove() {
				said[key] = map[string]bool{}
			}
			run := b.runs[d.GetRunId()]
			if d.GetApprove() && run.GetCreatedBy() != x.command.GetActor() && run.GetPlanHash() == d.GetPlanHash() {
				said[key][x.command.GetActor()] = true
			}
		}
		for _, s := range x.steps {
			def := state.Definition(b.plans[s.GetRunId()], s.GetStepId())
			if def.GetApproval() == nil || s.GetState() != coordinatorv1.StepState_STEP_STATE_DONE {
				continue
			}
			if yes := len(said[s.GetRunId()+" "+s.GetStepId()]); yes < max(1, int(def.GetApproval().GetCount())) {
				found = append(found, fmt.Sprintf("entry %d: step %s of run %s goes on with %d of %d approvals", x.index, s.GetStepId(), s.GetRunId(), yes, def.GetApproval().GetCount()))
			}
		}
	})
	return found
}

// takenBackWhole: of a run that was taken back, every step that may have had an effect was undone, and nothing else was; what it started does
// not run any more. Of a run that succeeded only failed groups were undone, and nothing of it is left undone.
func takenBackWhole(e *evidence) (found []string) {
	begun, performed := map[string]bool{}, map[string]bool{}
	final := e.walk(func(x *entry, _ *book) {
		for _, s := range x.steps {
			if isOpen(s) {
				begun[s.GetRunId()+"/"+s.GetStepId()] = true
			}
		}
	})
	for _, f := range e.facts {
		if at := strings.LastIndexByte(f.op, '/'); f.deed == effected {
			performed[f.op[:at]] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(final.runs)) {
		run, plan, steps := final.runs[id], final.plans[id], final.steps[id]
		back := run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLED_BACK || run.GetState() == coordinatorv1.RunState_RUN_STATE_CANCELLED
		if !back && run.GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
			continue
		}
		failed := map[string]bool{}
		for _, s := range plan.GetSteps() {
			if steps[s.GetId()].GetState() == coordinatorv1.StepState_STEP_STATE_FAILED && !s.GetCleanUp() {
				failed[s.GetGroup()] = true
			}
		}
		for _, s := range plan.GetSteps() {
			taken := back || s.GetGroup() != "" && failed[s.GetGroup()]
			for n := range s.GetUndo() {
				status := steps[fmt.Sprintf("undo/%s/%d", s.GetId(), n)]
				switch {
				case taken && performed[id+"/"+s.GetId()] && status.GetState() != coordinatorv1.StepState_STEP_STATE_DONE:
					found = append(found, fmt.Sprintf("run %s (%v): step %s was performed and not undone (%v)", id, run.GetState(), s.GetId(), status.GetState()))
				case status != nil && (!taken || !begun[id+"/"+s.GetId()]):
					found = append(found, fmt.Sprintf("run %s (%v): step %s was undone, and should not have been", id, run.GetState(), s.GetId()))
				}
			}
			if started := startedBy(s); back && started != "" && e.running[started] {
				found = append(found, fmt.Sprintf("run %s (%v): %s still runs", id, run.GetState(), started))
			}
		}
	}
	return found
}

func startedBy(s *coordinatorv1.Step) string {
	if s.GetAction().GetMethod() != containers+"StartContainer" {
		return ""
	}
	request := &agentv1.StartContainerRequest{}
	unmarshal(s.GetAction().GetRequest(), request)
	return request.GetName()
}

// terminalIsTerminal: nothing of a run changes after its end, and it left no operation open.
func terminalIsTerminal(e *evidence) (found []string) {
	e.walk(func(x *entry, b *book) {
		for _, r := range x.runs {
			if was := b.runs[r.GetId()]; was != nil && state.Terminal(was.GetState()) {
				found = append(found, fmt.Sprintf("entry %d changes run %s, which had ended %v", x.index, r.GetId(), was.GetState()))
			}
		}
		for _, s := range x.steps {
			if was := b.runs[s.GetRunId()]; was != nil && state.Terminal(was.GetState()) {
				found = append(found, fmt.Sprintf("entry %d changes step %s of run %s, which had ended", x.index, s.GetStepId(), s.GetRunId()))
			}
		}
	})
	final := e.walk(func(*entry, *book) {})
	for id, r := range final.runs {
		for _, s := range final.steps[id] {
			if state.Terminal(r.GetState()) && isOpen(s) {
				found = append(found, fmt.Sprintf("run %s ended %v with %s open", id, r.GetState(), s.GetStepId()))
			}
		}
	}
	return found
}

// everyRunEnds once nothing hurts the fleet any more and somebody answers the questions.
func everyRunEnds(e *evidence) (found []string) {
	final := e.walk(func(*entry, *book) {})
	for id, r := range final.runs {
		if !state.Terminal(r.GetState()) {
			found = append(found, fmt.Sprintf("run %s is still %v: %s", id, r.GetState(), r.GetCause()))
		}
	}
	if !e.settled && len(found) == 0 {
		found = append(found, "the cluster did not become whole again")
	}
	return found
}

// replicasAgree: after the campaign all coordinators hold the same bytes.
func replicasAgree(e *evidence) (found []string) {
	if !e.agreed {
		return []string{"not every coordinator caught up"}
	}
	names := slices.Sorted(maps.Keys(e.snapshots))
	for _, name := range names[1:] {
		if !bytes.Equal(e.snapshots[name], e.snapshots[names[0]]) {
			found = append(found, fmt.Sprintf("the state of %s is not that of %s", name, names[0]))
		}
	}
	return found
}

// deterministic: the log, applied twice to nothing, gives the same bytes, and those that the coordinators came to.
func deterministic(e *evidence) (found []string) {
	once, _ := replay(e.log, "first replay", e.bugs.apply)
	twice, _ := replay(e.log, "second replay", e.bugs.apply)
	if !bytes.Equal(once, twice) {
		found = append(found, "two replays of the same log differ")
	}
	for name, s := range e.snapshots {
		if e.agreed && !bytes.Equal(s, once) {
			found = append(found, fmt.Sprintf("the state of %s is not what its log gives", name))
		}
	}
	return found
}

// unreplayed is the answer to a repetition as the first answer was.
func unreplayed(result *raftv1.Result) []byte {
	plain := clone(result)
	plain.Replayed = false
	return marshal(plain)
}

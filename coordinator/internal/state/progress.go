package state

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// progress is one run being moved by one command: the run, its plan and the present state of all its steps.
type progress struct {
	c     *change
	run   *coordinatorv1.Run
	plan  *coordinatorv1.Plan
	steps []*coordinatorv1.StepStatus
	at    map[string]int
	defs  map[string]*coordinatorv1.Step
	dirty map[int]bool
}

func (c *change) resume(run *coordinatorv1.Run) *progress {
	v := c.view()
	r := &progress{
		c: c, run: clone(run), plan: v.Plan(run.GetId()), steps: v.Steps(run.GetId()),
		at: map[string]int{}, defs: map[string]*coordinatorv1.Step{}, dirty: map[int]bool{},
	}
	for i, step := range r.steps {
		r.at[step.GetStepId()] = i
	}
	for _, step := range r.plan.GetSteps() {
		r.defs[step.GetId()] = step
	}
	return r
}

func (r *progress) step(id string) *coordinatorv1.StepStatus {
	i, ok := r.at[id]
	if !ok {
		return nil
	}
	return r.steps[i]
}

// edit returns a step that may be changed; save stores it.
func (r *progress) edit(id string) *coordinatorv1.StepStatus {
	i := r.at[id]
	if !r.dirty[i] {
		r.steps[i] = clone(r.steps[i])
		r.dirty[i] = true
	}
	return r.steps[i]
}

func (r *progress) save() {
	var done uint32
	for i, step := range r.steps {
		if settled(step.GetState()) {
			done++
		}
		if r.dirty[i] {
			step.Revision = r.c.index
			r.c.put(tableStep, r.run.GetId()+"/"+step.GetStepId(), step)
		}
	}
	r.run.StepsTotal, r.run.StepsSettled, r.run.Revision = uint32(len(r.steps)), done, r.c.index
	r.c.put(tableRun, r.run.GetId(), r.run)
}

// advance moves the run as far as it goes by itself, and stores it.
func (r *progress) advance() {
	for changed := true; changed && !Terminal(r.run.GetState()); {
		switch r.run.GetState() {
		case coordinatorv1.RunState_RUN_STATE_RUNNING:
			changed = r.startReady(false)
			if !changed {
				changed = r.commitOrEnd()
			}
		case coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
			changed = r.startReady(true)
			if !changed {
				changed = r.endRollback()
			}
		case coordinatorv1.RunState_RUN_STATE_PAUSED:
			// A group that failed is taken back even so: an operator who thinks about it wants its instance to serve meanwhile.
			changed = r.startReady(true)
		default:
			changed = false
		}
	}
	r.save()
}

func isUndo(id string) bool { return strings.HasPrefix(id, undoPrefix) }

// startReady starts every step whose time has come: all of them, or only those that take something back.
func (r *progress) startReady(undoOnly bool) bool {
	changed := false
	for i := range r.steps {
		status := r.steps[i]
		if undoOnly && !isUndo(status.GetStepId()) {
			continue
		}
		switch status.GetState() {
		case coordinatorv1.StepState_STEP_STATE_PENDING:
			if !r.ready(status) {
				continue
			}
			r.begin(status.GetStepId())
			changed = true
		case coordinatorv1.StepState_STEP_STATE_WAITING:
			if r.c.now.Before(status.GetNotBefore().AsTime()) {
				continue
			}
			r.dispatch(status.GetStepId())
			changed = true
		}
	}
	return changed
}

func (r *progress) after(status *coordinatorv1.StepStatus) []string {
	if isUndo(status.GetStepId()) {
		return status.GetAfter()
	}
	return r.defs[status.GetStepId()].GetAfter()
}

func (r *progress) ready(status *coordinatorv1.StepStatus) bool {
	if r.definition(status.GetStepId()).GetCleanUp() && !r.run.GetCommitted() {
		return false
	}
	for _, id := range r.after(status) {
		if !settled(r.step(id).GetState()) {
			return false
		}
		// What a failed group took away must be back before the next one is touched: the floor holds for failures that are tolerated, too.
		if !isUndo(status.GetStepId()) && r.away(r.step(id).GetGroup()) {
			return false
		}
	}
	return true
}

// away says that a group failed and is still being taken back.
func (r *progress) away(group string) bool {
	if !r.failed(group) {
		return false
	}
	for _, status := range r.steps {
		if isUndo(status.GetStepId()) && status.GetGroup() == group && !settled(status.GetState()) {
			return true
		}
	}
	return false
}

// begin starts a step, or lets it wait for its delay, or skips it because its group failed.
func (r *progress) begin(id string) {
	def := r.definition(id)
	if !isUndo(id) && r.failed(def.GetGroup()) {
		r.settle(id, coordinatorv1.StepState_STEP_STATE_SKIPPED)
		return
	}
	if def.GetApproval() != nil {
		r.ask(id)
		return
	}
	if delay := def.GetDelay().AsDuration(); delay > 0 {
		step := r.edit(id)
		step.State, step.NotBefore = coordinatorv1.StepState_STEP_STATE_WAITING, later(r.c.stamp(), delay)
		return
	}
	r.dispatch(id)
}

// dispatch commits the intent to perform a step: from here on the leader may call the agent.
func (r *progress) dispatch(id string) {
	step, def := r.edit(id), r.definition(id)
	step.State, step.Attempt, step.Dispatched = coordinatorv1.StepState_STEP_STATE_RUNNING, step.GetAttempt()+1, true
	step.StartedAt, step.NotBefore, step.FinishedAt, step.UnreachableSince = r.c.stamp(), nil, nil, nil
	step.Deadline = later(r.c.stamp(), def.GetTimeout().AsDuration()+def.GetVerifyFor().AsDuration()+answerMargin)
}

func (r *progress) settle(id string, state coordinatorv1.StepState) {
	step := r.edit(id)
	step.State, step.FinishedAt, step.NotBefore, step.UnreachableSince = state, r.c.stamp(), nil, nil
}

func (r *progress) failed(group string) bool {
	if group == "" {
		return false
	}
	for _, failed := range r.run.GetFailedGroups() {
		if failed == group {
			return true
		}
	}
	return false
}

// record takes the outcome of an operation. The first outcome of an attempt wins; a late one changes nothing.
func (r *progress) record(outcome *raftv1.Outcome) {
	status := r.step(outcome.GetStepId())
	if status == nil || !open(status.GetState()) || status.GetAttempt() != outcome.GetAttempt() {
		return
	}
	id := status.GetStepId()
	if outcome.GetLost() {
		r.askWhatBecame(id, outcome.GetFailure())
		return
	}
	if outcome.GetFailure() == nil {
		r.settle(id, coordinatorv1.StepState_STEP_STATE_DONE)
		step := r.edit(id)
		step.Result, step.Spared = outcome.GetResult(), outcome.GetSpared()
		if outcome.GetSpared() && outcome.GetAttempt() == 1 {
			step.Dispatched = false // What was there already is not this run's to take back.
		}
		return
	}
	def, failure := r.definition(id), outcome.GetFailure()
	r.edit(id).Failure = failure
	wanted := isUndo(id) || r.run.GetState() == coordinatorv1.RunState_RUN_STATE_RUNNING || r.run.GetState() == coordinatorv1.RunState_RUN_STATE_PAUSED
	if wanted && !failure.GetPermanent() && status.GetAttempt() < attempts(def, failure) {
		step := r.edit(id)
		step.State, step.NotBefore = coordinatorv1.StepState_STEP_STATE_WAITING, later(r.c.stamp(), retryDelay(def, status.GetAttempt()))
		step.UnreachableSince = nil
		return
	}
	r.settle(id, coordinatorv1.StepState_STEP_STATE_FAILED)
	r.stepFailed(def, failure)
}

// attempts that a step may have. Those that an agent's end cut short do not use up the step's own.
func attempts(def *coordinatorv1.Step, failure *agentv1.OperationFailure) uint32 {
	own := max(1, def.GetMaxAttempts())
	if failure.GetReason() == agentv1.FailureReason_FAILURE_REASON_INTERRUPTED {
		return own + interruptedAttempts
	}
	return own
}

// retryDelay before the attempt that follows the n-th.
func retryDelay(def *coordinatorv1.Step, n uint32) time.Duration {
	delay := def.GetRetryDelay().AsDuration()
	for range min(n, 64) - 1 {
		if def.GetRetryBackoff() <= 1 || delay >= retryMost {
			break
		}
		delay = time.Duration(float64(delay) * def.GetRetryBackoff())
	}
	if def.GetRetryBackoff() > 1 {
		return min(delay, retryMost)
	}
	return delay
}

// stepFailed decides what the failure of a step means for the run.
func (r *progress) stepFailed(def *coordinatorv1.Step, failure *agentv1.OperationFailure) {
	cause := def.GetTitle() + ": " + failure.GetMessage()
	switch {
	case isUndo(def.GetId()):
		// A group that cannot be taken back takes the run with it: resuming then goes on with a whole rollback.
		before := r.run.GetCause()
		r.rollBack(before)
		r.run.State, r.run.Cause = coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN, "undoing failed: "+cause+afterCause(before)
		return
	case def.GetCleanUp(), r.rollingBack():
		return
	case def.GetGroup() == "":
		r.rollBack(cause)
		return
	case r.failed(def.GetGroup()):
		return
	}
	r.run.FailedGroups = append(r.run.GetFailedGroups(), def.GetGroup())
	budget := budgetOf(r.plan, def.GetGroup())
	failed := 0
	for _, group := range budget.GetGroups() {
		if r.failed(group) {
			failed++
		}
	}
	exceeded := float64(failed) > budget.GetMaxFailureRatio()*float64(len(budget.GetGroups()))
	if budget.MaxFailed != nil {
		exceeded = failed > int(budget.GetMaxFailed())
	}
	action := budget.GetFailureAction()
	switch {
	case !exceeded || action == coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE:
		r.undoGroup(def.GetGroup())
	case action == coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE:
		r.undoGroup(def.GetGroup())
		r.hold(cause + fmt.Sprintf(" (%d of %d failed; failure_action is pause)", failed, len(budget.GetGroups())))
	default:
		r.rollBack(cause)
	}
}

func afterCause(cause string) string {
	if cause == "" {
		return ""
	}
	return " (after: " + cause + ")"
}

func budgetOf(plan *coordinatorv1.Plan, group string) *coordinatorv1.FailureBudget {
	for _, budget := range plan.GetBudgets() {
		for _, g := range budget.GetGroups() {
			if g == group {
				return budget
			}
		}
	}
	return &coordinatorv1.FailureBudget{Groups: []string{group}}
}

func (r *progress) rollingBack() bool {
	return r.run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLING_BACK ||
		r.run.GetState() == coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN
}

// commitOrEnd activates the release once only clean-up is left, and ends the run once nothing is.
func (r *progress) commitOrEnd() bool {
	left, cleaning := 0, 0
	for _, step := range r.steps {
		if settled(step.GetState()) {
			continue
		}
		if !isUndo(step.GetStepId()) && r.defs[step.GetStepId()].GetCleanUp() {
			cleaning++
			continue
		}
		left++
	}
	if left > 0 {
		return false
	}
	if !r.run.GetCommitted() {
		r.run.Committed = true
		r.c.activate(r.run)
		r.c.abandon(r.plan)
		return true
	}
	if cleaning > 0 {
		return false
	}
	r.finish(coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	r.c.reclaim(r.plan)
	return true
}

func (r *progress) finish(state coordinatorv1.RunState) {
	r.run.State = state
	r.c.endRun(r.run)
}

func (r *progress) hold(cause string) {
	if r.run.GetState() != coordinatorv1.RunState_RUN_STATE_PAUSED {
		r.run.PausedAt = r.c.stamp()
	}
	r.run.State, r.run.Cause = coordinatorv1.RunState_RUN_STATE_PAUSED, cause
}

func (r *progress) pause(cause string) error {
	if r.run.GetState() != coordinatorv1.RunState_RUN_STATE_RUNNING {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_RUNNING, "run %s is %s: only a running one can be paused", r.run.GetId(), stateWord(r.run.GetState()))
	}
	r.hold(cause)
	return nil
}

// unpause lets a paused run go on, with every deadline moved by the time that it was paused; or a rollback that needed a human try again.
func (r *progress) unpause() error {
	switch r.run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_PAUSED:
		shift := r.c.now.Sub(r.run.GetPausedAt().AsTime())
		r.run.State, r.run.Cause, r.run.PausedAt = coordinatorv1.RunState_RUN_STATE_RUNNING, "", nil
		r.run.Deadline = later(r.run.GetDeadline(), shift)
		if !r.c.now.Before(r.run.GetDeadline().AsTime()) { // It was paused because its time was over: whoever resumes it gives it as much again.
			r.run.Deadline = later(r.c.stamp(), r.plan.GetMaxDuration().AsDuration())
		}
		r.askAgain(shift)
		for _, status := range r.steps {
			if status.GetState() == coordinatorv1.StepState_STEP_STATE_WAITING {
				step := r.edit(status.GetStepId())
				step.NotBefore = later(step.GetNotBefore(), shift)
			}
		}
	case coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		r.run.State, r.run.Deadline = coordinatorv1.RunState_RUN_STATE_ROLLING_BACK, later(r.c.stamp(), rollbackTime)
		for _, status := range r.steps {
			if isUndo(status.GetStepId()) && status.GetState() == coordinatorv1.StepState_STEP_STATE_FAILED {
				r.edit(status.GetStepId()).State = coordinatorv1.StepState_STEP_STATE_PENDING
			}
		}
	default:
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_PAUSED, "run %s is %s: there is nothing to resume", r.run.GetId(), stateWord(r.run.GetState()))
	}
	return nil
}

// cancel takes the run back; once its release is in place it only leaves the clean-up; and where a rollback needed a human, it is how the
// human ends it.
func (r *progress) cancel(reason string) error {
	by := "cancelled by " + r.c.actor + because(reason)
	switch r.run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_RUNNING, "run %s is being taken back already", r.run.GetId())
	case coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		r.run.CancelledBy = r.c.actor
		r.abandonOpen(func(string) bool { return true })
		r.skipQuestions(func(*coordinatorv1.StepStatus) bool { return true })
		r.finish(coordinatorv1.RunState_RUN_STATE_FAILED)
		return nil
	}
	if r.run.GetCommitted() {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_RUNNING,
			"run %s has put its release in place and only cleans up: take it back with `musterctl stack rollback %s`", r.run.GetId(), r.run.GetStack())
	}
	r.run.CancelledBy = r.c.actor
	r.rollBack(by)
	return nil
}

// deadlines lets those pass that are due: of open operations, whose outcome is then unknown, and of the run.
func (r *progress) deadlines() {
	for _, status := range r.steps {
		if status.GetState() == coordinatorv1.StepState_STEP_STATE_RUNNING && !r.c.now.Before(status.GetDeadline().AsTime()) {
			r.edit(status.GetStepId()).State = coordinatorv1.StepState_STEP_STATE_UNKNOWN
		}
		unanswered := asking(status.GetState()) && status.GetDeadline() != nil && !r.c.now.Before(status.GetDeadline().AsTime())
		if unanswered && r.run.GetState() == coordinatorv1.RunState_RUN_STATE_RUNNING {
			r.expired(status.GetStepId(), "nobody answered in time: "+status.GetQuestion())
		}
	}
	if r.run.GetState() == coordinatorv1.RunState_RUN_STATE_PAUSED || r.c.now.Before(r.run.GetDeadline().AsTime()) {
		return
	}
	limit := r.run.GetDeadline().AsTime().Sub(r.run.GetCreatedAt().AsTime()).Round(time.Second)
	switch r.run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_RUNNING:
		if r.run.GetCommitted() {
			r.abandonOpen(func(string) bool { return true })
			r.skipPending()
			return
		}
		if r.plan.GetOnDeadline() == coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE {
			r.hold("the run did not end within " + limit.String() + " and asks what to do")
			return
		}
		r.rollBack("the run did not end within " + limit.String())
	case coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
		r.run.State = coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN
		r.run.Cause = "the rollback did not end in time" + afterCause(r.run.GetCause())
	}
}

func stateWord(s coordinatorv1.RunState) string {
	word := strings.ToLower(strings.TrimPrefix(s.String(), "RUN_STATE_"))
	return strings.ReplaceAll(word, "_", " ")
}

// OperationID names one attempt of a step, the key under which the agent's ledger keeps it.
func OperationID(step *coordinatorv1.StepStatus) string {
	return step.GetRunId() + "/" + step.GetStepId() + "/" + strconv.FormatUint(uint64(step.GetAttempt()), 10)
}

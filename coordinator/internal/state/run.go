package state

import (
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// answerMargin is how long after its timeout an operation may take to answer before its outcome counts as unknown.
	answerMargin = 15 * time.Second
	// rollbackTime is the least that a rollback gets, whatever was left of the run's own time.
	rollbackTime = 15 * time.Minute
	// runsKept is how many finished runs stay with their plans and steps.
	runsKept = 200
	// retryMost is the longest delay that a retry_backoff leads to.
	retryMost = 5 * time.Minute
	// interruptedAttempts of a step may be cut short by the end of their agent, beside the step's own.
	interruptedAttempts = 5
	// releasesKept is how many former or failed releases of a stack stay.
	releasesKept = 20
)

// Terminal says that a run has ended.
func Terminal(s coordinatorv1.RunState) bool {
	switch s {
	case coordinatorv1.RunState_RUN_STATE_SUCCEEDED, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK,
		coordinatorv1.RunState_RUN_STATE_CANCELLED, coordinatorv1.RunState_RUN_STATE_FAILED:
		return true
	}
	return false
}

// open says that a step has an operation whose outcome is not committed.
func open(s coordinatorv1.StepState) bool {
	return s == coordinatorv1.StepState_STEP_STATE_RUNNING || s == coordinatorv1.StepState_STEP_STATE_UNKNOWN
}

// settled says that nothing more will come of a step by itself.
func settled(s coordinatorv1.StepState) bool {
	switch s {
	case coordinatorv1.StepState_STEP_STATE_DONE, coordinatorv1.StepState_STEP_STATE_FAILED, coordinatorv1.StepState_STEP_STATE_SKIPPED:
		return true
	}
	return false
}

func (c *change) startRun(op *raftv1.StartRun) (*raftv1.Result, error) {
	plan, v := op.GetPlan(), c.view()
	if err := checkPlan(plan); err != nil {
		return nil, err
	}
	for _, name := range plan.GetLocks() {
		if lock := v.Lock(name); lock != nil {
			return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD, "lock %s is held by run %s (%s) since %s: wait for it, or cancel it with `musterctl run cancel %s`",
				name, lock.GetRunId(), lock.GetReason(), lock.GetTakenAt().AsTime().Format(time.RFC3339), lock.GetRunId())
		}
	}
	run := &coordinatorv1.Run{
		Id: "r-" + strconv.FormatUint(c.index, 36), Procedure: plan.GetProcedure(), Title: plan.GetTitle(), Stack: plan.GetStack(),
		State: coordinatorv1.RunState_RUN_STATE_RUNNING, PlanHash: plan.GetHash(), Locks: plan.GetLocks(), Fence: c.index,
		CreatedAt: c.stamp(), Deadline: later(c.stamp(), plan.GetMaxDuration().AsDuration()), CreatedBy: c.actor, Reason: op.GetReason(),
		StepsTotal: uint32(len(plan.GetSteps())), ActivateRelease: plan.GetActivateRelease(),
	}
	if err := c.openRelease(run, op); err != nil {
		return nil, err
	}
	for _, name := range plan.GetLocks() {
		c.put(tableLock, name, &raftv1.Lock{Name: name, RunId: run.GetId(), Fence: c.index, TakenAt: c.stamp(), Reason: plan.GetTitle()})
	}
	c.put(tablePlan, run.GetId(), &raftv1.PlanRecord{RunId: run.GetId(), Plan: plan})
	for i, step := range plan.GetSteps() {
		c.put(tableStep, run.GetId()+"/"+step.GetId(), &coordinatorv1.StepStatus{
			RunId: run.GetId(), StepId: step.GetId(), Ordinal: uint32(i), State: coordinatorv1.StepState_STEP_STATE_PENDING,
			Title: step.GetTitle(), Host: step.GetHost(), Group: step.GetGroup(), Revision: c.index,
		})
	}
	r := c.resume(run)
	r.advance()
	c.forget(plan.GetStack())
	return &raftv1.Result{Run: r.run}, nil
}

// checkPlan refuses a plan that the engine could not run to its end.
func checkPlan(plan *coordinatorv1.Plan) error {
	seen := map[string]bool{}
	for _, step := range plan.GetSteps() {
		if step.GetId() == "" || seen[step.GetId()] || isUndo(step.GetId()) {
			return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "step %q is in the plan twice, or has no id, or has one of an undo step", step.GetId())
		}
		for _, id := range step.GetAfter() {
			if !seen[id] {
				return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "step %q comes after %q, which does not come before it in the plan", step.GetId(), id)
			}
		}
		if err := checkStep(step); err != nil {
			return err
		}
		seen[step.GetId()] = true
	}
	if plan.GetMaxDuration().AsDuration() <= 0 {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "the plan has no max_duration: every run has a deadline")
	}
	return nil
}

// checkStep refuses a step that asks and acts, does neither, or asks what the engine could not.
func checkStep(step *coordinatorv1.Step) error {
	invalid := func(why string) error {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "step %q %s", step.GetId(), why)
	}
	switch approval := step.GetApproval(); {
	case (approval == nil) == (step.GetAction() == nil):
		return invalid("has an action and an approval, or neither: it needs one of them")
	case approval != nil && approval.GetOnExpiry() == coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE:
		return invalid("would go on when nobody approves it: its on_expiry must be rollback or pause")
	case approval != nil && approval.GetPrompt() == "":
		return invalid("asks for approval without a prompt")
	case step.GetIfUnknown() == coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE && step.GetDoneIf() == nil:
		return invalid("shall probe for a lost outcome and has no done_if")
	case step.GetDoneIf() != nil && (step.GetDoneIf().GetExpression() == "" || step.GetDoneIf().GetProbe() == nil):
		return invalid("has a done_if without a probe or without an expression")
	case step.GetVerify() != nil && step.GetVerify().GetExpression() == "":
		return invalid("has a verify without an expression")
	}
	return nil
}

// openRelease enters the release that a run puts in place.
func (c *change) openRelease(run *coordinatorv1.Run, op *raftv1.StartRun) error {
	plan, release := op.GetPlan(), clone(op.GetRelease())
	if plan.GetStack() == "" {
		return nil
	}
	stack := clone(c.view().Stack(plan.GetStack()))
	if stack.GetRevision() != op.GetStackRevision() {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "stack %s changed while this was planned: plan again", plan.GetStack())
	}
	if stack.GetName() == "" {
		stack = &coordinatorv1.Stack{Name: plan.GetStack()}
	}
	stack.ActiveRun, stack.Revision = run.GetId(), c.index
	if release.GetNumber() > 0 {
		stack.LastRelease = max(stack.GetLastRelease(), release.GetNumber())
		release.State, release.CreatedAt, release.CreatedBy = coordinatorv1.ReleaseState_RELEASE_STATE_ROLLING, c.stamp(), c.actor
		release.RunId, release.Reason = run.GetId(), op.GetReason()
		c.put(tableRelease, release.GetStack(), release)
	}
	c.put(tableStack, stack.GetName(), stack)
	return nil
}

// forget drops the oldest finished runs and releases.
func (c *change) forget(stack string) {
	v := c.view()
	runs := v.Runs()
	for i, run := range runs {
		if len(runs)-i <= runsKept {
			break
		}
		if !Terminal(run.GetState()) {
			continue
		}
		for _, step := range v.Steps(run.GetId()) {
			c.drop(tableStep, run.GetId()+"/"+step.GetStepId(), step)
		}
		if record := first[*raftv1.PlanRecord](v, tablePlan, indexID, run.GetId()); record != nil {
			c.drop(tablePlan, run.GetId(), record)
		}
		c.drop(tableRun, run.GetId(), run)
	}
	s, releases := v.Stack(stack), v.Releases(stack)
	for i, release := range releases {
		kept := release.GetNumber() == s.GetCurrentRelease() || release.GetNumber() == s.GetPreviousRelease() ||
			release.GetState() == coordinatorv1.ReleaseState_RELEASE_STATE_ROLLING
		if len(releases)-i > releasesKept && !kept {
			c.drop(tableRelease, stack, release)
		}
	}
}

func (c *change) recordOutcomes(op *raftv1.RecordOutcomes) (*raftv1.Result, error) {
	if err := c.stale(op.GetEpoch()); err != nil {
		return nil, err
	}
	touched := map[string]*progress{}
	var order []string
	for _, outcome := range op.GetOutcomes() {
		r := touched[outcome.GetRunId()]
		if r == nil {
			run := c.view().Run(outcome.GetRunId())
			if run == nil {
				continue
			}
			r = c.resume(run)
			touched[run.GetId()] = r
			order = append(order, run.GetId())
		}
		r.record(outcome)
	}
	for _, id := range order {
		touched[id].advance()
	}
	return &raftv1.Result{}, nil
}

func (c *change) tick(op *raftv1.Tick) (*raftv1.Result, error) {
	if err := c.stale(op.GetEpoch()); err != nil {
		return nil, err
	}
	for _, ref := range op.GetUnreachable() {
		c.markReachable(ref, c.stamp())
	}
	for _, ref := range op.GetReachable() {
		c.markReachable(ref, nil)
	}
	for _, id := range op.GetRunIds() {
		run := c.view().Run(id)
		if run == nil || Terminal(run.GetState()) {
			continue
		}
		r := c.resume(run)
		r.deadlines()
		r.advance()
	}
	return &raftv1.Result{}, nil
}

func (c *change) markReachable(ref *raftv1.StepRef, since *timestamppb.Timestamp) {
	step := clone(c.view().Step(ref.GetRunId(), ref.GetStepId()))
	if !open(step.GetState()) || (since == nil) == (step.GetUnreachableSince() == nil) {
		return
	}
	step.UnreachableSince, step.Revision = since, c.index
	c.put(tableStep, ref.GetRunId()+"/"+ref.GetStepId(), step)
	// The run's blockers have changed, which those who watch it must see.
	run := clone(c.view().Run(ref.GetRunId()))
	run.Revision = c.index
	c.put(tableRun, run.GetId(), run)
}

func (c *change) controlRun(op *raftv1.ControlRun) (*raftv1.Result, error) {
	run := c.view().Run(op.GetRunId())
	if run == nil {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, "there is no run %q: `musterctl run list` shows them", op.GetRunId())
	}
	if Terminal(run.GetState()) {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_FINISHED, "run %s has ended: %s", run.GetId(), stateWord(run.GetState()))
	}
	r := c.resume(run)
	var err error
	switch op.GetControl() {
	case raftv1.RunControl_RUN_CONTROL_CANCEL:
		err = r.cancel(op.GetReason())
	case raftv1.RunControl_RUN_CONTROL_PAUSE:
		err = r.pause("paused by " + c.actor + because(op.GetReason()))
	case raftv1.RunControl_RUN_CONTROL_RESUME:
		err = r.unpause()
	default:
		err = refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "control %d is not known", op.GetControl())
	}
	if err != nil {
		return nil, err
	}
	r.advance()
	return &raftv1.Result{Run: r.run}, nil
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// endRun releases everything that a run held.
func (c *change) endRun(run *coordinatorv1.Run) {
	run.FinishedAt = c.stamp()
	for _, name := range run.GetLocks() {
		if lock := c.view().Lock(name); lock.GetRunId() == run.GetId() {
			c.drop(tableLock, name, lock)
		}
	}
	stack := clone(c.view().Stack(run.GetStack()))
	if stack.GetName() == "" || stack.GetActiveRun() != run.GetId() {
		return
	}
	stack.ActiveRun, stack.Revision = "", c.index
	c.put(tableStack, stack.GetName(), stack)
	release := clone(c.view().Release(stack.GetName(), run.GetActivateRelease()))
	if release.GetState() == coordinatorv1.ReleaseState_RELEASE_STATE_ROLLING {
		release.State = coordinatorv1.ReleaseState_RELEASE_STATE_FAILED
		c.put(tableRelease, stack.GetName(), release)
	}
}

// activate makes the run's release the current one. Slots whose group failed within the budget keep the instance that they had.
func (c *change) activate(run *coordinatorv1.Run) {
	stack := clone(c.view().Stack(run.GetStack()))
	release := clone(c.view().Release(run.GetStack(), run.GetActivateRelease()))
	if stack.GetName() == "" || release.GetNumber() == 0 {
		return
	}
	before := clone(c.view().CurrentRelease(stack.GetName()))
	if before.GetNumber() > 0 {
		before.State = coordinatorv1.ReleaseState_RELEASE_STATE_FORMER
		c.put(tableRelease, stack.GetName(), before)
	}
	if len(run.GetFailedGroups()) > 0 {
		release.Assignments = keptAssignments(before.GetAssignments(), release.GetAssignments(), run.GetFailedGroups())
	}
	release.State = coordinatorv1.ReleaseState_RELEASE_STATE_CURRENT
	c.put(tableRelease, stack.GetName(), release)
	stack.PreviousRelease, stack.CurrentRelease, stack.Revision = stack.GetCurrentRelease(), release.GetNumber(), c.index
	c.put(tableStack, stack.GetName(), stack)
}

// abandon gives up the containers of hosts that do not answer.
func (c *change) abandon(plan *coordinatorv1.Plan) {
	stack := clone(c.view().Stack(plan.GetStack()))
	if stack.GetName() == "" || len(plan.GetAbandons()) == 0 {
		return
	}
	stack.Abandoned = append(withoutAbandoned(stack.GetAbandoned(), plan.GetAbandons()), plan.GetAbandons()...)
	stack.Revision = c.index
	c.put(tableStack, stack.GetName(), stack)
}

// reclaim forgets the abandoned containers that the plan has removed.
func (c *change) reclaim(plan *coordinatorv1.Plan) {
	stack := clone(c.view().Stack(plan.GetStack()))
	if stack.GetName() == "" || len(plan.GetReclaims()) == 0 {
		return
	}
	stack.Abandoned, stack.Revision = withoutAbandoned(stack.GetAbandoned(), plan.GetReclaims()), c.index
	c.put(tableStack, stack.GetName(), stack)
}

func withoutAbandoned(all, gone []*coordinatorv1.Abandoned) []*coordinatorv1.Abandoned {
	return slices.DeleteFunc(slices.Clone(all), func(a *coordinatorv1.Abandoned) bool {
		return slices.ContainsFunc(gone, func(g *coordinatorv1.Abandoned) bool {
			return g.GetHost() == a.GetHost() && g.GetContainer() == a.GetContainer()
		})
	})
}

// GroupOf names the group of an assignment, the unit in which instances fail.
func GroupOf(a *coordinatorv1.Assignment) string {
	return a.GetService() + "." + strconv.FormatUint(uint64(a.GetSlot()), 10)
}

func keptAssignments(before, after []*coordinatorv1.Assignment, failed []string) []*coordinatorv1.Assignment {
	former := map[string]*coordinatorv1.Assignment{}
	for _, a := range before {
		former[GroupOf(a)] = a
	}
	var kept []*coordinatorv1.Assignment
	for _, a := range after {
		if slices.Contains(failed, GroupOf(a)) {
			if a = former[GroupOf(a)]; a == nil {
				continue
			}
		}
		kept = append(kept, a)
	}
	return kept
}

// Effectless says that an action may be given up without a trace.
func Effectless(action *coordinatorv1.Action) bool {
	return action.GetEffect() == accessv1.Effect_EFFECT_NONE
}

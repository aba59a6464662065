package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// A step asks people for one of two things: whether it may go on (its approval), or what became of its operation, because the agent died while
// it acted and nothing on the host tells. The first ends by itself when its time is over; the second waits for an answer, also while the run
// is taken back: what may have happened is undone only when it is known.

const (
	defaultExpiry = time.Hour
	hashShown     = 12 // characters of a plan's hash that identify it for a person
)

func asking(s coordinatorv1.StepState) bool { return s == coordinatorv1.StepState_STEP_STATE_ASKING }

// lost says that a step asks what became of its operation.
func lost(status *coordinatorv1.StepStatus) bool {
	return asking(status.GetState()) && status.GetAttempt() > 0
}

func expiry(a *coordinatorv1.Approval) time.Duration {
	if d := a.GetExpires().AsDuration(); d > 0 {
		return d
	}
	return defaultExpiry
}

// ask lets a step ask for its approval.
func (r *progress) ask(id string) {
	step, approval := r.edit(id), r.definition(id).GetApproval()
	step.State, step.Question, step.Decisions = coordinatorv1.StepState_STEP_STATE_ASKING, approval.GetPrompt(), nil
	step.StartedAt, step.NotBefore, step.FinishedAt = r.c.stamp(), nil, nil
	step.Deadline = later(r.c.stamp(), expiry(approval))
}

// askWhatBecame lets a step ask what became of its operation.
func (r *progress) askWhatBecame(id string, failure *agentv1.OperationFailure) {
	step := r.edit(id)
	step.State, step.Failure, step.Deadline, step.UnreachableSince = coordinatorv1.StepState_STEP_STATE_ASKING, failure, nil, nil
	step.Question = "what became of: " + step.GetTitle()
}

// expired ends a question that nobody answered in time, or that somebody answered with no.
func (r *progress) expired(id, cause string) {
	if r.definition(id).GetApproval().GetOnExpiry() == coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE {
		r.hold(cause)
		return
	}
	r.settle(id, coordinatorv1.StepState_STEP_STATE_FAILED)
	r.rollBack(cause)
}

// askAgain gives the questions of a run that was paused their time back; one that had ended the run's going on is asked anew.
func (r *progress) askAgain(shift time.Duration) {
	for _, status := range r.steps {
		if !asking(status.GetState()) || lost(status) {
			continue
		}
		step := r.edit(status.GetStepId())
		step.Deadline = later(step.GetDeadline(), shift)
		if r.over(step) {
			r.ask(step.GetStepId())
		}
	}
}

// asked finds the step that a person answers: by its id, or the only one that asks for this kind of answer.
func (r *progress) asked(id, kind string, match func(*coordinatorv1.StepStatus) bool) (*coordinatorv1.StepStatus, error) {
	var found []*coordinatorv1.StepStatus
	var names []string
	for _, status := range r.steps {
		if match(status) && (id == "" || id == status.GetStepId()) {
			found = append(found, status)
			names = append(names, status.GetStepId())
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "run %s asks %d questions: name the step (%s)", r.run.GetId(), len(found), strings.Join(names, ", "))
	case id != "" && r.step(id) == nil:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "run %s has no step %q: `musterctl run show %s` lists them", r.run.GetId(), id, r.run.GetId())
	case id != "":
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_STEP_NOT_ASKING, "step %s of run %s does not wait for %s", id, r.run.GetId(), kind)
	}
	return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_STEP_NOT_ASKING, "no step of run %s waits for %s", r.run.GetId(), kind)
}

func (c *change) decideStep(op *raftv1.DecideStep) (*raftv1.Result, error) {
	r, err := c.answered(op.GetRunId())
	if err != nil {
		return nil, err
	}
	status, err := r.asked(op.GetStepId(), "an approval", func(s *coordinatorv1.StepStatus) bool { return asking(s.GetState()) && !lost(s) })
	if err != nil {
		return nil, err
	}
	if err := r.mayDecide(status, op); err != nil {
		return nil, err
	}
	step, approval := r.edit(status.GetStepId()), r.definition(status.GetStepId()).GetApproval()
	step.Decisions = append(step.GetDecisions(), &coordinatorv1.Decision{Actor: c.actor, Approve: op.GetApprove(), Reason: op.GetReason(), At: c.stamp()})
	switch {
	case !op.GetApprove():
		r.expired(step.GetStepId(), fmt.Sprintf("%s said no to: %s%s", c.actor, approval.GetPrompt(), because(op.GetReason())))
	case approvals(step) >= max(1, int(approval.GetCount())):
		r.settle(step.GetStepId(), coordinatorv1.StepState_STEP_STATE_DONE)
	}
	r.advance()
	return &raftv1.Result{Run: r.run}, nil
}

// approvals counts those who said yes.
func approvals(step *coordinatorv1.StepStatus) int {
	yes := 0
	for _, d := range step.GetDecisions() {
		if d.GetApprove() {
			yes++
		}
	}
	return yes
}

// over says that a question has had its end: somebody said no, or its time has passed. Whoever resumes the run asks it anew.
func (r *progress) over(step *coordinatorv1.StepStatus) bool {
	return approvals(step) < len(step.GetDecisions()) || !r.c.now.Before(step.GetDeadline().AsTime())
}

// mayDecide refuses an answer of somebody who is not asked, and one to another plan than the run's.
func (r *progress) mayDecide(status *coordinatorv1.StepStatus, op *raftv1.DecideStep) error {
	approval, hash := r.definition(status.GetStepId()).GetApproval(), r.run.GetPlanHash()
	roles := approval.GetRoles()
	if len(roles) == 0 {
		roles = []accessv1.Role{accessv1.Role_ROLE_OPERATOR, accessv1.Role_ROLE_ADMIN}
	}
	switch {
	case r.over(status):
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_STEP_NOT_ASKING,
			"the question of step %s is over: it was answered with no, or its time has passed; `musterctl run resume %s` asks it anew, `musterctl run cancel %s` takes the run back",
			status.GetStepId(), r.run.GetId(), r.run.GetId())
	case len(op.GetPlanHash()) < min(hashShown, len(hash)) || !strings.HasPrefix(hash, op.GetPlanHash()):
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED,
			"the plan of run %s is %s, not %q: look at it with `musterctl run show %s` and answer for that one", r.run.GetId(), shortHash(hash), op.GetPlanHash(), r.run.GetId())
	case !slices.Contains(roles, op.GetRole()):
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "step %s asks %s, not %s", status.GetStepId(), roleWords(roles), roleWords([]accessv1.Role{op.GetRole()}))
	case r.c.actor == r.run.GetCreatedBy() && !approval.GetAllowInitiator():
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "%s started run %s and cannot approve it: somebody else must", r.c.actor, r.run.GetId())
	}
	for _, d := range status.GetDecisions() {
		if d.GetActor() == r.c.actor {
			return refuse(coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "%s has answered step %s already: %d different people must say yes",
				r.c.actor, status.GetStepId(), max(1, approval.GetCount()))
		}
	}
	return nil
}

func shortHash(hash string) string { return hash[:min(hashShown, len(hash))] }

func roleWords(roles []accessv1.Role) string {
	var words []string
	for _, role := range roles {
		words = append(words, strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_")))
	}
	return strings.Join(words, " or ")
}

// answered takes up a run that a person answers.
func (c *change) answered(id string) (*progress, error) {
	run := c.view().Run(id)
	if run == nil {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, "there is no run %q: `musterctl run list` shows them", id)
	}
	if Terminal(run.GetState()) {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_RUN_FINISHED, "run %s has ended: %s", run.GetId(), stateWord(run.GetState()))
	}
	return c.resume(run), nil
}

func (c *change) resolveStep(op *raftv1.ResolveStep) (*raftv1.Result, error) {
	r, err := c.answered(op.GetRunId())
	if err != nil {
		return nil, err
	}
	status, err := r.asked(op.GetStepId(), "word of what became of it", lost)
	if err != nil {
		return nil, err
	}
	id := status.GetStepId()
	r.edit(id).Decisions = append(status.GetDecisions(), &coordinatorv1.Decision{
		Actor: c.actor, Approve: op.GetResolution() == coordinatorv1.Resolution_RESOLUTION_DONE, Reason: op.GetReason(), At: c.stamp(),
	})
	switch op.GetResolution() {
	case coordinatorv1.Resolution_RESOLUTION_DONE:
		r.settle(id, coordinatorv1.StepState_STEP_STATE_DONE)
	case coordinatorv1.Resolution_RESOLUTION_NOT_DONE:
		r.notDone(id)
	case coordinatorv1.Resolution_RESOLUTION_FAILED:
		failure := clone(status.GetFailure())
		failure.Message, failure.Permanent = failure.GetMessage()+"; "+c.actor+" says that it failed"+because(op.GetReason()), true
		r.edit(id).Failure = failure
		r.settle(id, coordinatorv1.StepState_STEP_STATE_FAILED)
		r.stepFailed(r.definition(id), failure)
	default:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "resolution %d is not known: say done, not done or failed", op.GetResolution())
	}
	r.advance()
	return &raftv1.Result{Run: r.run}, nil
}

// notDone performs the step again, or, while the run is taken back, leaves it as if it had never been sent.
func (r *progress) notDone(id string) {
	if isUndo(id) || !r.rollingBack() {
		step := r.edit(id)
		step.State, step.NotBefore = coordinatorv1.StepState_STEP_STATE_WAITING, r.c.stamp()
		return
	}
	r.edit(id).Dispatched = false
	r.settle(id, coordinatorv1.StepState_STEP_STATE_SKIPPED)
	for n := range r.defs[id].GetUndo() {
		if undo := r.step(undoID(id, n)); undo != nil && undo.GetState() == coordinatorv1.StepState_STEP_STATE_PENDING {
			r.settle(undo.GetStepId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		}
	}
}

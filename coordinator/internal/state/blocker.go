package state

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Blockers say why a run does not move: what blocks it, since when, what unblocks it, and what happens by itself and when. A run that moves
// has none.
func (v *View) Blockers(runID string) []*coordinatorv1.Blocker {
	run := v.Run(runID)
	if run == nil || Terminal(run.GetState()) {
		return nil
	}
	switch run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_PAUSED:
		return []*coordinatorv1.Blocker{{
			Summary: run.GetCause(), Since: run.GetPausedAt(),
			Unblocks: fmt.Sprintf("`musterctl run resume %s` goes on, `musterctl run cancel %s` takes it back", runID, runID),
			Next:     "nothing happens by itself while it is paused",
		}}
	case coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		return []*coordinatorv1.Blocker{{
			Summary: run.GetCause(), Since: v.lastChange(runID),
			Unblocks: fmt.Sprintf("remove the cause, then `musterctl run resume %s` tries again; `musterctl run cancel %s` leaves everything as it is now", runID, runID),
			Next:     "nothing happens by itself: a rollback is never rolled back; its locks stay held",
		}}
	}
	return v.stepBlockers(run)
}

func (v *View) lastChange(runID string) *timestamppb.Timestamp {
	var last *timestamppb.Timestamp
	for _, step := range v.Steps(runID) {
		if at := step.GetFinishedAt(); at != nil && at.AsTime().After(last.AsTime()) {
			last = at
		}
	}
	return last
}

// question says whom a step waits for.
func (v *View) question(run *coordinatorv1.Run, step *coordinatorv1.StepStatus, after string) *coordinatorv1.Blocker {
	if lost(step) {
		return &coordinatorv1.Blocker{
			Summary: fmt.Sprintf("nobody can tell what became of: %s (%s)", step.GetTitle(), step.GetFailure().GetMessage()), Since: step.GetStartedAt(),
			Unblocks: fmt.Sprintf("find out on %s, then `musterctl run resolve %s --step %s --done|--not-done|--failed`", step.GetHost(), run.GetId(), step.GetStepId()),
			Next:     after, NextAt: run.GetDeadline(),
		}
	}
	approval := Definition(v.Plan(run.GetId()), step.GetStepId()).GetApproval()
	next := "without an answer the run is taken back"
	if approval.GetOnExpiry() == coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE {
		next = "without an answer the run is paused"
	}
	return &coordinatorv1.Blocker{
		Summary: fmt.Sprintf("waiting for approval (%d of %d): %s", approvals(step), max(1, approval.GetCount()), approval.GetPrompt()), Since: step.GetStartedAt(),
		Unblocks: fmt.Sprintf("`musterctl run approve %s --plan %s` or `musterctl run reject %s --plan %s`, by others than who started it",
			run.GetId(), shortHash(run.GetPlanHash()), run.GetId(), shortHash(run.GetPlanHash())),
		Next: next, NextAt: step.GetDeadline(),
	}
}

func (v *View) stepBlockers(run *coordinatorv1.Run) []*coordinatorv1.Blocker {
	var found []*coordinatorv1.Blocker
	after := "the run is taken back"
	if run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLING_BACK {
		after = "the rollback stops and asks"
	}
	moving, waiting := false, (*coordinatorv1.StepStatus)(nil)
	for _, step := range v.Steps(run.GetId()) {
		switch {
		case open(step.GetState()) && step.GetUnreachableSince() != nil:
			found = append(found, &coordinatorv1.Blocker{
				Summary: fmt.Sprintf("host %s does not answer: %s", step.GetHost(), step.GetTitle()), Since: step.GetUnreachableSince(),
				Unblocks: fmt.Sprintf("start the agent on %s, or repair its network; the step then goes on by itself", step.GetHost()),
				Next:     after, NextAt: run.GetDeadline(),
			})
		case step.GetState() == coordinatorv1.StepState_STEP_STATE_UNKNOWN:
			found = append(found, &coordinatorv1.Blocker{
				Summary: "no outcome in time: " + step.GetTitle(), Since: step.GetDeadline(),
				Unblocks: fmt.Sprintf("look at the agent on %s: its answer is taken whenever it comes", step.GetHost()),
				Next:     after, NextAt: run.GetDeadline(),
			})
		case open(step.GetState()):
			moving = true
		case asking(step.GetState()):
			found = append(found, v.question(run, step, after))
		case step.GetState() == coordinatorv1.StepState_STEP_STATE_WAITING:
			if waiting == nil || step.GetNotBefore().AsTime().Before(waiting.GetNotBefore().AsTime()) {
				waiting = step
			}
		}
	}
	if len(found) == 0 && !moving && waiting != nil {
		found = append(found, &coordinatorv1.Blocker{
			Summary: "waiting before: " + waiting.GetTitle(), Since: waiting.GetFinishedAt(), Unblocks: "nothing needs to be done",
			Next: "it starts at " + waiting.GetNotBefore().AsTime().UTC().Format(time.RFC3339), NextAt: waiting.GetNotBefore(),
		})
	}
	return found
}

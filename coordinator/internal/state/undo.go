package state

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Undo is the journal in reverse: for every step that may have had an effect its undo actions, after those of every step that came after it.
// Undo steps are entered into the run beside the others, as undo/<step>/<n>, and run by the same rules.

const (
	undoPrefix   = "undo/"
	undoAttempts = 3
	undoRetry    = 2 * time.Second
)

func undoID(step string, n int) string { return fmt.Sprintf("%s%s/%d", undoPrefix, step, n) }

// parseUndo takes the id of an undo step apart.
func parseUndo(id string) (step string, n int, ok bool) {
	rest, undo := strings.CutPrefix(id, undoPrefix)
	at := strings.LastIndexByte(rest, '/')
	if !undo || at < 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(rest[at+1:])
	return rest[:at], n, err == nil && n >= 0
}

// definition of a step; that of an undo step is derived from the step that it undoes.
func (r *progress) definition(id string) *coordinatorv1.Step {
	if step, n, undo := parseUndo(id); undo && n < len(r.defs[step].GetUndo()) {
		return undoStep(r.defs[step], n)
	}
	return r.defs[id]
}

// Definition returns what a step of a plan does, be it one of its own or an undo step; nil if the plan has no such step.
func Definition(plan *coordinatorv1.Plan, id string) *coordinatorv1.Step {
	own, n, undo := parseUndo(id)
	if !undo {
		own = id
	}
	for _, step := range plan.GetSteps() {
		if step.GetId() != own {
			continue
		}
		if !undo {
			return step
		}
		if n < len(step.GetUndo()) {
			return undoStep(step, n)
		}
	}
	return nil
}

func undoStep(step *coordinatorv1.Step, n int) *coordinatorv1.Step {
	undo := step.GetUndo()[n]
	host := undo.GetHost()
	if host == "" {
		host = step.GetHost()
	}
	return &coordinatorv1.Step{
		Id: undoID(step.GetId(), n), Title: undo.GetTitle(), Group: step.GetGroup(), Host: host, Action: undo.GetAction(),
		Timeout: undo.GetTimeout(), MaxAttempts: undoAttempts, RetryDelay: durationpb.New(undoRetry),
	}
}

// rollBack starts no further step and takes back what was done.
func (r *progress) rollBack(cause string) {
	if r.rollingBack() {
		return
	}
	r.run.State, r.run.Cause, r.run.PausedAt = coordinatorv1.RunState_RUN_STATE_ROLLING_BACK, cause, nil
	if least := later(r.c.stamp(), rollbackTime); r.run.GetDeadline().AsTime().Before(least.AsTime()) {
		r.run.Deadline = least
	}
	r.skipPending()
	r.skipQuestions(func(status *coordinatorv1.StepStatus) bool { return !lost(status) })
	r.abandonOpen(func(id string) bool { return !isUndo(id) && Effectless(r.defs[id].GetAction()) })
	r.enterUndo(func(*coordinatorv1.Step) bool { return true })
}

// undoGroup takes back the steps of one group, whose failure the budget tolerates.
func (r *progress) undoGroup(group string) {
	for _, status := range r.steps {
		def := r.defs[status.GetStepId()]
		if def == nil || def.GetGroup() != group {
			continue
		}
		switch {
		case open(status.GetState()) && Effectless(def.GetAction()):
			r.settle(def.GetId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		case status.GetState() == coordinatorv1.StepState_STEP_STATE_PENDING, status.GetState() == coordinatorv1.StepState_STEP_STATE_WAITING,
			asking(status.GetState()) && !lost(status):
			r.settle(def.GetId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		}
	}
	r.enterUndo(func(step *coordinatorv1.Step) bool { return step.GetGroup() == group })
}

func (r *progress) skipPending() {
	for _, status := range r.steps {
		if isUndo(status.GetStepId()) {
			continue
		}
		switch status.GetState() {
		case coordinatorv1.StepState_STEP_STATE_PENDING, coordinatorv1.StepState_STEP_STATE_WAITING:
			r.settle(status.GetStepId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		}
	}
}

// skipQuestions ends the questions that are not wanted any more.
func (r *progress) skipQuestions(which func(*coordinatorv1.StepStatus) bool) {
	for _, status := range r.steps {
		if asking(status.GetState()) && which(status) {
			r.settle(status.GetStepId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		}
	}
}

// abandonOpen gives up open operations. The leader cancels them at their agents.
func (r *progress) abandonOpen(which func(id string) bool) {
	for _, status := range r.steps {
		if open(status.GetState()) && which(status.GetStepId()) {
			r.settle(status.GetStepId(), coordinatorv1.StepState_STEP_STATE_SKIPPED)
		}
	}
}

// enterUndo enters the undo steps of every selected step that may have had an effect. An undo step waits for its step to settle and for
// the undoing of everything that came after it.
func (r *progress) enterUndo(selected func(*coordinatorv1.Step) bool) {
	followers := map[string][]string{}
	for _, step := range r.plan.GetSteps() {
		for _, id := range step.GetAfter() {
			followers[id] = append(followers[id], step.GetId())
		}
	}
	// tails of a step: what must have ended before a step in front of it may be undone.
	tails := map[string][]string{}
	for i := len(r.plan.GetSteps()) - 1; i >= 0; i-- {
		step := r.plan.GetSteps()[i]
		status := r.step(step.GetId())
		var behind []string
		for _, id := range followers[step.GetId()] {
			behind = append(behind, tails[id]...)
		}
		if open(status.GetState()) || lost(status) {
			behind = append(behind, step.GetId())
		}
		slices.Sort(behind)
		behind = slices.Compact(behind)
		if !status.GetDispatched() || len(step.GetUndo()) == 0 || !selected(step) {
			tails[step.GetId()] = behind
			continue
		}
		// Undo steps that a group's undoing entered before do not wait for what came behind them since: both must have ended.
		_, before := r.at[undoID(step.GetId(), 0)]
		last := r.enterUndoOf(step, behind)
		tails[step.GetId()] = []string{last}
		if before {
			tails[step.GetId()] = append(slices.Clone(behind), last)
		}
	}
}

// enterUndoOf enters the undo steps of one step and returns the last of them. Steps that a group's undoing entered before are kept.
func (r *progress) enterUndoOf(step *coordinatorv1.Step, after []string) string {
	var last string
	for n := range step.GetUndo() {
		def := undoStep(step, n)
		if _, known := r.at[def.GetId()]; !known {
			r.at[def.GetId()] = len(r.steps)
			r.dirty[len(r.steps)] = true
			r.steps = append(r.steps, &coordinatorv1.StepStatus{
				RunId: r.run.GetId(), StepId: def.GetId(), Ordinal: uint32(len(r.steps)), State: coordinatorv1.StepState_STEP_STATE_PENDING,
				Title: def.GetTitle(), Host: def.GetHost(), Group: def.GetGroup(), After: after,
			})
		}
		last = def.GetId()
		after = []string{last}
	}
	return last
}

// endRollback ends the run once everything was taken back.
func (r *progress) endRollback() bool {
	for _, step := range r.steps {
		if !settled(step.GetState()) {
			return false
		}
	}
	if r.run.GetCancelledBy() != "" {
		r.finish(coordinatorv1.RunState_RUN_STATE_CANCELLED)
	} else {
		r.finish(coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
	}
	return true
}

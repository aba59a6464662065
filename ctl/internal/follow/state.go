package follow

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// State is all that is known of a run.
type State struct {
	// RunID of the run, like r-1f4.
	RunID string
	// Index up to which everything has been seen.
	Index uint64
	// Run as it was last; nil before the first answer.
	Run *coordinatorv1.Run
	// Steps by id.
	Steps map[string]*coordinatorv1.StepStatus
	// Blockers as they were last.
	Blockers []*coordinatorv1.Blocker
}

// NewState returns the state of a run of which only the id is known.
func NewState(runID string) *State {
	return &State{RunID: runID, Steps: map[string]*coordinatorv1.StepStatus{}}
}

// Apply takes in an answer. What is older than what is known changes nothing.
func (s *State) Apply(answer *coordinatorv1.WatchRunResponse) {
	s.Index = max(s.Index, answer.GetIndex())
	if r := answer.GetRun(); r != nil && (s.Run == nil || r.GetRevision() >= s.Run.GetRevision()) {
		s.Run = r
	}
	for _, step := range answer.GetSteps() {
		if old := s.Steps[step.GetStepId()]; old == nil || step.GetRevision() >= old.GetRevision() {
			s.Steps[step.GetStepId()] = step
		}
	}
	s.Blockers = answer.GetBlockers()
}

// Settled tells whether the run has ended or needs a human.
func (s *State) Settled() bool { return s.Run != nil && settled(s.Run.GetState()) }

// Failed returns the failed steps in their order.
func (s *State) Failed() []*coordinatorv1.StepStatus {
	var out []*coordinatorv1.StepStatus
	for _, step := range s.ordered() {
		if step.GetState() == coordinatorv1.StepState_STEP_STATE_FAILED {
			out = append(out, step)
		}
	}
	return out
}

func (s *State) ordered() []*coordinatorv1.StepStatus {
	out := make([]*coordinatorv1.StepStatus, 0, len(s.Steps))
	for _, step := range s.Steps {
		out = append(out, step)
	}
	slices.SortFunc(out, func(a, b *coordinatorv1.StepStatus) int {
		return cmp.Or(cmp.Compare(a.GetOrdinal(), b.GetOrdinal()), cmp.Compare(a.GetStepId(), b.GetStepId()))
	})
	return out
}

// row is one group of steps, or a step without a group, as the live view shows it.
type row struct {
	name, host, step, age, state string
	rank                         int
}

// The ranks of rows: what is shown first where not all can be.
const (
	rankActive = iota
	rankFailed
	rankPending
	rankDone
)

// rows returns one row for each group in the order of the groups' first steps.
func (s *State) rows(now time.Time) []row {
	var order []string
	groups := map[string][]*coordinatorv1.StepStatus{}
	for _, step := range s.ordered() {
		name := groupOf(step)
		if groups[name] == nil {
			order = append(order, name)
		}
		groups[name] = append(groups[name], step)
	}
	out := make([]row, 0, len(order))
	for _, name := range order {
		out = append(out, rowOf(name, groups[name], now))
	}
	return out
}

// groupOf returns the group of a step, or what stands before the last slash of its id.
func groupOf(step *coordinatorv1.StepStatus) string {
	if g := step.GetGroup(); g != "" {
		return g
	}
	id := strings.TrimPrefix(step.GetStepId(), "undo/")
	if i := strings.LastIndexByte(id, '/'); i > 0 {
		return id[:i]
	}
	return id
}

// rowOf shows the step of a group that says most about it.
func rowOf(name string, steps []*coordinatorv1.StepStatus, now time.Time) row {
	undo := slices.DeleteFunc(slices.Clone(steps), func(s *coordinatorv1.StepStatus) bool { return !isUndo(s) })
	if len(undo) > 0 {
		steps = undo // what is taken back now says more than what was done before.
	}
	var active, failed, pending, last *coordinatorv1.StepStatus
	for _, step := range steps {
		switch step.GetState() {
		case coordinatorv1.StepState_STEP_STATE_RUNNING, coordinatorv1.StepState_STEP_STATE_UNKNOWN,
			coordinatorv1.StepState_STEP_STATE_WAITING, coordinatorv1.StepState_STEP_STATE_ASKING:
			if active == nil || weight(step) >= weight(active) {
				active = step
			}
		case coordinatorv1.StepState_STEP_STATE_FAILED:
			failed = step
		case coordinatorv1.StepState_STEP_STATE_PENDING:
			if pending == nil {
				pending = step
			}
		case coordinatorv1.StepState_STEP_STATE_DONE, coordinatorv1.StepState_STEP_STATE_SKIPPED:
			if last == nil || step.GetState() == coordinatorv1.StepState_STEP_STATE_DONE {
				last = step
			}
		}
	}
	shown, rank := cmp.Or(active, failed, pending, last), rankDone
	switch shown {
	case nil:
		return row{name: name, rank: rankPending}
	case active:
		rank = rankActive
	case failed:
		rank = rankFailed
	case pending:
		rank = rankPending
	}
	return row{name: name, host: shown.GetHost(), step: short(shown), age: age(shown, now), state: word(shown), rank: rank}
}

func weight(step *coordinatorv1.StepStatus) int {
	switch step.GetState() {
	case coordinatorv1.StepState_STEP_STATE_UNKNOWN, coordinatorv1.StepState_STEP_STATE_ASKING:
		return 2
	case coordinatorv1.StepState_STEP_STATE_RUNNING:
		return 1
	}
	return 0
}

func isUndo(step *coordinatorv1.StepStatus) bool { return strings.HasPrefix(step.GetStepId(), "undo/") }

// short returns the step's id without its group, which has a column of its own.
func short(step *coordinatorv1.StepStatus) string {
	id, undo := strings.CutPrefix(step.GetStepId(), "undo/")
	if rest, ok := strings.CutPrefix(id, groupOf(step)+"/"); ok {
		id = rest
	}
	if undo {
		return "undo " + id
	}
	return id
}

func age(step *coordinatorv1.StepStatus, now time.Time) string {
	switch step.GetState() {
	case coordinatorv1.StepState_STEP_STATE_RUNNING, coordinatorv1.StepState_STEP_STATE_UNKNOWN, coordinatorv1.StepState_STEP_STATE_ASKING:
		return output.Age(step.GetStartedAt(), now)
	case coordinatorv1.StepState_STEP_STATE_WAITING:
		if t := step.GetNotBefore(); t != nil && t.AsTime().After(now) {
			return "in " + output.Span(t.AsTime().Sub(now).Round(time.Second))
		}
	case coordinatorv1.StepState_STEP_STATE_DONE, coordinatorv1.StepState_STEP_STATE_FAILED:
		return output.Age(step.GetFinishedAt(), now)
	}
	return ""
}

func word(step *coordinatorv1.StepStatus) string {
	state := output.Word(step.GetState(), "STEP_STATE_")
	if a := step.GetAttempt(); a > 1 && step.GetState() == coordinatorv1.StepState_STEP_STATE_RUNNING {
		state += " again"
	}
	return state
}

// when returns the time of a step's last change, as far as the run says it.
func when(step *coordinatorv1.StepStatus, now time.Time) time.Time {
	for _, t := range []*timestamppb.Timestamp{step.GetFinishedAt(), step.GetStartedAt()} {
		if t != nil {
			return t.AsTime()
		}
	}
	return now
}

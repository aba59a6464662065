package follow

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// plain writes one line for each event: time, host, step, state, and what failed.
type plain struct {
	out     io.Writer
	notes   io.Writer
	now     func() time.Time
	steps   map[string]string
	run     coordinatorv1.RunState
	blocked string
}

// NewPlain returns a view that writes events to out, one a line, and notices to notes.
func NewPlain(out, notes io.Writer, now func() time.Time) View {
	return &plain{out: out, notes: notes, now: now, steps: map[string]string{}}
}

func (p *plain) Update(s *State, answer *coordinatorv1.WatchRunResponse) {
	if !s.Settled() {
		p.state(s.RunID, answer.GetRun())
	}
	for _, step := range (&State{Steps: index(answer.GetSteps())}).ordered() {
		p.step(step)
	}
	p.state(s.RunID, answer.GetRun())
	blocked := ""
	for _, b := range s.Blockers {
		blocked += Blocked(b, p.now(), false) + " "
	}
	if blocked = strings.TrimSpace(blocked); blocked != p.blocked && blocked != "" {
		p.line(p.now(), "", "run/"+s.RunID, blocked)
	}
	p.blocked = blocked
}

// state writes a change of the run's own state once. The last one comes after the steps that led to it.
func (p *plain) state(id string, r *coordinatorv1.Run) {
	if r == nil || r.GetState() == p.run {
		return
	}
	p.run = r.GetState()
	at := p.now()
	if r.GetFinishedAt() != nil {
		at = r.GetFinishedAt().AsTime()
	}
	p.line(at, "", "run/"+id, strings.TrimSpace(output.Word(p.run, "RUN_STATE_")+" "+r.GetCause()))
}

func index(steps []*coordinatorv1.StepStatus) map[string]*coordinatorv1.StepStatus {
	out := make(map[string]*coordinatorv1.StepStatus, len(steps))
	for _, s := range steps {
		out[s.GetStepId()] = s
	}
	return out
}

// step writes a step's change once, and nothing for steps that only wait for their turn.
func (p *plain) step(step *coordinatorv1.StepStatus) {
	state := word(step)
	if step.GetState() == coordinatorv1.StepState_STEP_STATE_PENDING {
		return
	}
	key := fmt.Sprintf("%s %d", state, step.GetAttempt())
	if p.steps[step.GetStepId()] == key {
		return
	}
	p.steps[step.GetStepId()] = key
	if f := step.GetFailure(); f != nil && step.GetState() != coordinatorv1.StepState_STEP_STATE_DONE {
		state += " " + Why(step)
	}
	at := when(step, p.now())
	if step.GetState() == coordinatorv1.StepState_STEP_STATE_WAITING || step.GetState() == coordinatorv1.StepState_STEP_STATE_UNKNOWN {
		at = p.now()
	}
	p.line(at, step.GetHost(), step.GetStepId(), state)
}

func (p *plain) line(at time.Time, host, step, rest string) {
	if host == "" {
		host = "-"
	}
	_, _ = fmt.Fprintf(p.out, "%s %s %s %s\n", at.UTC().Format(time.RFC3339), output.Clean(host), output.Clean(step), output.Clean(rest))
}

func (p *plain) Notice(line string) { _, _ = fmt.Fprintln(p.notes, output.Clean(line)) }

func (p *plain) Tick(*State) {}

func (p *plain) Close(*State) {}

// Why returns the failure of a step in one line.
func Why(step *coordinatorv1.StepStatus) string {
	f := step.GetFailure()
	if f == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s)", f.GetMessage(), strings.TrimPrefix(f.GetReason().String(), "FAILURE_REASON_"))
}

// Blocked returns a blocker in one line. With live, times are relative and change with every call.
func Blocked(b *coordinatorv1.Blocker, now time.Time, live bool) string {
	line := "blocked: " + b.GetSummary()
	if b.GetSince() != nil {
		if live {
			line += " for " + output.Age(b.GetSince(), now)
		} else {
			line += " since " + b.GetSince().AsTime().UTC().Format(time.RFC3339)
		}
	}
	if u := b.GetUnblocks(); u != "" {
		line += "; to unblock: " + u
	}
	if n := b.GetNext(); n != "" {
		line += "; next: " + n
		if t := b.GetNextAt(); t != nil {
			if live {
				line += " in " + output.Span(t.AsTime().Sub(now))
			} else {
				line += " at " + t.AsTime().UTC().Format(time.RFC3339)
			}
		}
	}
	return line
}

// lines writes every answer as a line of JSON.
type lines struct {
	out, notes io.Writer
}

// NewJSON returns a view that writes every answer to out as one line of JSON, and notices to notes. With nil, notices are
// lines of JSON in out.
func NewJSON(out, notes io.Writer) View { return &lines{out: out, notes: notes} }

func (l *lines) Update(_ *State, answer *coordinatorv1.WatchRunResponse) {
	line, err := output.JSONLine(answer)
	if err != nil {
		l.Notice(err.Error())
		return
	}
	_, _ = l.out.Write(append(line, '\n'))
}

func (l *lines) Notice(line string) {
	if l.notes != nil {
		_, _ = fmt.Fprintln(l.notes, output.Clean(line))
		return
	}
	if doc, err := json.Marshal(map[string]string{"notice": line}); err == nil { // a string always encodes.
		_, _ = l.out.Write(append(doc, '\n'))
	}
}

func (l *lines) Tick(*State) {}

func (l *lines) Close(*State) {}

// quiet shows nothing but notices.
type quiet struct{ notes io.Writer }

// NewQuiet returns a view that writes notices only.
func NewQuiet(notes io.Writer) View { return &quiet{notes: notes} }

func (q *quiet) Update(*State, *coordinatorv1.WatchRunResponse) {}

func (q *quiet) Notice(line string) { _, _ = fmt.Fprintln(q.notes, output.Clean(line)) }

func (q *quiet) Tick(*State) {}

func (q *quiet) Close(*State) {}

package follow_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/follow"
	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// screen is a terminal that knows what the live view uses: it fails the test on anything else.
type screen struct {
	t     *testing.T
	width int
	lines []string
	row   int
	col   int
}

func (s *screen) Write(b []byte) (int, error) {
	for text := string(b); text != ""; {
		switch {
		case strings.HasPrefix(text, "\x1b["):
			end := strings.IndexAny(text, "AJKm")
			if end < 0 {
				s.t.Fatalf("unknown sequence %q", text)
			}
			s.command(text[2:end], text[end])
			text = text[end+1:]
		case text[0] == '\r':
			s.col, text = 0, text[1:]
		case text[0] == '\n':
			s.row, s.col, text = s.row+1, 0, text[1:]
		case text[0] < 0x20:
			s.t.Fatalf("control character %q", text[0])
		default:
			r := []rune(text)[0]
			s.put(r)
			text = text[len(string(r)):]
		}
	}
	return len(b), nil
}

func (s *screen) command(argument string, command byte) {
	switch command {
	case 'A':
		var n int
		if _, err := fmt.Sscan(argument, &n); err != nil {
			s.t.Fatal(err)
		}
		if s.row -= n; s.row < 0 {
			s.t.Fatalf("the cursor left the screen by %d lines", -s.row)
		}
	case 'K':
		s.line()
		s.lines[s.row] = string([]rune(s.lines[s.row])[:min(s.col, len([]rune(s.lines[s.row])))])
	case 'J':
		s.command("", 'K')
		s.lines = s.lines[:s.row+1]
	}
}

func (s *screen) line() {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, "")
	}
}

func (s *screen) put(r rune) {
	if s.col >= s.width {
		s.row, s.col = s.row+1, 0
	}
	s.line()
	line := []rune(s.lines[s.row])
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = string(line)
	s.col++
}

func (s *screen) String() string { return strings.TrimRight(strings.Join(s.lines, "\n"), "\n ") }

// wide is a run of n groups with one step each; the first is running, the rest is pending.
func wide(n int) *coordinatorv1.WatchRunResponse {
	a := &coordinatorv1.WatchRunResponse{Index: 1, Run: &coordinatorv1.Run{
		Id: "r-1", Title: "apply web, release 2", State: running, StepsTotal: uint32(n), CreatedAt: timestamppb.New(noon().Add(-75 * time.Second)), Locks: []string{"stack/web"},
	}}
	for i := range n {
		s := &coordinatorv1.StepStatus{StepId: fmt.Sprintf("web.%d/start", i+1), Group: fmt.Sprintf("web.%d", i+1), Host: "h1", Ordinal: uint32(i),
			State: coordinatorv1.StepState_STEP_STATE_PENDING}
		if i == 0 {
			s.State, s.StartedAt = going, timestamppb.New(noon().Add(-3*time.Second))
		}
		a.Steps = append(a.Steps, s)
	}
	return a
}

func TestLive(t *testing.T) {
	s := &screen{t: t, width: 80}
	view := follow.NewLive(s, func() (int, int) { return s.width, 24 }, noon, output.Style{Color: true})
	state := follow.NewState("r-1")
	show := func(a *coordinatorv1.WatchRunResponse) {
		state.Apply(a)
		view.Update(state, a)
		view.Close(state)
	}
	first := wide(2)
	state.Apply(first)
	view.Update(state, first)
	want := `run/r-1  running  0/2 steps  1m15s  apply web, release 2  locks stack/web
INSTANCE  HOST  STEP   AGE  STATE
web.1     h1    start  3s   running
web.2     h1    start  -    pending`
	if s.String() != want {
		t.Fatalf("screen:\n%s\nwant:\n%s", s, want)
	}
	view.Notice("connection to c1 was lost")
	view.Tick(state)
	show(&coordinatorv1.WatchRunResponse{Index: 2, Run: &coordinatorv1.Run{Id: "r-1", Title: "apply web, release 2", State: succeeded, StepsTotal: 2, StepsSettled: 2, Revision: 2,
		CreatedAt: timestamppb.New(noon().Add(-75 * time.Second)), FinishedAt: timestamppb.New(noon())},
		Steps: []*coordinatorv1.StepStatus{
			{StepId: "web.1/start", Group: "web.1", Host: "h1", State: done, FinishedAt: timestamppb.New(noon().Add(-time.Second)), Revision: 2},
			{StepId: "undo/web.2/start", Group: "web.2", Host: "h1", Ordinal: 9, State: done, FinishedAt: timestamppb.New(noon()), Revision: 2},
		}})
	want = `connection to c1 was lost
run/r-1  succeeded  2/2 steps  1m15s  apply web, release 2
INSTANCE  HOST  STEP        AGE  STATE
web.1     h1    start       1s   done
web.2     h1    undo start  0s   done`
	if s.String() != want {
		t.Errorf("screen:\n%s\nwant:\n%s", s, want)
	}
}

// TestLiveIsRedrawnInPlace draws often, in windows of any size: there is one header and no line is left from before.
func TestLiveIsRedrawnInPlace(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {200, 60}, {40, 10}, {20, 8}} {
		s := &screen{t: t, width: size[0]}
		view := follow.NewLive(s, func() (int, int) { return s.width, size[1] }, noon, output.Style{})
		state := follow.NewState("r-1")
		a := wide(100)
		a.Run.State = coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN // the end of a run is drawn whatever the time.
		a.Blockers = []*coordinatorv1.Blocker{{Summary: "host h2 does not answer"}}
		for range 5 {
			state.Apply(a)
			view.Update(state, a)
		}
		lines := strings.Split(s.String(), "\n")
		if len(lines) >= size[1] {
			t.Errorf("%v: %d lines:\n%s", size, len(lines), s)
		}
		if !strings.HasPrefix(lines[0], "run/r-1") || strings.Count(s.String(), "run/r-1") != 1 {
			t.Errorf("%v:\n%s", size, s)
		}
		if !strings.Contains(s.String(), "web.1 ") || !strings.Contains(s.String(), "pending\nblocked: host h2") {
			t.Errorf("%v: neither the active row nor what blocks is shown:\n%s", size, s)
		}
	}
}

func TestJSONLines(t *testing.T) {
	var out bytes.Buffer
	view := follow.NewJSON(&out, &bytes.Buffer{})
	view.Update(nil, run(1, running))
	view.Update(nil, run(2, succeeded))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], `{"index":"1","run":{"id":"r-1"`) || !strings.Contains(lines[1], `"state":"RUN_STATE_SUCCEEDED"`) {
		t.Errorf("lines %q", lines)
	}
}

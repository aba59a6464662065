package follow

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// redraw is the shortest time between two drawings: a terminal over a slow line must keep up.
const redraw = 100 * time.Millisecond

// Size returns the width and height of a terminal.
type Size func() (width, height int)

// live rewrites rows in place. It moves the cursor and clears lines, nothing else: no alternate screen, so what was shown
// stays when the run has ended.
type live struct {
	out   io.Writer
	size  Size
	now   func() time.Time
	style output.Style

	drawn time.Time
	dirty bool
	lines []int // widths of the lines that are on the screen.
}

// NewLive returns a view for a terminal.
func NewLive(out io.Writer, size Size, now func() time.Time, style output.Style) View {
	return &live{out: out, size: size, now: now, style: style}
}

func (l *live) Update(s *State, _ *coordinatorv1.WatchRunResponse) {
	l.dirty = true
	if time.Since(l.drawn) >= redraw || s.Settled() {
		l.draw(s)
	}
}

func (l *live) Tick(s *State) {
	if l.dirty || time.Since(l.drawn) >= time.Second {
		l.draw(s)
	}
}

func (l *live) Close(s *State) {
	if s.Run != nil {
		l.draw(s)
	}
	l.lines = nil
}

// Notice writes a line above the rows, which the next drawing restores.
func (l *live) Notice(line string) {
	_, _ = io.WriteString(l.out, l.back()+"\x1b[J"+output.Clean(line)+"\n")
	l.lines = nil
}

// back returns what moves the cursor to the first row, also if the window became narrower and lines wrapped.
func (l *live) back() string {
	width, _ := l.size()
	up := 0
	for _, n := range l.lines {
		up += max(1, (n+width-1)/max(width, 1))
	}
	if up == 0 {
		return "\r"
	}
	return fmt.Sprintf("\r\x1b[%dA", up)
}

func (l *live) draw(s *State) {
	if s.Run == nil {
		return
	}
	width, height := l.size()
	text := l.frame(s, height)
	var b strings.Builder
	b.WriteString(l.back())
	l.lines = l.lines[:0]
	for _, t := range text {
		t = cut(t, width-1)
		l.lines = append(l.lines, utf8.RuneCountInString(t))
		b.WriteString(l.paint(t))
		b.WriteString("\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	_, _ = io.WriteString(l.out, b.String())
	l.drawn, l.dirty = time.Now(), false
}

// paint colours the word of a line that is a state: the second of the header, the last of a row.
func (l *live) paint(line string) string {
	if strings.HasPrefix(line, "blocked: ") {
		return l.style.Paint(output.ToneWarn, line)
	}
	words := strings.Split(line, "  ")
	i := len(words) - 1
	if strings.HasPrefix(line, "run/") {
		i = min(1, i)
	}
	words[i] = l.style.Paint(output.ToneOf(words[i]), words[i])
	return strings.Join(words, "  ")
}

// frame returns the lines to show, at most as many as fit.
func (l *live) frame(s *State, height int) []string {
	now := l.now()
	out := []string{l.header(s, now)}
	var blockers []string
	for _, b := range s.Blockers {
		blockers = append(blockers, output.Clean(Blocked(b, now, true)))
	}
	rows := s.rows(now)
	shown, more := fit(rows, max(3, height-len(blockers)-5))
	var table strings.Builder
	cells := make([][]string, 0, len(shown))
	for _, r := range shown {
		cells = append(cells, []string{r.name, r.host, r.step, r.age, r.state})
	}
	columns := []output.Column{{Title: "INSTANCE"}, {Title: "HOST"}, {Title: "STEP"}, {Title: "AGE"}, {Title: "STATE"}}
	if len(cells) > 0 {
		output.WriteTable(&table, columns, cells, false, output.Style{})
		out = append(out, strings.Split(strings.TrimRight(table.String(), "\n"), "\n")...)
	}
	if more != "" {
		out = append(out, more)
	}
	return append(out, blockers...)
}

func (l *live) header(s *State, now time.Time) string {
	r := s.Run
	parts := []string{"run/" + s.RunID, output.Word(r.GetState(), "RUN_STATE_"), fmt.Sprintf("%d/%d steps", r.GetStepsSettled(), r.GetStepsTotal())}
	end := now
	if r.GetFinishedAt() != nil {
		end = r.GetFinishedAt().AsTime()
	}
	if r.GetCreatedAt() != nil {
		parts = append(parts, output.Span(end.Sub(r.GetCreatedAt().AsTime())))
	}
	parts = append(parts, r.GetTitle())
	if len(r.GetLocks()) > 0 {
		parts = append(parts, "locks "+strings.Join(r.GetLocks(), ","))
	}
	for i := range parts {
		parts[i] = output.Clean(parts[i])
	}
	return strings.Join(parts, "  ")
}

// fit chooses the rows that say most, in their order, and tells of the others.
func fit(rows []row, room int) ([]row, string) {
	if len(rows) <= room {
		return rows, ""
	}
	room-- // for the line about the others.
	keep := make([]bool, len(rows))
	for rank := rankActive; rank <= rankDone; rank++ {
		for i, r := range rows {
			if r.rank == rank && room > 0 {
				keep[i] = true
				room--
			}
		}
	}
	var shown []row
	counts := map[int]int{}
	for i, r := range rows {
		if keep[i] {
			shown = append(shown, r)
		} else {
			counts[r.rank]++
		}
	}
	var more []string
	for rank, what := range []string{"active", "failed", "pending", "done"} {
		if counts[rank] > 0 {
			more = append(more, fmt.Sprintf("%d %s", counts[rank], what))
		}
	}
	return shown, "and " + strings.Join(more, ", ")
}

func cut(text string, width int) string {
	if width < 1 || utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

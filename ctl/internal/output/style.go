package output

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Tone is what a colour says.
type Tone int

// The tones.
const (
	TonePlain Tone = iota
	ToneGood
	ToneWarn
	ToneBad
	ToneFaint
	ToneBold
)

// Style colours text, or not.
type Style struct{ Color bool }

// Paint returns text in the colour of a tone.
func (s Style) Paint(t Tone, text string) string {
	if !s.Color || t == TonePlain || text == "" {
		return text
	}
	code := map[Tone]string{ToneGood: "32", ToneWarn: "33", ToneBad: "31", ToneFaint: "2", ToneBold: "1"}[t]
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// ToneOf returns the tone of a state's word.
func ToneOf(state string) Tone {
	switch word, _, _ := strings.Cut(state, " "); word {
	case "up", "ready", "healthy", "done", "succeeded", "current", "create", "leader":
		return ToneGood
	case "down", "failed", "unhealthy", "engine-down", "needs-human", "dead", "missing", "remove", "unreachable", "exited":
		return ToneBad
	case "paused", "unknown", "rolling-back", "rolled-back", "starting", "waiting", "update", "rolling", "restarting", "cancelled", "blocked":
		return ToneWarn
	case "pending", "skipped", "former", "joined", "none":
		return ToneFaint
	}
	return TonePlain
}

// Clean makes text from elsewhere safe for a terminal: control characters, which could move the cursor or worse, are
// spelled out. Line feeds and tabs become spaces.
func Clean(text string) string {
	safe := true
	for _, r := range text {
		if r == utf8.RuneError || unicode.IsControl(r) || isBidi(r) {
			safe = false
			break
		}
	}
	if safe {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case r == utf8.RuneError, unicode.IsControl(r), isBidi(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return strings.TrimSpace(b.String())
}

// isBidi tells of the characters that reorder what is shown.
func isBidi(r rune) bool {
	return (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) || r == 0x200e || r == 0x200f
}

// Lines splits text into lines that are safe for a terminal.
func Lines(text string) []string {
	var out []string
	for line := range strings.Lines(strings.ReplaceAll(text, "\r\n", "\n")) {
		if line = Clean(strings.TrimRight(line, "\n")); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// Age returns the time from t to now in at most two units, like 14s, 3m10s, 5h, 12d; "-" without a time.
func Age(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	return Span(now.Sub(t.AsTime()))
}

// Span returns a duration as Age does. A negative one is 0s: clocks differ.
func Span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Minute:
		d = d.Truncate(time.Second)
		if d < time.Minute {
			return fmt.Sprintf("%ds", int(d.Seconds()))
		}
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 10*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// Word returns an enum value as people write it: RUN_STATE_ROLLING_BACK with prefix RUN_STATE_ is rolling-back.
func Word(value fmt.Stringer, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(value.String(), prefix)), "_", "-")
}

// Bytes returns a size with a binary unit, like 1.5GiB.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	value, unit := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + units[unit]
}

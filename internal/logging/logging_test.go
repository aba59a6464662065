package logging_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spheroseg/muster/internal/logging"
)

func TestNew(t *testing.T) {
	for _, tc := range []struct {
		level, format string
		lines         int // of one at each of four levels.
	}{
		{"debug", "text", 4}, {"info", "text", 3}, {"", "", 3}, {"warn", "json", 2}, {"ERROR", "JSON", 1},
	} {
		var out bytes.Buffer
		l, err := logging.New(&out, tc.level, tc.format)
		if err != nil {
			t.Fatal(err)
		}
		l.Debug("a")
		l.Info("b")
		l.Warn("c")
		l.Error("d", "host", "h7")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != tc.lines {
			t.Errorf("%q %q: %d lines, want %d", tc.level, tc.format, len(lines), tc.lines)
		}
		if isJSON := json.Valid([]byte(lines[0])); isJSON != strings.EqualFold(tc.format, "json") {
			t.Errorf("%q %q: %s", tc.level, tc.format, lines[0])
		}
	}
	for _, bad := range [][2]string{{"loud", "text"}, {"info", "xml"}} {
		if _, err := logging.New(&bytes.Buffer{}, bad[0], bad[1]); err == nil {
			t.Errorf("New(%q, %q) made a logger", bad[0], bad[1])
		}
	}
}

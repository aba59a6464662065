package coordinator

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestClockGoesOnFromTheState(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	machine, state := noon, noon.Add(-time.Hour)
	var told bytes.Buffer
	c := newClock(func() time.Time { return state }, slog.New(slog.NewTextHandler(&told, nil)))
	c.machine = func() time.Time { return machine }
	want := func(what string, want time.Time) {
		t.Helper()
		if got := c.Now(); !got.Equal(want) {
			t.Errorf("%s: %s, want %s", what, got.Format(time.TimeOnly), want.Format(time.TimeOnly))
		}
	}
	want("a state that is behind", noon)
	state = noon.Add(10 * time.Minute) // by a leader whose clock was ahead
	want("a state that is ahead", noon.Add(10*time.Minute))
	if !strings.Contains(told.String(), "ahead=10m") {
		t.Errorf("log %q", told.String())
	}
	machine = machine.Add(10 * time.Second)
	want("ten seconds later, nine have passed", noon.Add(10*time.Minute+9*time.Second))
	state = noon.Add(10*time.Minute + 9*time.Second) // by this leader
	machine = machine.Add(10 * time.Second)
	want("its own stamps do not push it", noon.Add(10*time.Minute+18*time.Second))
	machine = noon.Add(2 * time.Hour)
	want("in the end both agree", machine)
	machine = machine.Add(time.Second)
	want("and stay so", machine)
}

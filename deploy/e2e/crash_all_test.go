//go:build crash

package e2e_test

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

const (
	campaignOperations = 4000
	closing            = 90 * time.Second // of the time that is given: for what runs still, and to clean up
)

// until is when a bounded test has to come to its end: after the share of what is left until CRASH_UNTIL, in seconds of the epoch.
func until(t *testing.T, share float64) time.Time {
	t.Helper()
	deadline, ok := t.Deadline()
	if text := os.Getenv("CRASH_UNTIL"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("CRASH_UNTIL: %v", err)
		}
		if given := time.Unix(seconds, 0); !ok || given.Before(deadline) {
			deadline, ok = given, true
		}
	}
	if !ok {
		deadline = time.Now().Add(time.Hour)
	}
	return time.Now().Add(time.Duration(share * float64(time.Until(deadline)-closing)))
}

// TestCrashCampaign performs operations under random kills and pauses of every kind of program.
func TestCrashCampaign(t *testing.T) {
	campaign(t, newRig(t, "crash"), campaignOperations, until(t, 0.3))
}

// TestCrashPoints kills every program before and after every write of every scenario, as far as the time goes.
func TestCrashPoints(t *testing.T) {
	var rigs []*rig
	for i := range max(3, runtime.NumCPU()) {
		rigs = append(rigs, newRig(t, fmt.Sprintf("crash%d", i+1)))
	}
	enumerated(t, rigs, func(all []planned) []planned { return all }, until(t, 0.75))
}

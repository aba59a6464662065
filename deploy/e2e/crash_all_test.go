//go:build crash

package e2e_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

const (
	campaignOperations = 4000
	closing            = time.Minute // of the time that go test allows: for what runs still, and to clean up
)

// until is when a bounded test has to come to its end: after the share of what is left.
func until(t *testing.T, share float64) time.Time {
	t.Helper()
	deadline, ok := t.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Hour)
	}
	left := time.Until(deadline) - closing
	return time.Now().Add(time.Duration(share * float64(left)))
}

// TestCrashCampaign performs operations under random kills and pauses of every kind of program.
func TestCrashCampaign(t *testing.T) {
	campaign(t, newRig(t, "crash"), campaignOperations, until(t, 0.5))
}

// TestCrashPoints kills every program before and after every write of every scenario, as far as the time goes.
func TestCrashPoints(t *testing.T) {
	var rigs []*rig
	for i := range max(3, runtime.NumCPU()) {
		rigs = append(rigs, newRig(t, fmt.Sprintf("crash%d", i+1)))
	}
	enumerated(t, rigs, func(all []planned) []planned { return all }, until(t, 1))
}

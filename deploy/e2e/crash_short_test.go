//go:build e2e

package e2e_test

import (
	"testing"
	"time"
)

// shortCases of the enumeration are played with every test run.
const shortCases = 10

// TestCrashPoints kills programs before and after writes that must survive: the first few of the cases that `make crash` plays.
func TestCrashPoints(t *testing.T) {
	enumerated(t, []*rig{newRig(t, "crash")}, func(all []planned) []planned { return all[:shortCases] }, time.Now().Add(time.Minute))
}

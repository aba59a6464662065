//go:build e2e

package e2e_test

import (
	"slices"
	"testing"
	"time"
)

// shortCases of each scenario are played with every test run.
const shortCases = 2

// TestFewCrashPoints kills programs before and after writes that must survive: a few of the cases that `make crash` plays.
func TestFewCrashPoints(t *testing.T) {
	enumerated(t, []*rig{newRig(t, "crash")}, func(all []planned) []planned {
		played := map[int]int{}
		return slices.DeleteFunc(all, func(p planned) bool {
			played[p.scenario]++
			return played[p.scenario] > shortCases
		})
	}, time.Now().Add(time.Minute))
}

package simulation

import (
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	usualSeeds = 50
	fewSeeds   = 10 // with the race detector, which makes everything ten times slower, and with -short
	seedLength = time.Minute
)

// ordinary is how hosts are when nothing is wrong with them but that they fail.
func ordinary() temper { return temper{failing: 0.08, slow: 0.03} }

// seeds to play: MUSTER_SEEDS of them, from MUSTER_SEED on, which is how one that failed is played again.
func seeds(t *testing.T) (first, count uint64) {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s is %q, and must be a number", name, text)
		}
		return n
	}
	usual := uint64(usualSeeds)
	if testing.Short() || raceDetector {
		usual = fewSeeds
	}
	return number("MUSTER_SEED", 1), number("MUSTER_SEEDS", usual)
}

// TestSeeds plays campaigns of random work under random faults and holds what they leave to every checker.
func TestSeeds(t *testing.T) {
	first, count := seeds(t)
	began, entries, facts, accesses := time.Now(), 0, 0, 0
	for seed := first; seed < first+count; seed++ {
		e := campaign{seed: seed, length: seedLength, temper: ordinary()}.run(t)
		t.Logf("seed %d: %v so far, %v of simulated time", seed, time.Since(began).Round(time.Millisecond), e.took)
		entries, facts, accesses = entries+len(e.log), facts+len(e.facts), accesses+len(e.accesses)
		if found := e.violations(); len(found) > 0 {
			t.Errorf("seed %d breaks what must hold (MUSTER_SEED=%d MUSTER_SEEDS=1 plays it again):\n%s", seed, seed, e.report(found))
		}
	}
	t.Logf("%d seeds, %d entries of the log, %d lines of the hosts' journals, %d reads and writes: %v", count, entries, facts, accesses, time.Since(began).Round(time.Millisecond))
}

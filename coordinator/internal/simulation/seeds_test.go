package simulation

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	usualSeeds = 50
	shortSeeds = 10 // with -short
	raceSeeds  = 2  // with the race detector, which makes everything twenty times slower
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
	switch {
	case raceDetector:
		usual = raceSeeds
	case testing.Short():
		usual = shortSeeds
	}
	return number("MUSTER_SEED", 1), number("MUSTER_SEEDS", usual)
}

// TestSeeds plays campaigns of random work under random faults and holds what they leave to every checker.
func TestSeeds(t *testing.T) {
	first, count := seeds(t)
	began := time.Now()
	var entries, facts, accesses, simulated, total, succeeded atomic.Int64
	t.Run("play", func(t *testing.T) {
		for shard := range uint64(runtime.GOMAXPROCS(0)) {
			t.Run(fmt.Sprintf("shard %d", shard), func(t *testing.T) {
				t.Parallel()
				for seed := first + shard; seed < first+count; seed += uint64(runtime.GOMAXPROCS(0)) {
					e := campaign{seed: seed, length: seedLength, temper: ordinary()}.run(t)
					entries.Add(int64(len(e.log)))
					facts.Add(int64(len(e.facts)))
					accesses.Add(int64(len(e.accesses)))
					simulated.Add(int64(e.took))
					for end, n := range e.updates() {
						if total.Add(int64(n)); end == coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
							succeeded.Add(int64(n))
						}
					}
					if found := e.violations(); len(found) > 0 {
						t.Errorf("seed %d breaks what must hold (MUSTER_SEED=%d MUSTER_SEEDS=1 plays it again):\n%s", seed, seed, e.report(found))
					}
				}
			})
		}
	})
	t.Logf("%d seeds, %v simulated in %v: %d entries of the log, %d lines of the hosts' journals, %d reads and writes, %d rolling updates of which %d succeeded", count,
		time.Duration(simulated.Load()), time.Since(began).Round(time.Second), entries.Load(), facts.Load(), accesses.Load(), total.Load(), succeeded.Load())
}

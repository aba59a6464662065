package coordinator

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// headroom is what the heap may always grow by between two collections, and headroomPart the part of a large heap. Go's own rule, twice the
	// heap, would collect a small one all the time while many commands are committed, and let the connections of 10,000 hosts take double.
	headroom     = 64 << 20
	headroomPart = 4
	// percentNoise is by how much the setting must change to be worth the short stop of the program that a change costs.
	percentNoise  = 5
	percentEvery  = time.Second
	percentMost   = 400
	liveHeapBytes = "/gc/heap/live:bytes"
)

// keepMemory sets how often memory is collected by how much of it is in use, until the context ends.
func keepMemory(ctx context.Context) error {
	tick := time.NewTicker(percentEvery)
	defer tick.Stop()
	now := percentMost
	before := debug.SetGCPercent(now)
	defer debug.SetGCPercent(before)
	sample := []metrics.Sample{{Name: liveHeapBytes}}
	for {
		metrics.Read(sample)
		if next := gcPercent(sample[0].Value.Uint64()); max(next-now, now-next) >= percentNoise {
			debug.SetGCPercent(next)
			now = next
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// gcPercent is the growth, in percent of what is in use, after which memory is collected.
func gcPercent(live uint64) int {
	return int(min(percentMost, 100*max(headroom, live/headroomPart)/max(1, live)))
}

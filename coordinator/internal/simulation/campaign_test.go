package simulation

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ordinaryPatience is more than any run needs whose hosts answer: its slowest operations, tried as often as they may be, one after the other.
const ordinaryPatience = 25 * time.Minute

// campaign is one seed's worth of faults and work.
type campaign struct {
	seed   uint64
	length time.Duration
	temper temper
	bugs   bugs
	calm   bool // no faults
	// patience is how long runs get to end when nothing hurts the fleet any more; 0 means ordinaryPatience.
	patience time.Duration
}

// evidence is what is left of a campaign for the checkers.
type evidence struct {
	seed      uint64
	log       []*entry
	facts     []fact
	running   map[string]bool // containers that run in the end
	acks      []ack
	accesses  []access
	watches   []*watch
	snapshots map[string][]byte // of the coordinators, in the end
	settled   bool              // every run ended in time
	agreed    bool              // every coordinator caught up in time
	blames    []string
	faults    []string
	took      time.Duration // of simulated time
	bugs      bugs
}

// run plays a campaign in virtual time.
func (p campaign) run(t *testing.T) (e *evidence) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, p.seed, 4, p.temper, p.bugs)
		s.found()
		e = p.play(s)
		s.end()
		e.collect(s)
	})
	return e
}

func (p campaign) play(s *sim) *evidence {
	c := &crowd{sim: s, planner: &planner{rng: s.rngFor("plans"), hosts: s.hosts}}
	ctx, cancel := context.WithTimeout(context.Background(), p.length)
	defer cancel()
	watching, stopWatching := context.WithCancel(context.Background())
	var work, watchers sync.WaitGroup
	for i := range clients {
		work.Go(func() { c.client(ctx, i) })
	}
	for i := range 2 {
		watchers.Go(func() { c.watch(watching, i) })
	}
	if !p.calm {
		work.Go(func() { s.hurtHosts(ctx) })
		work.Go(func() { s.hurtCoordinators(ctx) })
	}
	<-ctx.Done()
	work.Wait()
	s.note("everything is healed")
	s.wire.heal()
	e := &evidence{seed: p.seed, bugs: p.bugs, snapshots: map[string][]byte{}}
	e.settled = c.settle(cmp.Or(p.patience, ordinaryPatience))
	e.agreed = s.until("all coordinators agree on the index", time.Minute, func() bool {
		var indexes []uint64
		for _, name := range s.names {
			n := s.node(name)
			if n == nil || n.cluster.Read(context.Background()) != nil {
				return false
			}
			indexes = append(indexes, n.state.Index())
		}
		return indexes[0] == indexes[1] && indexes[1] == indexes[2]
	})
	rest(context.Background(), 10*time.Second) // for events and late messages to arrive
	stopWatching()
	watchers.Wait()
	for _, name := range s.names {
		if n := s.node(name); n != nil {
			e.snapshots[name] = snapshot(n.state)
		}
	}
	e.log = s.history.log() // What the coordinators commit on their way out is not judged: nobody is left to agree on it.
	e.acks, e.accesses, e.watches = c.acks, c.accesses, c.watches
	return e
}

// collect takes what the fleet wrote down.
func (e *evidence) collect(s *sim) {
	e.took = time.Since(s.started).Round(time.Second)
	if e.log == nil {
		e.log = s.history.log()
	}
	e.blames, e.faults, e.running = s.history.blames, s.faults, map[string]bool{}
	for _, h := range s.hosts {
		e.facts = append(e.facts, h.facts()...)
		for name := range h.running {
			e.running[name] = true
		}
	}
}

func pause(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

// hurtHosts lets agents die, and cuts hosts off, one at a time.
func (s *sim) hurtHosts(ctx context.Context) {
	rng := s.rngFor("host faults")
	for rest(ctx, pause(rng, 500*time.Millisecond, 8*time.Second)) {
		h, long := s.hosts[rng.IntN(len(s.hosts))], pause(rng, 100*time.Millisecond, 9*time.Second)
		if rng.IntN(3) > 0 {
			s.note("agent %s dies for %v", h.name, long)
			h.crash()
			rest(ctx, long)
			s.revive(h)
			continue
		}
		s.note("host %s is cut off for %v", h.name, long)
		s.wire.set([]string{h.name}, s.names, true)
		s.wire.set(s.names, []string{h.name}, true)
		rest(ctx, long)
		s.wire.set([]string{h.name}, s.names, false)
		s.wire.set(s.names, []string{h.name}, false)
	}
}

// hurtCoordinators plays one fault after the other, so that there is always a majority that could go on.
func (s *sim) hurtCoordinators(ctx context.Context) {
	rng := s.rngFor("faults")
	for rest(ctx, pause(rng, 300*time.Millisecond, 5*time.Second)) {
		victim := s.names[rng.IntN(len(s.names))]
		if leader := s.leader(); leader != nil && rng.IntN(3) > 0 {
			victim = leader.name
		}
		s.hurt(ctx, rng, victim, pause(rng, 100*time.Millisecond, 7*time.Second))
	}
}

func (s *sim) hosted() []string {
	var names []string
	for _, h := range s.hosts {
		names = append(names, h.name)
	}
	return names
}

func (s *sim) hurt(ctx context.Context, rng *rand.Rand, victim string, long time.Duration) {
	me := []string{victim}
	between := func(from, to []string) {
		s.wire.set(from, to, true)
		rest(ctx, long)
		s.wire.set(from, to, false)
	}
	what := rng.IntN(12)
	s.note("%s: %s for %v", victim, [...]string{
		"killed", "killed", "stopped", "cut off from the others", "not heard by the others", "does not hear the others", "cut off from the hosts",
		"frozen", "clock jumps", "slow and lossy", "hands over", "snapshots",
	}[what], long)
	switch what {
	case 0, 1:
		s.kill(victim)
		rest(ctx, long)
		s.start(victim)
	case 2:
		s.stop(victim)
		rest(ctx, long)
		s.start(victim)
	case 3:
		s.wire.set(s.names, me, true)
		between(me, s.names)
		s.wire.set(s.names, me, false)
	case 4:
		between(me, s.names)
	case 5:
		between(s.names, me)
	case 6:
		s.wire.set(s.hosted(), me, true)
		between(me, s.hosted())
		s.wire.set(s.hosted(), me, false)
	case 7: // What it has sent arrives when it goes on, as from a process that was stopped and continued.
		s.wire.set(s.everybody(), me, true)
		between(me, s.everybody())
		s.wire.set(s.everybody(), me, false)
	case 8:
		s.mu.Lock()
		s.skew[victim] = time.Duration(rng.Int64N(int64(60 * time.Second))) // forwards, or back to where it should be
		s.mu.Unlock()
	case 10:
		if n := s.node(victim); n != nil {
			_ = n.cluster.HandOver(ctx, "") // Only a leader can, and only while the others answer.
		}
	case 11:
		if n := s.node(victim); n != nil {
			_ = n.cluster.Snapshot() // A coordinator that has nothing new makes none.
		}
	case 9:
		s.wire.mu.Lock()
		s.wire.losing, s.wire.doubling = 0.2, 0.3
		s.wire.mu.Unlock()
		for _, other := range s.everybody() {
			s.wire.delay(victim, other, time.Duration(rng.Int64N(int64(200*time.Millisecond))))
		}
		rest(ctx, long)
		s.wire.mu.Lock()
		s.wire.losing, s.wire.doubling = 0, 0
		clear(s.wire.slow)
		s.wire.mu.Unlock()
	}
}

// report is everything that a person needs to see why a seed failed.
func (e *evidence) report(violations []string) string {
	var b strings.Builder
	for _, v := range violations {
		fmt.Fprintln(&b, "  VIOLATION", v)
	}
	fmt.Fprintf(&b, "seed %d: %d entries, %d facts, %d acknowledged, %d accesses\n", e.seed, len(e.log), len(e.facts), len(e.acks), len(e.accesses))
	for _, f := range e.faults {
		fmt.Fprintln(&b, "  fault", f)
	}
	for _, x := range e.log {
		fmt.Fprintf(&b, "  log %d #%d %T %s", x.index, x.seq, x.command.GetOp(), x.command.GetRequestId())
		for _, r := range x.runs {
			fmt.Fprintf(&b, " [%s %v]", r.GetId(), r.GetState())
		}
		for _, st := range x.steps {
			fmt.Fprintf(&b, " (%s/%s/%d %v)", st.GetRunId(), st.GetStepId(), st.GetAttempt(), st.GetState())
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

//go:build e2e || crash

package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/spheroseg/muster/internal/crashpoint"
)

// crashSeed orders the cases: the same order every time, in which a bounded run covers every scenario and every role.
const crashSeed = 20260101

// planned is a case to be played.
type planned struct {
	scenario int
	crash    crash
}

// enumerate lists every kill of every scenario.
func enumerate(all []scenario, refs []*reference) []planned {
	var cases []planned
	for i := range all {
		for _, role := range slices.Sorted(maps.Keys(refs[i].counts)) {
			for p, n := range refs[i].counts[role] {
				for k := range n {
					cases = append(cases, planned{i, crash{role: role, point: crashpoint.Point(p), n: k + 1}})
				}
			}
		}
	}
	rand.New(rand.NewPCG(crashSeed, 0)).Shuffle(len(cases), func(a, b int) { cases[a], cases[b] = cases[b], cases[a] })
	return cases
}

// tally adds up the findings of a scenario and a kind of victim.
type tally struct {
	listed, cases, killed                                       int
	state, duplicates, lost, orphans, afterAbort, floor, broken int
}

func kind(role string) string {
	switch role[0] {
	case 'h':
		return "agent"
	case 'e':
		return "engine"
	}
	return role
}

// enumeration is a run of many cases on several rigs beside each other.
type enumeration struct {
	scenarios []scenario
	refs      []*reference
	cases     []planned

	mu       sync.Mutex
	next     int
	tallies  map[[2]string]*tally
	recovery []time.Duration
	problems []string
}

// countingRuns plays every scenario without a kill.
func countingRuns(t *testing.T, r *rig, all []scenario) []*reference {
	t.Helper()
	// In the same order on every rig, so that placement decides the same.
	for _, prepare := range []func(context.Context, *rig) error{scaledTo(rigCopies), movable, maintainable} {
		if err := prepare(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	var refs []*reference
	for _, sc := range all {
		f, ref, err := r.play(t.Context(), sc, &crash{}, nil)
		if err != nil {
			t.Fatalf("%s without a kill: %v", sc.name, err)
		}
		if found := f.all(); len(found) > 0 {
			t.Fatalf("%s without a kill:\n%s", sc.name, strings.Join(found, "\n"))
		}
		t.Logf("%s without a kill: %v", sc.name, ref.counts)
		refs = append(refs, ref)
	}
	return refs
}

// work plays cases until there are no more, or until the deadline.
func (e *enumeration) work(ctx context.Context, r *rig, until time.Time) error {
	for time.Now().Before(until) && ctx.Err() == nil {
		e.mu.Lock()
		if e.next == len(e.cases) {
			e.mu.Unlock()
			return nil
		}
		p := e.cases[e.next]
		e.next++
		e.mu.Unlock()
		sc := e.scenarios[p.scenario]
		c := p.crash
		f, _, err := r.play(ctx, sc, &c, e.refs[p.scenario])
		e.add(sc, &c, f, err)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", sc.name, &c, err)
		}
	}
	return nil
}

func (e *enumeration) add(sc scenario, c *crash, f *findings, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tallies[[2]string{sc.name, kind(c.role)}]
	t.cases++
	if err != nil {
		t.broken++
		e.problems = append(e.problems, fmt.Sprintf("%s, %s: %v", sc.name, c, err))
	}
	if f == nil {
		return
	}
	if f.killed {
		t.killed++
	}
	if f.recovery > 0 {
		e.recovery = append(e.recovery, f.recovery)
	}
	for _, x := range []struct {
		n     *int
		found []string
	}{{&t.state, f.state}, {&t.duplicates, f.duplicates}, {&t.lost, f.lost}, {&t.orphans, f.orphans}, {&t.afterAbort, f.afterAbort}, {&t.floor, f.floor}} {
		if len(x.found) > 0 {
			*x.n++
		}
	}
	for _, found := range f.all() {
		e.problems = append(e.problems, fmt.Sprintf("%s, %s: %s", sc.name, c, found))
	}
}

// table is the result.
func (e *enumeration) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "scenario\tvictim\tcases\tof\tkilled\tother end\tduplicates\tlost\torphans\tafter abort\tfloor broken\tstuck\t")
	for _, key := range slices.SortedFunc(maps.Keys(e.tallies), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		t := e.tallies[key]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", key[0], key[1], t.cases, t.listed, t.killed,
			t.state, t.duplicates, t.lost, t.orphans, t.afterAbort, t.floor, t.broken)
	}
	_ = w.Flush()
	if len(e.recovery) > 0 {
		slices.Sort(e.recovery)
		fmt.Fprintf(&b, "recovery after the death of a leader, to the next acknowledged write: p50 %s, max %s of %d\n",
			e.recovery[len(e.recovery)/2].Round(time.Millisecond), e.recovery[len(e.recovery)-1].Round(time.Millisecond), len(e.recovery))
	}
	return b.String()
}

// enumerated plays the cases that choose leaves, on the rigs, until the deadline.
func enumerated(t *testing.T, rigs []*rig, choose func([]planned) []planned, until time.Time) {
	all := scenarios()
	e := &enumeration{scenarios: all, tallies: map[[2]string]*tally{}}
	e.refs = countingRuns(t, rigs[0], all)
	e.cases = enumerate(all, e.refs)
	for _, p := range e.cases {
		key := [2]string{all[p.scenario].name, kind(p.crash.role)}
		if e.tallies[key] == nil {
			e.tallies[key] = &tally{}
		}
		e.tallies[key].listed++
	}
	total := len(e.cases)
	e.cases = choose(e.cases)
	for _, r := range rigs[1:] {
		countingRuns(t, r, all[:1])
	}
	began := time.Now()
	errs := make([]error, len(rigs))
	var wg sync.WaitGroup
	for i, r := range rigs {
		wg.Go(func() { errs[i] = e.work(t.Context(), r, until) })
	}
	wg.Wait()
	counted(t, "%d of %d cases in %s on %d fleets (real coordinators and agents, engines without containers):\n%s",
		e.next, total, time.Since(began).Round(time.Second), len(rigs), e.table())
	for _, problem := range e.problems {
		t.Error(problem)
	}
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

package simulation

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/spheroseg/muster/coordinator/internal/state"
)

// porcupineTime bounds the search for an order. Histories as short as ours take milliseconds.
const porcupineTime = 30 * time.Second

// register is what porcupine takes a secret for: a value and the number of its version.
type register struct {
	version uint64
	value   string
}

// model of one secret. A write raises the version by one; its answer is the version. A write that nobody answered may have any.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return register{} },
		Step: func(now, input, _ any) (bool, any) {
			r, in := now.(register), input.(access)
			if !in.write {
				return in.version == r.version && in.value == r.value, r
			}
			next := register{version: r.version + 1, value: in.value}
			return in.unknown || in.version == next.version, next
		},
	}
}

// linearizable: the accesses of all clients to a secret could have happened one after the other, each at some moment while it was under way.
func linearizable(e *evidence) (found []string) {
	keys := map[string][]porcupine.Operation{}
	for _, a := range e.accesses {
		op := porcupine.Operation{ClientId: a.client, Input: a, Call: a.from, Return: a.to}
		if a.unknown {
			op.Return = math.MaxInt64 // it may yet happen
		}
		keys[a.key] = append(keys[a.key], op)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		switch porcupine.CheckOperationsTimeout(model(), keys[key], porcupineTime) {
		case porcupine.Illegal:
			found = append(found, fmt.Sprintf("the %d accesses to %s could not have happened in any order: %+v", len(keys[key]), key, ofKey(e.accesses, key)))
		case porcupine.Unknown:
			found = append(found, fmt.Sprintf("the %d accesses to %s were too many to judge", len(keys[key]), key))
		}
	}
	return found
}

func ofKey(accesses []access, key string) []access {
	return slices.DeleteFunc(slices.Clone(accesses), func(a access) bool { return a.key != key })
}

// noEventIsMissed: what a subscriber was told to be everything between two indexes is everything, in order, whichever coordinator said so.
func noEventIsMissed(e *evidence) (found []string) {
	for number, w := range e.watches {
		for _, p := range w.pieces {
			var want []state.Event
			at := sort.Search(len(e.log), func(i int) bool { return e.log[i].index > p.after })
			for ; at < len(e.log) && e.log[at].index <= p.upTo; at++ {
				want = append(want, e.log[at].events...)
			}
			if !slices.Equal(want, p.events) {
				found = append(found, fmt.Sprintf("subscriber %d was told %d events after %d up to %d, there were %d", number, len(p.events), p.after, p.upTo, len(want)))
			}
		}
	}
	return found
}

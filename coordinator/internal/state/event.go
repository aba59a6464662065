package state

import (
	"context"
	"sort"
)

const eventCapacity = 65536

// Event tells that an object changed. Clients read the object itself.
type Event struct {
	Index   uint64
	Kind    string
	Key     string
	Deleted bool
}

// ring keeps the last events. The guarded fields are State's.
type ring struct {
	buffer []Event
	next   int
	floor  uint64 // events up to this index are no longer complete
}

func newRing(capacity int) *ring { return &ring{buffer: make([]Event, 0, capacity)} }

// watched kinds of objects leave the state as events; the others are nobody's business.
func watched(kind string) bool {
	switch kind {
	case tableHost, tableStack, tableRelease, tableRun, tableStep, tableProcedure:
		return true
	}
	return false
}

func (r *ring) add(events []Event) {
	for _, event := range events {
		if !watched(event.Kind) {
			continue
		}
		if len(r.buffer) < cap(r.buffer) {
			r.buffer = append(r.buffer, event)
			continue
		}
		r.floor = r.buffer[r.next].Index
		r.buffer[r.next] = event
		r.next = (r.next + 1) % len(r.buffer)
	}
}

// since returns the events after an index, and false if they are no longer all there.
func (r *ring) since(index uint64) ([]Event, bool) {
	if index < r.floor {
		return nil, false
	}
	at := func(i int) Event { return r.buffer[(r.next+i)%len(r.buffer)] }
	first := sort.Search(len(r.buffer), func(i int) bool { return at(i).Index > index })
	var found []Event
	for i := first; i < len(r.buffer); i++ {
		found = append(found, at(i))
	}
	return found, true
}

// Events returns what changed after an index, waiting for the next change if there is nothing yet, and the index up to which the answer is
// complete. It returns false if the events from that index on are no longer kept: the client lists, and resumes at the list's index.
func (s *State) Events(ctx context.Context, after uint64) (events []Event, upTo uint64, complete bool, err error) {
	for {
		s.mu.Lock()
		events, complete = s.events.since(after)
		upTo = s.index
		changed := s.changed
		s.mu.Unlock()
		if !complete || len(events) > 0 || upTo > after {
			return events, upTo, complete, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, after, true, ctx.Err()
		}
	}
}

// Package state is the replicated state of the coordinators: tables of immutable protobuf messages, changed only by the commands of the raft
// log. It decides (which step is next, whether a budget is exceeded, who holds a lock); the engine on the leader only carries out.
//
// Apply is deterministic: it reads no clock, no randomness, no file and no network. The time comes with the command. See DESIGN.md.
package state

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// State holds the tables. Its methods may be called from any goroutine; Apply and Restore only from one at a time.
type State struct {
	mu      sync.Mutex
	db      *memdb.MemDB
	index   uint64
	changed chan struct{} // closed and replaced at every change
	events  *ring
}

// New returns an empty state.
func New() *State {
	return &State{db: newDB(), changed: make(chan struct{}), events: newRing(eventCapacity)}
}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic("state: the schema is invalid: " + err.Error())
	}
	// A snapshot is a database whose writes wake nobody: those who wait, wait for Changed, and memdb would track every node that it touches.
	return db.Snapshot()
}

// Index returns the index of the last command that was applied.
func (s *State) Index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

// Changed returns a channel that is closed at the next change.
func (s *State) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Wait returns when the command at index was applied, or with the context's error.
func (s *State) Wait(ctx context.Context, index uint64) error {
	for {
		s.mu.Lock()
		done, changed := s.index >= index, s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// View returns a consistent, read-only view of the state as it is now.
func (s *State) View() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &View{txn: s.db.Txn(false), index: s.index}
}

// publish makes a change visible: the new index, the events, and the end of everybody's waiting.
func (s *State) publish(index uint64, events []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = index
	s.events.add(events)
	close(s.changed)
	s.changed = make(chan struct{})
}

// change is one command being applied: its batch, the transaction and what it touched.
type change struct {
	batch  *batch
	txn    *memdb.Txn
	index  uint64
	now    time.Time
	actor  string
	meta   *raftv1.Meta
	events []Event
}

func (c *change) stamp() *timestamppb.Timestamp { return timestamppb.New(c.now) }

// put stores an object. The schema makes every failure a programming error.
func (c *change) put(table, key string, object any) {
	if err := c.txn.Insert(table, object); err != nil {
		panic("state: insert into " + table + ": " + err.Error())
	}
	c.events = append(c.events, Event{Index: c.index, Kind: table, Key: key})
}

// drop removes an object.
func (c *change) drop(table, key string, object any) {
	if err := c.txn.Delete(table, object); err != nil {
		panic("state: delete from " + table + ": " + err.Error())
	}
	c.events = append(c.events, Event{Index: c.index, Kind: table, Key: key, Deleted: true})
}

func (c *change) view() *View { return &View{txn: c.txn, index: c.index} }

package simulation

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/state"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// entry is one command of the replicated log, and what it did.
type entry struct {
	index   uint64
	seq     int64 // order over the log and the hosts' journals: before this nobody can have acted on the entry
	command *raftv1.Command
	raw     []byte
	result  *raftv1.Result
	answer  []byte
	runs    []*coordinatorv1.Run        // as they were after it
	steps   []*coordinatorv1.StepStatus // those that it changed, as they were after it
	events  []state.Event
}

// history is the log as all coordinators together saw it. It outlives them.
type history struct {
	seq *atomic.Int64

	mu      sync.Mutex
	entries map[uint64]*entry
	shadow  *state.State // applies every entry once and alone, in order: a coordinator has all that it was not given itself in a snapshot
	blames  []string     // what was wrong at the moment at which it happened
}

// blame notes a violation that is seen at once.
func (h *history) blame(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.blames) < 20 {
		h.blames = append(h.blames, fmt.Sprintf(format, args...))
	}
}

// log returns the entries in order.
func (h *history) log() []*entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Collect(maps.Values(h.entries))
	slices.SortFunc(all, func(a, b *entry) int { return int(a.index) - int(b.index) })
	return all
}

func marshal(m proto.Message) []byte {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("simulation: marshal: " + err.Error())
	}
	return raw
}

// recorder is a state machine that writes down what it is given. Everything else is the real one's.
type recorder struct {
	*state.State

	node    string
	history *history
	bug     func(node string, command *raftv1.Command) *raftv1.Command
}

// Apply applies a command.
func (r *recorder) Apply(index uint64, command *raftv1.Command) *raftv1.Result {
	return r.ApplyBatch([]uint64{index}, []*raftv1.Command{command})[0]
}

// ApplyBatch applies commands, however raft has cut them into batches. Every coordinator must be given the same at the same index, and answer
// the same, each time it applies it.
func (r *recorder) ApplyBatch(indexes []uint64, commands []*raftv1.Command) []*raftv1.Result {
	given := make([]*raftv1.Command, len(commands))
	for i, command := range commands {
		r.history.witness(r.node, indexes[i], command, r.bug)
		if given[i] = command; r.bug != nil {
			given[i] = r.bug(r.node, proto.CloneOf(command))
		}
	}
	results := r.State.ApplyBatch(indexes, given)
	for i, result := range results {
		if known := r.history.at(indexes[i]); !bytes.Equal(known.answer, marshal(result)) {
			r.history.blame("log: %s answered otherwise at index %d than the first: %v and %v", r.node, indexes[i], result, known.result)
		}
	}
	return results
}

func (h *history) at(index uint64) *entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.entries[index]
}

// witness writes a command down when the first coordinator is given it: its number is drawn before anybody can act on it.
func (h *history) witness(node string, index uint64, command *raftv1.Command, bug func(string, *raftv1.Command) *raftv1.Command) {
	raw := marshal(command)
	h.mu.Lock()
	known := h.entries[index]
	if known == nil {
		e := &entry{index: index, seq: h.seq.Add(1), command: command, raw: raw}
		given := proto.CloneOf(command)
		if bug != nil {
			given = bug("witness", given)
		}
		before := h.shadow.Index()
		e.result = h.shadow.Apply(index, given)
		e.answer = marshal(e.result)
		e.trace(h.shadow, before)
		h.entries[index] = e
	}
	h.mu.Unlock()
	if known != nil && !bytes.Equal(known.raw, raw) {
		h.blame("log: %s was given another command at index %d than the first", node, index)
	}
}

// trace adds what an entry changed.
func (e *entry) trace(in *state.State, before uint64) {
	events, _, complete, err := in.Events(context.Background(), before)
	if err != nil || !complete {
		return
	}
	e.events = events
	view := in.View()
	runs, steps := map[string]bool{}, map[string]bool{}
	for _, event := range events {
		switch event.Kind {
		case "run":
			if run := view.Run(event.Key); run != nil && !runs[event.Key] {
				runs[event.Key] = true
				e.runs = append(e.runs, run)
			}
		case "step":
			id, step, _ := strings.Cut(event.Key, "/")
			if s := view.Step(id, step); s != nil && !steps[event.Key] {
				steps[event.Key] = true
				e.steps = append(e.steps, s)
			}
		}
	}
}

// replay applies a log to a state machine that has seen nothing, and returns its snapshot and state.
func replay(log []*entry, node string, bug func(string, *raftv1.Command) *raftv1.Command) ([]byte, *state.State) {
	fresh := state.New()
	for _, e := range log {
		given := proto.CloneOf(e.command)
		if bug != nil {
			given = bug(node, given)
		}
		fresh.Apply(e.index, given)
	}
	return snapshot(fresh), fresh
}

func snapshot(s *state.State) []byte {
	frozen, err := s.Snapshot()
	if err != nil {
		panic("simulation: snapshot: " + err.Error())
	}
	var b bytes.Buffer
	if _, err := frozen.WriteTo(&b); err != nil {
		panic("simulation: snapshot: " + err.Error())
	}
	return b.Bytes()
}

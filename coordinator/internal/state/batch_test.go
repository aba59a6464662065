package state_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// TestBatchesChangeNothing: however a log is cut into batches, the results, the events and the bytes of the state are those of one command at a time.
// Requests repeat, are used again for something else, and are forgotten after a day; runs start, are refused, and end.
func TestBatchesChangeNothing(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 11))
		w := newWorld(t)
		results := []*raftv1.Result{nil, nil} // of the world's own two commands
		run := ""
		for range 300 {
			if rng.IntN(50) == 0 {
				w.now = w.now.Add(time.Duration(rng.IntN(20)) * time.Hour)
			}
			before := len(w.log)
			switch p := rng.IntN(10); {
			case p < 6:
				results = append(results, w.apply(&raftv1.Command{
					RequestId: []string{"", fmt.Sprintf("r%d", rng.IntN(60))}[min(1, rng.IntN(5))],
					Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{
						Name: fmt.Sprintf("s%d", rng.IntN(5)), Value: []byte{byte(rng.IntN(2))},
					}},
				}))
			case p < 8 || run == "":
				result := w.apply(&raftv1.Command{RequestId: fmt.Sprintf("run%d", rng.IntN(20)), Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
					Plan: rolling(1+rng.IntN(3), 0, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK),
				}}})
				if started := result.GetRun().GetId(); started != "" {
					run = started
				}
				results = append(results, result)
			default:
				w.move(rng, run)
				results = append(results, make([]*raftv1.Result, len(w.log)-before)...)
			}
		}
		w.rebatch(rng, seed, results)
	}
}

// rebatch applies the world's log again, in batches.
func (w *world) rebatch(rng *rand.Rand, seed uint64, results []*raftv1.Result) {
	w.t.Helper()
	again := state.New()
	for done := 0; done < len(w.log); {
		n := min(1+rng.IntN(40), len(w.log)-done)
		var indexes []uint64
		for i := range n {
			indexes = append(indexes, uint64(done+i+1))
		}
		for i, result := range again.ApplyBatch(indexes, w.log[done:done+n]) {
			if want := results[done+i]; want != nil && !proto.Equal(result, want) {
				w.t.Fatalf("seed %d: command %d gives %v in a batch, and %v alone", seed, done+i+1, result, want)
			}
		}
		done += n
	}
	if !bytes.Equal(snapshot(w.t, again), snapshot(w.t, w.state)) {
		w.t.Fatalf("seed %d: the state depends on how the log is cut into batches", seed)
	}
	alone, _, _, err := w.state.Events(w.t.Context(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	together, _, _, err := again.Events(w.t.Context(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if fmt.Sprint(alone) != fmt.Sprint(together) {
		w.t.Fatalf("seed %d: events\n%v\nare in batches\n%v", seed, alone, together)
	}
}

// TestRequestsAreForgottenWithinABatch: a request that is too old when a command of the same batch comes is new again.
func TestRequestsAreForgottenWithinABatch(t *testing.T) {
	put := func(request, value string, at time.Time) *raftv1.Command {
		return &raftv1.Command{
			Version: state.CommandVersion, RequestId: request, Now: timestamppb.New(at),
			Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: "s", Value: []byte(value)}},
		}
	}
	start := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	commands := []*raftv1.Command{
		put("a", "1", start), put("a", "1", start.Add(time.Hour)), put("b", "1", start.Add(25*time.Hour)), put("a", "2", start.Add(25*time.Hour)),
		put("b", "1", start.Add(25*time.Hour)),
	}
	results := state.New().ApplyBatch([]uint64{1, 2, 3, 4, 5}, commands)
	for i, want := range []struct {
		version  uint64
		replayed bool
	}{{1, false}, {1, true}, {2, false}, {3, false}, {2, true}} {
		if r := results[i]; r.GetError() != nil || r.GetVersion() != want.version || r.GetReplayed() != want.replayed {
			t.Errorf("command %d: got %v, want version %d, replayed %t", i+1, r, want.version, want.replayed)
		}
	}
}

package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func TestListRuns(t *testing.T) {
	w := newWorld(t)
	runs := coordinatorv1.NewRunServiceClient(w.conn)
	var shop, active, newest []string
	for i := range 7 {
		stack := []string{"", "shop"}[i%2]
		run := w.start(stack)
		newest = append([]string{run.GetId()}, newest...)
		if stack == "shop" {
			shop = append([]string{run.GetId()}, shop...)
		}
		if i < 5 {
			w.finish(run.GetId())
		} else {
			active = append([]string{run.GetId()}, active...)
		}
	}
	// pages lists all pages, as far as they do not go round.
	pages := func(req *coordinatorv1.ListRunsRequest) (ids []string, sizes []int) {
		t.Helper()
		for {
			page, err := runs.ListRuns(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, run := range page.GetRuns() {
				ids = append(ids, run.GetId())
			}
			sizes = append(sizes, len(page.GetRuns()))
			if page.GetNextPageToken() == "" || len(sizes) > 10 {
				return ids, sizes
			}
			req.PageToken = page.GetNextPageToken()
		}
	}
	for _, test := range []struct {
		name  string
		req   *coordinatorv1.ListRunsRequest
		want  []string
		sizes string
	}{
		{"all, newest first", &coordinatorv1.ListRunsRequest{}, newest, "[7]"},
		{"three a page", &coordinatorv1.ListRunsRequest{PageSize: 3}, newest, "[3 3 1]"},
		{"the last page is full", &coordinatorv1.ListRunsRequest{PageSize: 7}, newest, "[7]"},
		{"one a page", &coordinatorv1.ListRunsRequest{PageSize: 1, Stack: "shop"}, shop, "[1 1 1]"},
		{"of a stack", &coordinatorv1.ListRunsRequest{Stack: "shop"}, shop, "[3]"},
		{"of no stack that there is", &coordinatorv1.ListRunsRequest{Stack: "none"}, nil, "[0]"},
		{"active", &coordinatorv1.ListRunsRequest{Active: true}, active, "[2]"},
		{"active of a stack", &coordinatorv1.ListRunsRequest{Active: true, Stack: "shop", Stale: true}, active[1:], "[1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ids, sizes := pages(test.req)
			if fmt.Sprint(ids) != fmt.Sprint(test.want) || fmt.Sprint(sizes) != test.sizes {
				t.Errorf("got %v in pages of %v, want %v in %s", ids, sizes, test.want, test.sizes)
			}
		})
	}
	t.Run("a new run moves no page", func(t *testing.T) {
		first, err := runs.ListRuns(t.Context(), &coordinatorv1.ListRunsRequest{PageSize: 4})
		if err != nil {
			t.Fatal(err)
		}
		w.start("")
		second, err := runs.ListRuns(t.Context(), &coordinatorv1.ListRunsRequest{PageSize: 4, PageToken: first.GetNextPageToken()})
		if err != nil || len(second.GetRuns()) != 3 || second.GetRuns()[0].GetId() != newest[4] {
			t.Errorf("the second page is %v, %v, want it to begin with %s", second.GetRuns(), err, newest[4])
		}
	})
	for name, req := range map[string]*coordinatorv1.ListRunsRequest{"size": {PageSize: 501}, "token": {PageToken: "no number!"}} {
		if _, err := runs.ListRuns(t.Context(), req); rpcerr.Reason(err) != "INVALID" {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}

func TestWatchRun(t *testing.T) {
	w := newWorld(t)
	runs := coordinatorv1.NewRunServiceClient(w.conn)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	id := w.start("").GetId()
	stream, err := runs.WatchRun(ctx, &coordinatorv1.WatchRunRequest{RunId: id})
	if err != nil {
		t.Fatal(err)
	}
	first := next(t, stream)
	if first.GetRun().GetId() != id || len(first.GetSteps()) != 1 || first.GetIndex() != w.state.Index() {
		t.Fatalf("first came %v, want the run with its step at index %d", first, w.state.Index())
	}
	w.host("h1", nil) // A change that is none of the run's is not sent.
	w.control(id, raftv1.RunControl_RUN_CONTROL_PAUSE)
	paused := next(t, stream)
	if paused.GetRun().GetState() != coordinatorv1.RunState_RUN_STATE_PAUSED || len(paused.GetBlockers()) == 0 {
		t.Fatalf("then came %v, want it paused, with what blocks it", paused)
	}
	if len(paused.GetSteps()) != 0 {
		t.Errorf("steps that have not changed were sent: %v", paused.GetSteps())
	}
	// A client that was cut off resumes: it gets what changed after its index, and nothing again.
	resumed, err := runs.WatchRun(ctx, &coordinatorv1.WatchRunRequest{RunId: id, FromIndex: paused.GetIndex()})
	if err != nil {
		t.Fatal(err)
	}
	w.control(id, raftv1.RunControl_RUN_CONTROL_RESUME)
	if got := next(t, resumed); got.GetRun().GetState() != coordinatorv1.RunState_RUN_STATE_RUNNING || got.GetIndex() <= paused.GetIndex() {
		t.Errorf("resumed with %v, want the change after index %d", got, paused.GetIndex())
	}
	next(t, stream)
	w.finish(id)
	for name, s := range map[string]interface {
		Recv() (*coordinatorv1.WatchRunResponse, error)
	}{"first": stream, "resumed": resumed} {
		last, err := s.Recv()
		if err != nil || last.GetRun().GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED || len(last.GetSteps()) != 1 {
			t.Errorf("%s: last came %v, %v, want the end with the step", name, last, err)
		}
	}
	end(t, stream)
	end(t, resumed)
	late, err := runs.WatchRun(ctx, &coordinatorv1.WatchRunRequest{RunId: id, FromIndex: w.state.Index()})
	if err != nil {
		t.Fatal(err)
	}
	if got := next(t, late); got.GetRun().GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("who comes after the end is sent %v", got)
	}
	end(t, late)
	none, err := runs.WatchRun(ctx, &coordinatorv1.WatchRunRequest{RunId: "r-none"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Recv(); status.Code(err) != codes.NotFound || rpcerr.Reason(err) != "RUN_NOT_FOUND" {
		t.Errorf("a run that there is not: %v", err)
	}
}

// A client that comes from another coordinator with an index that this one has not reached is not shown an older state.
func TestWatchRunIsNotTakenBackInTime(t *testing.T) {
	w := newWorld(t)
	id := w.start("").GetId()
	seen := w.state.Index() + 2
	stream, err := coordinatorv1.NewRunServiceClient(w.conn).WatchRun(t.Context(), &coordinatorv1.WatchRunRequest{RunId: id, FromIndex: seen})
	if err != nil {
		t.Fatal(err)
	}
	for w.state.Index() <= seen {
		w.control(id, raftv1.RunControl_RUN_CONTROL_PAUSE)
		w.control(id, raftv1.RunControl_RUN_CONTROL_RESUME)
	}
	if got := next(t, stream); got.GetIndex() <= seen || got.GetRun().GetRevision() <= seen {
		t.Errorf("came index %d with revision %d, want only what is newer than %d", got.GetIndex(), got.GetRun().GetRevision(), seen)
	}
}

func (w *world) control(run string, control raftv1.RunControl) {
	w.t.Helper()
	w.propose(&raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: control}}})
}

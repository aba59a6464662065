package api_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// upTo receives events until a bookmark of at least an index; the bookmarks must not go back, and no event may come after its bookmark.
func upTo(t *testing.T, stream grpc.ServerStreamingClient[coordinatorv1.WatchEventsResponse], index uint64) []string {
	t.Helper()
	var events []string
	var marked uint64
	for {
		got := next(t, stream)
		if got.GetIndex() < marked || got.GetKind() != "" && got.GetIndex() == marked {
			t.Fatalf("%v came after everything up to %d", got, marked)
		}
		if got.GetKind() != "" {
			events = append(events, got.GetKind()+" "+got.GetKey())
			continue
		}
		if marked = got.GetIndex(); marked >= index {
			return events
		}
	}
}

func TestWatchEvents(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events := coordinatorv1.NewClusterServiceClient(w.conn)
	watch := func(req *coordinatorv1.WatchEventsRequest) grpc.ServerStreamingClient[coordinatorv1.WatchEventsResponse] {
		t.Helper()
		stream, err := events.WatchEvents(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	before := w.state.Index()
	all := watch(&coordinatorv1.WatchEventsRequest{FromIndex: before})
	hosts := watch(&coordinatorv1.WatchEventsRequest{FromIndex: before, Kinds: []string{"host"}})
	w.host("h1", nil)
	middle := w.state.Index()
	w.host("h2", nil)
	run := w.start("").GetId()
	w.propose(&raftv1.Command{Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: "password", Value: []byte("x")}}})
	after := w.state.Index()

	// Tokens, identities and secrets are nobody's business; the bookmark tells that there was something, so that a resumed watch is short.
	got := upTo(t, all, after)
	unique := []string{}
	for _, event := range got { // A command may touch an object twice.
		if n := len(unique); n == 0 || unique[n-1] != event {
			unique = append(unique, event)
		}
	}
	if len(unique) < 4 || unique[0] != "host h1" || unique[1] != "host h2" {
		t.Errorf("events are %v, want the hosts first", unique)
	}
	kinds := map[string]bool{}
	for _, event := range unique {
		kinds[event] = true
		var kind, key string
		_, _ = fmt.Sscan(event, &kind, &key)
		if kind != "host" && kind != "run" && kind != "step" {
			t.Errorf("event %q is not for clients", event)
		}
	}
	if !kinds["run "+run] {
		t.Errorf("events are %v, want one of run %s", unique, run)
	}
	if got := fmt.Sprint(upTo(t, hosts, after)); got != "[host h1 host h2]" {
		t.Errorf("events of hosts are %s", got)
	}
	resumed := watch(&coordinatorv1.WatchEventsRequest{FromIndex: middle, Kinds: []string{"host"}})
	if got := fmt.Sprint(upTo(t, resumed, after)); got != "[host h2]" {
		t.Errorf("after index %d come %s, want what happened after it", middle, got)
	}
	fresh := watch(&coordinatorv1.WatchEventsRequest{})
	var changes sync.WaitGroup
	changes.Go(func() { // It may begin after the first of these.
		for i := 0; ctx.Err() == nil; i++ {
			_, _, _ = w.cluster.Propose(ctx, &raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{
				Hosts: []*raftv1.HostUpdate{{Host: "h2", State: coordinatorv1.HostState(1 + i%2)}},
			}}})
		}
	})
	if got := next(t, fresh); got.GetIndex() <= after {
		t.Errorf("a watch from now on began with %v, which happened before", got)
	}
	cancel()
	changes.Wait()
}

func TestOldEventsAreCompacted(t *testing.T) {
	w := newWorld(t)
	w.host("h1", nil)
	before := w.state.Index()
	updates := make([]*raftv1.HostUpdate, 20000)
	for i := range updates {
		updates[i] = &raftv1.HostUpdate{Host: "h1", State: coordinatorv1.HostState_HOST_STATE_UP}
	}
	for range 4 { // More than are kept.
		w.propose(&raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: updates}}})
	}
	events := coordinatorv1.NewClusterServiceClient(w.conn)
	stream, err := events.WatchEvents(t.Context(), &coordinatorv1.WatchEventsRequest{FromIndex: before})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Recv(); status.Code(err) != codes.OutOfRange || rpcerr.Reason(err) != "COMPACTED" {
		t.Errorf("came %v, %v, want COMPACTED", got, err)
	}
	// From there, the client lists and resumes.
	at := w.state.Index()
	if stream, err = events.WatchEvents(t.Context(), &coordinatorv1.WatchEventsRequest{FromIndex: at}); err != nil {
		t.Fatal(err)
	}
	w.host("h2", nil)
	if got := fmt.Sprint(upTo(t, stream, w.state.Index())); got != "[host h2]" {
		t.Errorf("after the list came %s", got)
	}
}

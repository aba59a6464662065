package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// other returns a member that does not lead.
func (f *fleet) other() *node {
	f.t.Helper()
	l := f.waitLeader()
	for _, n := range f.nodes {
		if n != l {
			return n
		}
	}
	f.t.Fatal("there is only the leader")
	return nil
}

func (f *fleet) members(n *node) []string {
	f.t.Helper()
	ids, err := n.Members()
	if err != nil {
		f.t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

func TestMembersLeave(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	wantReason := func(what string, err error, want string) {
		t.Helper()
		if got := rpcerr.Reason(err); got != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	wantReason("remove a stranger", f.other().RemoveMember(t.Context(), "c9"), "PEER_NOT_FOUND")

	// A follower asks; the leader itself leaves, after it has handed over.
	leader, asked := f.waitLeader(), f.other()
	if err := asked.RemoveMember(t.Context(), leader.name); err != nil {
		t.Fatal(err)
	}
	leader.stop()
	delete(f.nodes, leader.name)
	f.waitVoters(2)
	if _, _, err := asked.Propose(t.Context(), put("after", "1")); err != nil {
		t.Fatalf("Propose without the leader that left: %v", err)
	}
	if ids := f.members(asked); slices.Contains(ids, leader.name) || len(ids) != 2 {
		t.Errorf("members are %v after %s left", ids, leader.name)
	}

	// Two are left: a dead one may go, the one that works may not.
	alive := f.waitLeader()
	f.kill(f.other().name)
	wantReason("remove the one that works", alive.RemoveMember(t.Context(), alive.name), "QUORUM")
}

func TestDeadMemberIsReplaced(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	dead := f.other().name
	f.kill(dead)
	if err := f.other().RemoveMember(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	f.dirs["c4"] = t.TempDir()
	f.start("c4")
	f.join("c4")
	f.waitVoters(3)
}

func TestHandOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	to, before := f.other(), f.waitLeader()
	if err := to.HandOver(t.Context(), to.name); err != nil { // asked of a follower
		t.Fatal(err)
	}
	if l := f.waitLeader(); l != to || l.Term() != before.Term() {
		t.Errorf("%s leads in term %d, want %s in %d", l.name, l.Term(), to.name, before.Term())
	}
	if err := to.HandOver(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if l := f.waitLeader(); l == to {
		t.Errorf("%s still leads", to.name)
	}
	if err := to.HandOver(t.Context(), "c9"); rpcerr.Reason(err) != "PEER_NOT_FOUND" {
		t.Errorf("hand over to a stranger: %v", err)
	}
	dead := f.other().name
	f.kill(dead)
	if err := f.waitLeader().HandOver(t.Context(), dead); rpcerr.Reason(err) != "QUORUM" {
		t.Errorf("hand over to a dead one: %v", err)
	}
}

// TestWritesDuringHandOver measures the longest time between two commits while leadership goes round.
func TestWritesDuringHandOver(t *testing.T) {
	f := newFleet(t, nil, "c1", "c2", "c3")
	f.waitLeader()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var commits []time.Time
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				for _, node := range f.nodes {
					if _, _, err := node.Propose(ctx, put(fmt.Sprintf("w%d", i), fmt.Sprint(n))); err != nil {
						if ctx.Err() == nil {
							t.Errorf("Propose during a hand-over: %v", err)
						}
						return
					}
					mu.Lock()
					commits = append(commits, time.Now())
					mu.Unlock()
				}
			}
		})
	}
	type window struct{ from, to time.Time }
	var windows []window
	for range 10 {
		from := time.Now()
		if err := f.waitLeader().HandOver(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if err := f.waitLeader().Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		windows = append(windows, window{from, time.Now()})
	}
	cancel()
	writers.Wait()
	slices.SortFunc(commits, time.Time.Compare)
	var gaps []time.Duration
	for _, w := range windows {
		longest := time.Duration(0)
		for i := 1; i < len(commits); i++ {
			if commits[i].After(w.from) && commits[i-1].Before(w.to) {
				longest = max(longest, commits[i].Sub(commits[i-1]))
			}
		}
		gaps = append(gaps, longest)
	}
	slices.Sort(gaps)
	t.Logf("no commit for (sorted): %v", gaps)
	// An election takes longer. How long a hand-over takes on a machine at rest is in DESIGN.md; this one may be busy with other tests.
	if limit := 3 * time.Second; gaps[len(gaps)/2] > limit {
		t.Errorf("the median gap is %v, want at most %v", gaps[len(gaps)/2], limit)
	}
}

func TestRestoreReplacesTheStateOfAllMembers(t *testing.T) {
	t.Parallel()
	o := &offices{active: map[string]int{}, begun: map[string]int{}}
	f := newFleet(t, func(opts *cluster.Options) {
		opts.Lead, opts.Profile = o.lead(opts.ID), cluster.WAN() // a leader that is not lost because the machine is busy
	}, "c1", "c2", "c3")
	l := f.waitLeader()
	if _, _, err := l.Propose(t.Context(), put("old", "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.other().Restore(t.Context(), nil); !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("Restore on a follower: %v, want ErrNotLeader", err)
	}
	mine := errors.New("mine")
	if _, err := l.Restore(t.Context(), func(uint64) ([]byte, error) { return nil, mine }); !errors.Is(err, mine) {
		t.Errorf("Restore with an error: %v", err)
	}
	before := l.fsm.Index()
	var told uint64
	index, err := l.Restore(t.Context(), func(index uint64) ([]byte, error) {
		told = index
		return fmt.Appendf(nil, `{"Index":%d,"Rows":{"new":"2"},"Seen":{},"Applied":{}}`, index), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if index != told || index <= before {
		t.Errorf("restored at %d, the state was told %d, and was at %d before", index, told, before)
	}
	for name, n := range f.nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rows, _ := n.fsm.all(); len(rows) != 1 || rows["new"] != "2" {
			t.Errorf("%s holds %v after the restore", name, rows)
		}
	}
	// It goes on: writes, the leader's work, and restarts.
	if _, at, err := f.other().Propose(t.Context(), put("later", "3")); err != nil || at <= index {
		t.Fatalf("Propose after the restore: index %d after %d, err %v", at, index, err)
	}
	eventually(t, func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if n := o.begun[fmt.Sprintf("%s/%d", l.name, l.Term())]; n != 2 {
			return fmt.Errorf("the leader's work began %d times, want anew after the restore", n)
		}
		return nil
	})
	for _, n := range f.nodes {
		n.stop()
	}
	for name := range f.dirs {
		f.start(name)
	}
	for name, n := range f.nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rows, _ := n.fsm.all(); len(rows) != 2 || rows["later"] != "3" {
			t.Errorf("%s holds %v after a restart", name, rows)
		}
	}
}

func TestRemovedMemberSaysSoAndStops(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := newFleet(t, nil, "c1")
	f.dirs["c2"] = dir
	c2 := f.newNode("c2")
	defer c2.stop()
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- c2.Run(ctx) }()
	f.nodes["c2"] = c2
	f.join("c2")
	f.waitVoters(2)
	delete(f.nodes, "c2")

	// From now on the address of c1 answers as one does whose registry has no c2.
	l := listen(t)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, rpcerr.New(codes.Unauthenticated, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, "c2 was evicted")
	}))
	coordinatorv1.RegisterPeerServiceServer(server, cluster.NewPeerServer(f.nodes["c1"].Cluster))
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	f.net.mu.Lock()
	f.net.grpc["c1"] = l.Addr().String()
	f.net.mu.Unlock()
	f.nodes["c1"].stop()
	delete(f.nodes, "c1")
	f.net.isolate("c2")
	f.net.rejoin("c2")

	select {
	case err := <-ended:
		if !errors.Is(err, cluster.ErrRemoved) || !strings.Contains(err.Error(), "another name") {
			t.Fatalf("Run ended with %v, want ErrRemoved and what to do", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the removed member still runs")
	}
	if _, err := os.Stat(filepath.Join(dir, "raft", "removed")); err != nil {
		t.Error(err)
	}
	o := f.options("c2", newTable())
	o.Raft, o.DialRaft, o.DialPeer = net.Listener(nil), noConn, noPeer
	raftListener := listen(t)
	defer raftListener.Close()
	o.Raft = raftListener
	if _, err := cluster.New(o); !errors.Is(err, cluster.ErrRemoved) {
		t.Errorf("New over the directory of a removed member: %v, want ErrRemoved", err)
	}
}

func TestRecoverFromALostQuorum(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	for i := range 20 {
		if _, _, err := f.waitLeader().Propose(t.Context(), put(fmt.Sprintf("n%d", i), "v")); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.nodes["c2"].Snapshot(); err != nil { // so that it has both, snapshot and log
		t.Fatal(err)
	}
	if _, _, err := f.waitLeader().Propose(t.Context(), put("last", "v")); err != nil {
		t.Fatal(err)
	}
	if err := f.nodes["c2"].Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := f.options("c2", newTable())
	if _, err := cluster.Inspect(running); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("Inspect of a member that runs: %v", err)
	}
	if _, _, err := cluster.Recover(running, nil); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("Recover of a member that runs: %v", err)
	}
	for _, n := range f.nodes {
		n.stop()
	}
	f.nodes = map[string]*node{}

	recoverC2(t, f)
	rejoined(t, f)
}

// recoverC2 makes c2 the only member.
func recoverC2(t *testing.T, f *fleet) {
	t.Helper()
	survey, err := cluster.Inspect(f.options("c2", newTable()))
	if err != nil {
		t.Fatal(err)
	}
	if survey.ID != "c2" || survey.ClusterID != clusterID || len(survey.Members) != 3 || survey.LastIndex < 22 || survey.Snapshot == 0 || survey.LastTerm == 0 ||
		survey.Term < survey.LastTerm {
		t.Errorf("c2 holds %+v", survey)
	}
	fsm := newTable()
	done, copied, err := cluster.Recover(f.options("c2", fsm), func() ([]*raftv1.Command, error) {
		return []*raftv1.Command{put("recovered", fsm.get("last"))}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if done.LastIndex != survey.LastIndex {
		t.Errorf("recovered up to %d, inspected %d", done.LastIndex, survey.LastIndex)
	}
	if before, err := os.ReadFile(filepath.Join(copied, "member.json")); err != nil || !bytes.Contains(before, []byte("c2")) {
		t.Errorf("the copy of the directory holds %q: %v", before, err)
	}
}

// rejoined starts the recovered member, and lets two others join it.
func rejoined(t *testing.T, f *fleet) {
	t.Helper()
	c2 := f.start("c2")
	if err := c2.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, _ := c2.fsm.all(); len(rows) != 23 || rows["recovered"] != "v" || rows["last"] != "v" {
		t.Errorf("the recovered member holds %d rows, want first, 20, last and recovered: %v", len(rows), rows)
	}
	for _, name := range []string{"c4", "c5"} {
		f.dirs[name] = t.TempDir()
		f.start(name)
		f.join(name)
	}
	f.waitVoters(3)
	if _, _, err := f.nodes["c5"].Propose(t.Context(), put("more", "v")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if c2.fsm.get("more") != "v" {
			return errors.New("not yet there")
		}
		return nil
	})
}

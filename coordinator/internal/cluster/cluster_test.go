package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func TestWritesThroughAnyMemberAreReadFromEveryMember(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	for writer, w := range f.nodes {
		for i := range 5 {
			value := fmt.Sprintf("%s-%d", writer, i)
			result, index, err := w.Propose(t.Context(), put("name", value))
			if err != nil || index == 0 || result.GetVersion() != index {
				t.Fatalf("Propose on %s: result %v, index %d, err %v", writer, result, index, err)
			}
			for reader, r := range f.nodes {
				if err := r.Read(t.Context()); err != nil {
					t.Fatalf("Read on %s: %v", reader, err)
				}
				if got := r.fsm.get("name"); got != value {
					t.Fatalf("%s wrote %q, %s read %q", writer, value, reader, got)
				}
			}
		}
	}
}

func TestKilledLeaderIsReplacedAndComesBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	old := f.waitLeader().name
	if _, _, err := f.nodes[old].Propose(t.Context(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	f.kill(old)
	for name, n := range f.nodes {
		if _, _, err := n.Propose(t.Context(), put("b-"+name, "2")); err != nil {
			t.Fatalf("Propose on %s after the leader was killed: %v", name, err)
		}
	}
	back := f.start(old)
	if err := back.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, _ := back.fsm.all(); len(rows) != 4 {
		t.Errorf("the member that came back has %v, want first, a and two b", rows)
	}
	if err := back.Stale(); err != nil {
		t.Errorf("Stale after a read: %v", err)
	}
}

func TestGracefulStopHandsOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	old := f.waitLeader()
	term := old.Term()
	old.stop()
	delete(f.nodes, old.name)
	began := time.Now()
	l := f.waitLeader()
	if took := time.Since(began); l.Term() != term+1 {
		t.Errorf("term went from %d to %d in %v, a handover takes one election", term, l.Term(), took)
	}
	if _, _, err := old.Propose(shortContext(t, 50*time.Millisecond), put("x", "y")); !errors.Is(err, cluster.ErrNoLeader) {
		t.Errorf("Propose on the stopped member: %v, want ErrNoLeader", err)
	}
}

func TestRestartFromDisk(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(o *cluster.Options) { o.Compaction.Trailing = 10 }, "c1", "c2", "c3")
	write := func(from, to int) {
		for i := from; i < to; i++ {
			if _, _, err := f.waitLeader().Propose(t.Context(), put(fmt.Sprintf("n%d", i), "v")); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(0, 60)
	for _, n := range f.nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	write(60, 80)
	for _, n := range f.nodes {
		n.stop()
	}
	for _, name := range []string{"c1", "c2", "c3"} {
		f.start(name)
	}
	// A member without a disk gets a snapshot from another, because the log is cut.
	f.dirs["c4"] = t.TempDir()
	f.start("c4")
	f.join("c4")
	f.waitVoters(4)
	for name, n := range f.nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		rows, applied := n.fsm.all()
		if len(rows) != 81 {
			t.Errorf("%s has %d rows, want 81", name, len(rows))
		}
		for row, times := range applied {
			if times != 1 {
				t.Errorf("%s applied %s %d times", name, row, times)
			}
		}
	}
}

func TestDiskIsSealed(t *testing.T) {
	t.Parallel()
	const canary = "canary-5f0c9d3a"
	f := newFleet(t, nil, "c1")
	n := f.nodes["c1"]
	if _, _, err := n.Propose(t.Context(), put(canary, strings.Repeat(canary, 20))); err != nil {
		t.Fatal(err)
	}
	if err := n.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Propose(t.Context(), put("other", canary)); err != nil {
		t.Fatal(err)
	}
	n.stop()
	files := 0
	err := filepath.WalkDir(f.dirs["c1"], func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("canary")) {
			t.Errorf("%s holds the secret in the clear", path)
		}
		return err
	})
	if err != nil || files < 5 {
		t.Fatalf("looked at %d files, err %v: want log, metadata, snapshot, member, lock", files, err)
	}
	if _, err := os.Stat(filepath.Join(f.dirs["c1"], "raft", "snapshots")); err != nil {
		t.Fatal(err)
	}
}

func TestNewRefusesForeignDirectory(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1")
	f.nodes["c1"].stop()
	tests := []struct {
		name string
		edit func(*cluster.Options)
		want error
	}{
		{"other key", func(o *cluster.Options) { o.SealKey = bytes.Repeat([]byte{8}, 32) }, cluster.ErrSealKey},
		{"other cluster", func(o *cluster.Options) { o.ClusterID = "other" }, cluster.ErrWrongCluster},
		{"other member", func(o *cluster.Options) { o.ID = "c9" }, cluster.ErrWrongCluster},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := f.options("c1", newTable())
			o.Raft, o.DialRaft, o.DialPeer = listen(t), noConn, noPeer
			t.Cleanup(func() { o.Raft.Close() })
			tt.edit(&o)
			if _, err := cluster.New(o); !errors.Is(err, tt.want) {
				t.Errorf("New: %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("founded twice", func(t *testing.T) {
		if err := cluster.Bootstrap(t.Context(), f.options("c1", newTable()), put("a", "b")); !errors.Is(err, cluster.ErrExists) {
			t.Errorf("Bootstrap: %v, want ErrExists", err)
		}
	})
	t.Run("member file lost", func(t *testing.T) {
		if err := os.Remove(filepath.Join(f.dirs["c1"], "raft", "member.json")); err != nil {
			t.Fatal(err)
		}
		o := f.options("c1", newTable())
		o.Raft, o.DialRaft, o.DialPeer = listen(t), noConn, noPeer
		t.Cleanup(func() { o.Raft.Close() })
		if _, err := cluster.New(o); !errors.Is(err, cluster.ErrWrongCluster) {
			t.Errorf("New: %v, want ErrWrongCluster", err)
		}
	})
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1")
	f.waitLeader()
	o := f.options("c1", newTable())
	o.Raft, o.DialRaft, o.DialPeer = listen(t), noConn, noPeer
	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second Run on one directory: %v, want a refusal that says it is in use", err)
	}
}

func TestProposeRefusesWhatNoMemberWouldTake(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	f.waitLeader()
	newer := put("a", "b")
	newer.Version = 2
	tests := []struct {
		name string
		cmd  *raftv1.Command
	}{
		{"too large", put("big", strings.Repeat("x", 1<<20))},
		{"no operation", &raftv1.Command{RequestId: "r"}},
		{"newer version", newer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, n := range f.nodes {
				if _, _, err := n.Propose(t.Context(), tt.cmd); !errors.Is(err, cluster.ErrInvalidCommand) {
					t.Errorf("Propose on %s: %v, want ErrInvalidCommand", name, err)
				}
			}
		})
	}
	if _, _, err := f.waitLeader().Propose(t.Context(), put("nearly", strings.Repeat("x", 1<<20-1000))); err != nil {
		t.Errorf("a command just below the limit: %v", err)
	}
}

func TestLostLeadershipLeavesOutcomeUnknown(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	l := f.waitLeader()
	f.net.isolate(l.name)
	cmd := put("a", "b")
	cmd.RequestId = ""
	if _, _, err := l.Propose(t.Context(), cmd); !errors.Is(err, cluster.ErrOutcomeUnknown) {
		t.Errorf("Propose on a leader without followers: %v, want ErrOutcomeUnknown", err)
	}
	if _, _, err := l.Propose(shortContext(t, 200*time.Millisecond), put("c", "d")); !errors.Is(err, cluster.ErrNoLeader) {
		t.Errorf("Propose without a leader: %v, want ErrNoLeader", err)
	}
	if err := l.Read(shortContext(t, 200*time.Millisecond)); !errors.Is(err, cluster.ErrNoLeader) {
		t.Errorf("Read without a leader: %v, want ErrNoLeader", err)
	}
	if err := l.AddMember(t.Context(), "c9", "c9"); !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("AddMember on a follower: %v, want ErrNotLeader", err)
	}
	f.net.rejoin(l.name)
	if err := l.Read(t.Context()); err != nil {
		t.Errorf("Read after the connection came back: %v", err)
	}
}

// A command that was never sent is not in doubt: it goes to the next leader, even if it has no request id.
func TestUnsentCommandIsNotInDoubt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	l := f.waitLeader()
	f.net.isolate(l.name)
	for name, n := range f.nodes {
		if n == l {
			continue
		}
		if _, err := n.Peers(); err != nil { // by now it knows that the connection is broken, and may still take l for the leader
			t.Fatal(err)
		}
		cmd := put(name, "v")
		cmd.RequestId = ""
		if _, _, err := n.Propose(t.Context(), cmd); err != nil {
			t.Errorf("Propose on %s: %v", name, err)
		}
	}
}

// Writers use request ids and readers check that they see every acknowledged write, while leaders are cut off one after the other.
func TestEveryAcknowledgedWriteOnceAndAlwaysSeen(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(o *cluster.Options) {
		if fsm, ok := o.FSM.(*table); ok {
			fsm.slow = time.Millisecond
		}
	}, "c1", "c2", "c3")
	nodes := []*node{f.nodes["c1"], f.nodes["c2"], f.nodes["c3"]}
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	acked := make([]atomic.Int64, 4)
	sum := func() (n int64) {
		for i := range acked {
			n += acked[i].Load()
		}
		return n
	}
	for client := range acked {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("w%d-%d", client, i)
				if _, _, err := nodes[(client+i)%3].Propose(t.Context(), put(name, "v")); err != nil {
					t.Errorf("write %s: %v", name, err)
					return
				}
				acked[client].Add(1)
				reader := nodes[(client+i+1)%3]
				if err := reader.Read(t.Context()); err != nil {
					t.Errorf("read after %s: %v", name, err)
					return
				}
				if reader.fsm.get(name) != "v" {
					t.Errorf("%s was acknowledged, %s does not have it after Read", name, reader.name)
				}
			}
		})
	}
	for range 4 {
		goal := sum() + 50
		eventually(t, func() error {
			if n := sum(); n < goal {
				return fmt.Errorf("%d writes, want %d", n, goal)
			}
			return nil
		})
		l := f.waitLeader()
		f.net.isolate(l.name)
		eventually(t, func() error {
			if n := f.leader(); n == nil || n == l {
				return errors.New("no new leader")
			}
			return nil
		})
		f.net.rejoin(l.name)
	}
	cancel()
	clients.Wait()
	for _, n := range nodes {
		if err := n.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, applied := n.fsm.all()
		for client := range acked {
			for i := range acked[client].Load() {
				if name := fmt.Sprintf("w%d-%d", client, i); applied[name] != 1 {
					t.Errorf("%s applied %s %d times", n.name, name, applied[name])
				}
			}
		}
	}
	t.Logf("%d writes checked on 3 members", sum())
}

func TestProposeFillsIn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1")
	cmd := put("a", "b")
	before := proto.CloneOf(cmd)
	if _, _, err := f.nodes["c1"].Propose(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(cmd, before) {
		t.Errorf("Propose changed the caller's command to %v", cmd)
	}
	result, _, err := f.nodes["c1"].Propose(t.Context(), cmd)
	if err != nil || !result.GetReplayed() {
		t.Errorf("the same command again: %v, %v, want it replayed", result, err)
	}
}

// The time of a command is the leader's: a member whose clock is wrong must not move the clock of the cluster.
func TestTheLeaderStampsCommands(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2")
	for _, n := range f.nodes {
		cmd := put("a", n.name)
		cmd.RequestId, cmd.Now = n.name, timestamppb.New(time.Now().Add(1000*time.Hour))
		_, index, err := n.Propose(t.Context(), cmd)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range f.nodes {
			if err := other.fsm.Wait(t.Context(), index); err != nil {
				t.Fatal(err)
			}
			other.fsm.mu.Lock()
			at := other.fsm.now
			other.fsm.mu.Unlock()
			if off := time.Since(at); off.Abs() > time.Minute {
				t.Errorf("%s applied the command of %s at %s, which is %s off", other.name, n.name, at, off)
			}
		}
	}
}

func shortContext(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

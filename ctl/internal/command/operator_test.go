package command_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/archive"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestRaftRemoveAndTransfer(t *testing.T) {
	d := loggedIn(t, 1)
	n := d.cluster.Nodes[0]
	coordinatortest.On(n, "ListPeers", func(context.Context, *coordinatorv1.ListPeersRequest) (*coordinatorv1.ListPeersResponse, error) {
		return &coordinatorv1.ListPeersResponse{Peers: []*coordinatorv1.Peer{{Id: "c1", Address: n.Address, Reachable: true, Leader: true}, {Id: "c2", Address: "c2:7443"}}}, nil
	})
	coordinatortest.On(n, "RemovePeer", func(_ context.Context, q *coordinatorv1.RemovePeerRequest) (*coordinatorv1.RemovePeerResponse, error) {
		if q.GetId() != "c2" {
			return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_QUORUM, "without %s only 1 of 2 would answer", q.GetId())
		}
		return &coordinatorv1.RemovePeerResponse{Peers: []*coordinatorv1.Peer{{Id: "c1"}, {Id: "c3"}}}, nil
	})
	coordinatortest.On(n, "TransferLeadership", func(_ context.Context, q *coordinatorv1.TransferLeadershipRequest) (*coordinatorv1.TransferLeadershipResponse, error) {
		return &coordinatorv1.TransferLeadershipResponse{Before: "c1", Leader: "c" + strings.TrimPrefix(q.GetId(), "c")}, nil
	})
	for _, c := range []struct {
		line   string
		code   int
		stdout string
		stderr string
	}{
		{"operator raft peers -o name", 0, "coordinator/c1\ncoordinator/c2\n", "musterctl operator raft remove c2"},
		{"operator raft remove c2", 2, "", "--yes"},
		{"operator raft remove c2 --yes --reason gone", 0, "coordinator/c2 is out of the cluster, which has coordinator/c1, coordinator/c3 now\n", ""},
		{"operator raft remove c1 --yes", 8, "", "QUORUM"},
		{"operator raft remove", 2, "", "COORDINATOR is missing"},
		{"operator raft transfer c3", 0, "coordinator/c3 leads; before it was c1\n", ""},
		{"__complete operator raft remove c", 0, "c1\nc2\n:4\n", ""},
	} {
		if r := d.run(c.line); r.code != c.code || r.stdout != c.stdout || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("%s: exit code %d, %q, %q", c.line, r.code, r.stdout, r.stderr)
		}
	}
	removed, ok := n.Calls("RemovePeer")[0].(*coordinatorv1.RemovePeerRequest)
	if !ok || removed.GetReason() != "gone" || removed.GetRequestId() == "" {
		t.Errorf("asked for %v", removed)
	}
}

func sealed(t *testing.T) (file, sum []byte) {
	t.Helper()
	var b bytes.Buffer
	w, err := archive.NewWriter(&b, make([]byte, 32), archive.Header{ClusterID: "cluster-1", ClusterName: "demo", Index: 7, Term: 2, SavedAt: noon(), SavedBy: "c2", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte("state"), 40_000)); err != nil {
		t.Fatal(err)
	}
	if sum, err = w.Close(map[string]uint64{"host": 3, "stack": 1}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), sum
}

// sending sends a file line by line, and a sum.
func sending(file, sum []byte) func(grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error {
	return func(s grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error {
		for part := range bytes.Lines(file) {
			if err := s.Send(&coordinatorv1.SaveSnapshotResponse{Data: part}); err != nil {
				return err
			}
		}
		return s.Send(&coordinatorv1.SaveSnapshotResponse{Sha256: sum})
	}
}

// restorer is a coordinator that restores: it keeps what it is sent.
type restorer struct {
	file    []byte
	cluster string
}

func (r *restorer) take(s grpc.ClientStreamingServer[coordinatorv1.RestoreSnapshotRequest, coordinatorv1.RestoreSnapshotResponse]) error {
	for {
		q, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&coordinatorv1.RestoreSnapshotResponse{SavedIndex: 7, Index: 99, Counts: map[string]uint64{"stack": 1}, WaitingRuns: []string{"r-3"}})
		}
		if err != nil {
			return err
		}
		r.cluster += q.GetClusterName()
		r.file = append(r.file, q.GetData()...)
	}
}

func TestSnapshotSaveInspectRestore(t *testing.T) {
	d := loggedIn(t, 2)
	follower, leader := d.cluster.Nodes[0], d.cluster.Nodes[1]
	file, sum := sealed(t)
	restored := restorer{}
	notLeader := rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "only the leader restores")
	noLeader := rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "no leader")
	follower.OnSnapshots(coordinatortest.Snapshots{
		Save: func(grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error { return noLeader },
		Restore: func(grpc.ClientStreamingServer[coordinatorv1.RestoreSnapshotRequest, coordinatorv1.RestoreSnapshotResponse]) error {
			return notLeader
		},
	})
	leader.OnSnapshots(coordinatortest.Snapshots{
		Save:    sending(file, sum),
		Restore: restored.take,
	})
	r := d.run("operator snapshot save a.snapshot")
	if r.code != 0 || !strings.Contains(r.stdout, "index    7, term 2") || !strings.Contains(r.stdout, "host 3, stack 1") {
		t.Fatalf("save: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if saved, err := os.ReadFile(filepath.Join(d.dir, "a.snapshot")); err != nil || !bytes.Equal(saved, file) {
		t.Errorf("saved %d of %d bytes: %v", len(saved), len(file), err)
	}
	if info, err := os.Stat(filepath.Join(d.dir, "a.snapshot")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has the mode %v: %v", info.Mode(), err)
	}
	if again := d.run("operator snapshot save a.snapshot"); again.code != 2 || !strings.Contains(again.stderr, "is there already") {
		t.Errorf("save over a file: exit code %d: %s", again.code, again.stderr)
	}
	if inspected := d.run("operator snapshot inspect a.snapshot"); inspected.code != 0 || inspected.stdout != r.stdout {
		t.Errorf("inspect: exit code %d: %s%s", inspected.code, inspected.stdout, inspected.stderr)
	}
	d.file("b.snapshot", string(file[:len(file)-1]))
	if bad := d.run("operator snapshot inspect b.snapshot"); bad.code != 2 || !strings.Contains(bad.stderr, "cut short") {
		t.Errorf("inspect of a file that is cut: exit code %d: %s", bad.code, bad.stderr)
	}
	if r := d.run("operator snapshot restore a.snapshot"); r.code != 2 || !strings.Contains(r.stderr, "--cluster NAME") {
		t.Errorf("restore without a name, and nobody to ask: exit code %d: %s", r.code, r.stderr)
	}
	r = d.run("operator snapshot restore a.snapshot --cluster demo --reason why")
	if r.code != 0 || !bytes.Equal(restored.file, file) || restored.cluster != "demo" || !strings.Contains(r.stdout, "is back at index 7: stack 1") || !strings.Contains(r.stdout, "musterctl run show r-3") {
		t.Errorf("restore: exit code %d, %d of %d bytes, cluster %q: %s%s", r.code, len(restored.file), len(file), restored.cluster, r.stdout, r.stderr)
	}

}

func TestSnapshotThatDoesNotArriveWholeIsNoFile(t *testing.T) {
	d := loggedIn(t, 1)
	leader := d.cluster.Nodes[0]
	file, sum := sealed(t)
	for what, broken := range map[string]func(grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error{
		"cut": sending(file[:len(file)-10], sum), "of another sum": sending(file, bytes.Repeat([]byte{1}, 32)),
		"broken off": func(grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error { return io.ErrUnexpectedEOF },
	} {
		leader.OnSnapshots(coordinatortest.Snapshots{Save: broken})
		if r := d.run("operator snapshot save c.snapshot"); r.code == 0 {
			t.Errorf("save of a file that is %s: %s", what, r.stdout)
		}
	}
	if left, err := filepath.Glob(filepath.Join(d.dir, "*c.snapshot*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(d.dir, ".*snapshot*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

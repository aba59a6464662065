package api_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/archive"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func (w *world) save() []byte {
	w.t.Helper()
	stream, err := coordinatorv1.NewClusterServiceClient(w.conn).SaveSnapshot(w.t.Context(), &coordinatorv1.SaveSnapshotRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	var file, sum []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		file = append(file, part.GetData()...)
		if len(part.GetSha256()) > 0 {
			sum = part.GetSha256()
		}
	}
	if len(sum) == 0 || !bytes.HasSuffix(file, sum) {
		w.t.Fatalf("the file of %d bytes does not end with the sum %x that was sent", len(file), sum)
	}
	return file
}

func (w *world) restore(name string, file []byte) (*coordinatorv1.RestoreSnapshotResponse, error) {
	w.t.Helper()
	stream, err := coordinatorv1.NewClusterServiceClient(w.conn).RestoreSnapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	err = stream.Send(&coordinatorv1.RestoreSnapshotRequest{ClusterName: name, Reason: "test"})
	for len(file) > 0 && err == nil {
		n := min(len(file), 1000)
		err = stream.Send(&coordinatorv1.RestoreSnapshotRequest{Data: file[:n]})
		file = file[n:]
	}
	return stream.CloseAndRecv()
}

func (w *world) secret(name, value string) {
	w.t.Helper()
	w.propose(&raftv1.Command{Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: name, Value: []byte(value)}}})
}

func TestSnapshotIsSavedAndRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.secret("kept", "one")
	w.host("h1", nil)
	ended := w.start("")
	w.finish(ended.GetId())
	active := w.start("")
	file := w.save()
	info, err := archive.Inspect(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if info.ClusterName != "test" || info.Index != w.state.Index() || info.SavedBy != "c1" || info.Counts["secret"] != 1 || info.Counts["run"] != 2 || info.Counts["host"] != 1 {
		t.Errorf("inspected as %+v", info)
	}
	if bytes.Contains(file, []byte("kept")) {
		t.Error("the name of a secret is in the file in the clear")
	}

	// What happens afterwards is undone, but for who joined and who was evicted.
	if _, err := w.restore("test", file); status.Code(err) != codes.Aborted || rpcerr.Reason(err) != "CONFLICT" || !strings.Contains(err.Error(), active.GetId()) {
		t.Errorf("restore while %s goes on: %v", active.GetId(), err)
	}
	w.finish(active.GetId())
	w.secret("kept", "two")
	w.secret("later", "one")
	w.host("h2", nil)
	w.propose(&raftv1.Command{Op: &raftv1.Command_Evict{Evict: &raftv1.Evict{Identity: "spiffe://agent.test.muster/h1"}}})
	if _, err := w.restore("prod", file); rpcerr.Reason(err) != "INVALID" {
		t.Errorf("restore into a cluster by another name: %v", err)
	}
	for what, bad := range map[string][]byte{"cut": file[:len(file)-40], "empty": {}, "changed": append([]byte("x"), file[1:]...)} {
		before := w.state.Index()
		if _, err := w.restore("test", bad); status.Code(err) != codes.InvalidArgument || rpcerr.Reason(err) != "SNAPSHOT_INVALID" {
			t.Errorf("restore of a file that is %s: %v", what, err)
		}
		if w.state.Index() != before {
			t.Errorf("a file that is %s changed something", what)
		}
	}
	checkRestored(t, w, file, info.Index, active.GetId())
}

// checkRestored restores a file that was saved at an index while a run was active, and looks at what came back and what stayed.
func checkRestored(t *testing.T, w *world, file []byte, savedAt uint64, active string) {
	t.Helper()
	before := w.state.Index()
	answer, err := w.restore("test", file)
	if err != nil {
		t.Fatal(err)
	}
	view := w.state.View()
	if answer.GetSavedIndex() != savedAt || answer.GetIndex() <= before || view.Index() < answer.GetIndex() || view.Meta().GetEpoch() != w.epoch {
		t.Errorf("restored %d at %d, the state is at %d in epoch %d; it was at %d in epoch %d", answer.GetSavedIndex(), answer.GetIndex(), view.Index(), view.Meta().GetEpoch(),
			before, w.epoch)
	}
	secrets, err := coordinatorv1.NewSecretServiceClient(w.conn).ListSecrets(t.Context(), &coordinatorv1.ListSecretsRequest{})
	if err != nil || len(secrets.GetSecrets()) != 1 || secrets.GetSecrets()[0].GetVersion() != 1 {
		t.Errorf("secrets are %v: %v", secrets, err)
	}
	if view.Host("h2") == nil || view.Identity("spiffe://agent.test.muster/h2") == nil || !view.Identity("spiffe://agent.test.muster/h1").GetEvicted() {
		t.Error("who joined since is gone, or who was evicted is back")
	}
	if run := view.Run(active); len(answer.GetWaitingRuns()) != 1 || answer.GetWaitingRuns()[0] != active || run.GetState() != coordinatorv1.RunState_RUN_STATE_PAUSED {
		t.Errorf("the run that was active is %s; told of as waiting: %v", run.GetState(), answer.GetWaitingRuns())
	}
	// It can be cancelled, and life goes on.
	if _, err := coordinatorv1.NewRunServiceClient(w.conn).CancelRun(t.Context(), &coordinatorv1.CancelRunRequest{RunId: active, RequestId: "c"}); err != nil {
		t.Errorf("cancel the run that waits: %v", err)
	}
	w.secret("after", "one")
}

func TestCoordinatorsThatCannotLeaveOrLead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cluster := coordinatorv1.NewClusterServiceClient(w.conn)
	for _, c := range []struct{ id, want string }{{"c1", "QUORUM"}, {"c9", "PEER_NOT_FOUND"}, {"", "INVALID"}, {"C 1", "INVALID"}} {
		if _, err := cluster.RemovePeer(t.Context(), &coordinatorv1.RemovePeerRequest{Id: c.id}); rpcerr.Reason(err) != c.want {
			t.Errorf("remove %q: %v, want %s", c.id, err, c.want)
		}
	}
	for _, c := range []struct{ id, want string }{{"", "QUORUM"}, {"c9", "PEER_NOT_FOUND"}, {"c1", ""}} {
		if _, err := cluster.TransferLeadership(t.Context(), &coordinatorv1.TransferLeadershipRequest{Id: c.id}); rpcerr.Reason(err) != c.want || err != nil && c.want == "" {
			t.Errorf("transfer to %q: %v, want %q", c.id, err, c.want)
		}
	}
}

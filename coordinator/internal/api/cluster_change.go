package api

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/saved"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// partBytes of a snapshot's file are sent in one message.
const partBytes = 64 << 10

// RemovePeer takes a coordinator out of the raft cluster, and then evicts it, so that it never comes back. In this order: a coordinator that still
// voted while its connections are refused would make a quorum harder to reach for everybody.
func (s *ClusterServer) RemovePeer(ctx context.Context, req *coordinatorv1.RemovePeerRequest) (*coordinatorv1.RemovePeerResponse, error) {
	if err := checkRequest(req.GetRequestId(), req.GetReason(), false); err != nil {
		return nil, err
	}
	if err := identity.ValidName(req.GetId()); err != nil {
		return nil, invalid("id: %s", err)
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	id := identity.ID{Cluster: view.Meta().GetClusterId(), Role: accessv1.Role_ROLE_COORDINATOR, Name: req.GetId()}
	known := view.Identity(id.String())
	err = s.Cluster.RemoveMember(ctx, req.GetId())
	gone := rpcerr.Reason(err) == "PEER_NOT_FOUND"
	switch {
	case gone && known.GetEvicted() && req.GetRequestId() != "" && view.Request(req.GetRequestId()) != nil: // this very request did it
		return s.leftPeers()
	case gone && known != nil && !known.GetEvicted(): // an earlier request did the first half, or it never got that far
	case err != nil:
		return nil, s.mapError(err)
	}
	if known != nil && !known.GetEvicted() {
		_, err = s.propose(ctx, &raftv1.Command{RequestId: req.GetRequestId(), Op: &raftv1.Command_Evict{Evict: &raftv1.Evict{
			Identity: id.String(), Reason: req.GetReason(),
		}}})
		if err != nil {
			return nil, err
		}
	}
	s.log.Warn("coordinator removed", "id", req.GetId(), "actor", actor(ctx), "reason", req.GetReason())
	return s.leftPeers()
}

func (s *ClusterServer) leftPeers() (*coordinatorv1.RemovePeerResponse, error) {
	peers, err := s.peers()
	if err != nil {
		return nil, s.mapError(err)
	}
	return &coordinatorv1.RemovePeerResponse{Peers: peers}, nil
}

// TransferLeadership lets another coordinator lead, and returns when one does.
func (s *ClusterServer) TransferLeadership(ctx context.Context, req *coordinatorv1.TransferLeadershipRequest) (*coordinatorv1.TransferLeadershipResponse, error) {
	if err := s.Cluster.Read(ctx); err != nil {
		return nil, s.mapError(err)
	}
	before, _ := s.Cluster.Leader()
	if req.GetId() != before {
		if err := s.Cluster.HandOver(ctx, req.GetId()); err != nil {
			return nil, s.mapError(err)
		}
		if err := s.Cluster.Read(ctx); err != nil { // the new leader answers
			return nil, s.mapError(err)
		}
	}
	leader, _ := s.Cluster.Leader()
	s.log.Info("leadership transferred", "from", before, "to", leader, "actor", actor(ctx))
	return &coordinatorv1.TransferLeadershipResponse{Leader: leader, Before: before}, nil
}

// SaveSnapshot sends the state as a file.
func (s *ClusterServer) SaveSnapshot(_ *coordinatorv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error {
	return s.save(stream.Context(), stream.Send)
}

func (s *ClusterServer) save(ctx context.Context, send func(*coordinatorv1.SaveSnapshotResponse) error) error {
	view, err := s.read(ctx, false)
	if err != nil {
		return err
	}
	s.log.Info("snapshot is saved", "index", view.Index(), "actor", actor(ctx))
	out := &parts{send: send}
	sum, err := saved.Save(out, s.State, saved.About{By: s.ID, Version: s.Version, Term: s.Cluster.Term(), At: time.Now()})
	if err != nil {
		return s.mapError(err)
	}
	if err := out.flush(); err != nil {
		return s.mapError(err)
	}
	return send(&coordinatorv1.SaveSnapshotResponse{Sha256: sum})
}

// parts sends what is written in messages of one size.
type parts struct {
	send func(*coordinatorv1.SaveSnapshotResponse) error
	buf  []byte
}

// Write gathers and sends.
func (p *parts) Write(b []byte) (int, error) {
	p.buf = append(p.buf, b...)
	for len(p.buf) >= partBytes {
		if err := p.send(&coordinatorv1.SaveSnapshotResponse{Data: p.buf[:partBytes]}); err != nil {
			return 0, err
		}
		p.buf = append([]byte(nil), p.buf[partBytes:]...)
	}
	return len(b), nil
}

func (p *parts) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	return p.send(&coordinatorv1.SaveSnapshotResponse{Data: p.buf})
}

// RestoreSnapshot replaces the state by that of a file.
func (s *ClusterServer) RestoreSnapshot(stream grpc.ClientStreamingServer[coordinatorv1.RestoreSnapshotRequest, coordinatorv1.RestoreSnapshotResponse]) error {
	response, err := s.restore(stream.Context(), stream.Recv)
	if err != nil {
		return err
	}
	return stream.SendAndClose(response)
}

func (s *ClusterServer) restore(ctx context.Context, receive func() (*coordinatorv1.RestoreSnapshotRequest, error)) (*coordinatorv1.RestoreSnapshotResponse, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if name := view.Meta().GetClusterName(); first.GetClusterName() != name {
		return nil, invalid("cluster_name is %q, this cluster is %q: name the cluster that is to lose its present state", first.GetClusterName(), name)
	}
	if err := checkRequest("", first.GetReason(), false); err != nil {
		return nil, err
	}
	if leader, _ := s.Cluster.Leader(); leader != s.ID {
		return nil, notLeader(leader)
	}
	snapshot, err := saved.Open(&received{next: receive, data: first.GetData()}, s.State)
	if err != nil {
		return nil, s.restoreError(err)
	}
	var restored *saved.Restored
	index, err := s.Cluster.Restore(ctx, func(index uint64) (_ []byte, err error) {
		if restored, err = snapshot.Merge(s.State, index, time.Now()); err != nil {
			return nil, err
		}
		return restored.Data, nil
	})
	if err != nil {
		return nil, s.restoreError(err)
	}
	s.log.Warn("snapshot restored", "saved_index", snapshot.Info.Index, "index", index, "actor", actor(ctx), "reason", first.GetReason())
	return &coordinatorv1.RestoreSnapshotResponse{SavedIndex: snapshot.Info.Index, Index: index, Counts: restored.Counts, WaitingRuns: restored.Waiting}, nil
}

func notLeader(leader string) error {
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "only the leader restores, and that is %q now: ask it", leader)
}

func (s *ClusterServer) restoreError(err error) error {
	switch {
	case errors.Is(err, saved.ErrInvalid):
		return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_SNAPSHOT_INVALID, "the snapshot cannot be restored, and nothing was changed: %s", err)
	case errors.Is(err, saved.ErrActiveRuns):
		return rpcerr.New(codes.Aborted, coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "nothing is restored while runs go on: %s", err)
	case errors.Is(err, cluster.ErrNotLeader):
		leader, _ := s.Cluster.Leader()
		return notLeader(leader)
	}
	return s.mapError(err)
}

// received reads a file from the messages of a stream.
type received struct {
	next func() (*coordinatorv1.RestoreSnapshotRequest, error)
	data []byte
}

// Read returns what the next messages hold.
func (r *received) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		message, err := r.next()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		r.data = message.GetData()
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// SaveSnapshot serves the stream over connect.
func (s clusterJSON) SaveSnapshot(ctx context.Context, _ *coordinatorv1.SaveSnapshotRequest, stream *connect.ServerStream[coordinatorv1.SaveSnapshotResponse]) error {
	return s.save(ctx, stream.Send)
}

// RestoreSnapshot serves the stream over connect.
func (s clusterJSON) RestoreSnapshot(ctx context.Context, stream *connect.ClientStream[coordinatorv1.RestoreSnapshotRequest]) (*coordinatorv1.RestoreSnapshotResponse, error) {
	return s.restore(ctx, func() (*coordinatorv1.RestoreSnapshotRequest, error) {
		if stream.Receive() {
			return stream.Msg(), nil
		}
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	})
}

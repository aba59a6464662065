package cluster

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	"github.com/spheroseg/muster/internal/version"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// peerServer answers other members. It never forwards: a question that reaches the wrong member goes back to who asked.
type peerServer struct {
	coordinatorv1.UnimplementedPeerServiceServer

	cluster *Cluster
}

// NewPeerServer returns the service that members of the cluster call on each other.
func NewPeerServer(c *Cluster) coordinatorv1.PeerServiceServer {
	return &peerServer{cluster: c}
}

// Propose commits a command if this member leads.
func (s *peerServer) Propose(ctx context.Context, req *coordinatorv1.ProposeRequest) (*coordinatorv1.ProposeResponse, error) {
	var cmd raftv1.Command
	if err := proto.Unmarshal(req.GetCommand(), &cmd); err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "command does not decode: %v", err)
	}
	result, index, err := s.cluster.commit(ctx, &cmd)
	if err != nil {
		return nil, wireError(err)
	}
	data, err := proto.Marshal(result)
	if err != nil {
		return nil, wireError(errors.Join(ErrOutcomeUnknown, err))
	}
	return &coordinatorv1.ProposeResponse{Index: index, Result: data}, nil
}

// ReadIndex proves that this member leads and returns the index of its FSM.
func (s *peerServer) ReadIndex(ctx context.Context, _ *coordinatorv1.ReadIndexRequest) (*coordinatorv1.ReadIndexResponse, error) {
	index, err := s.cluster.readIndex(ctx)
	if err != nil {
		return nil, wireError(err)
	}
	return &coordinatorv1.ReadIndexResponse{Index: index}, nil
}

// RemoveMember takes a member out if this member leads.
func (s *peerServer) RemoveMember(_ context.Context, req *coordinatorv1.RemoveMemberRequest) (*coordinatorv1.RemoveMemberResponse, error) {
	err := s.cluster.here(func(r *raft.Raft) error { return s.cluster.removeHere(r, req.GetId()) })
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.RemoveMemberResponse{}, nil
}

// HandOver lets another member lead if this one does.
func (s *peerServer) HandOver(_ context.Context, req *coordinatorv1.HandOverRequest) (*coordinatorv1.HandOverResponse, error) {
	err := s.cluster.here(func(r *raft.Raft) error { return s.cluster.handOverHere(r, req.GetId()) })
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.HandOverResponse{}, nil
}

// here does something that only the leader can, and makes its error one for the wire.
func (c *Cluster) here(do func(*raft.Raft) error) error {
	r, leave, ok := c.enter()
	if !ok {
		return wireError(ErrNotLeader)
	}
	defer leave()
	if r.State() != raft.Leader {
		return wireError(ErrNotLeader)
	}
	err := do(r)
	if err == nil || definite(err) {
		return err
	}
	return wireError(err)
}

// PeerStatus tells how this member stands. It answers without a leader, too.
func (s *peerServer) PeerStatus(context.Context, *coordinatorv1.PeerStatusRequest) (*coordinatorv1.PeerStatusResponse, error) {
	r, leave, ok := s.cluster.enter()
	if !ok {
		return nil, wireError(ErrNotLeader)
	}
	defer leave()
	return s.cluster.status(r), nil
}

func (c *Cluster) status(r *raft.Raft) *coordinatorv1.PeerStatusResponse {
	resp := &coordinatorv1.PeerStatusResponse{
		Id:           c.opts.ID,
		Version:      version.Version,
		CommitIndex:  r.CommitIndex(),
		AppliedIndex: c.opts.FSM.Index(),
		Term:         r.CurrentTerm(),
		Leader:       r.State() == raft.Leader,
	}
	if d := lastContact(r); d >= 0 {
		resp.LastContact = durationpb.New(d)
	}
	return resp
}

func wireError(err error) error {
	switch {
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrNoLeader):
		return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "%v", err)
	case errors.Is(err, ErrInvalidCommand):
		return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "%v", err)
	default:
		return rpcerr.New(codes.Unknown, coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN, "%v", err)
	}
}

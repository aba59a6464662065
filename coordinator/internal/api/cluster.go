package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ClusterServer serves ClusterService.
type ClusterServer struct {
	coordinatorv1.UnimplementedClusterServiceServer
	*backend
}

// GetStatus returns the state of the cluster and of the fleet in figures. It answers from what this coordinator has, so that it answers
// without a leader, too.
func (s *ClusterServer) GetStatus(context.Context, *coordinatorv1.GetStatusRequest) (*coordinatorv1.GetStatusResponse, error) {
	view := s.State.View()
	leader, _ := s.Cluster.Leader()
	peers, err := s.peers()
	if err != nil {
		return nil, s.mapError(err)
	}
	response := &coordinatorv1.GetStatusResponse{
		ClusterId: view.Meta().GetClusterId(), ClusterName: view.Meta().GetClusterName(), AnsweredBy: s.ID, Leader: leader,
		LeaderContact: durationpb.New(s.Cluster.LastContact()), Peers: peers, Hosts: map[string]uint32{}, Stacks: uint32(len(view.Stacks())),
		Version: s.Version, EngineEpoch: view.Meta().GetEpoch(), AgentVersions: map[string]uint32{},
	}
	for _, host := range view.Hosts() {
		response.Hosts[strings.ToLower(strings.TrimPrefix(host.GetState().String(), "HOST_STATE_"))]++
		if version := host.GetInventory().GetAgentVersion(); version != "" {
			response.AgentVersions[version]++
		}
	}
	for _, run := range view.ActiveRuns() {
		response.ActiveRuns++
		switch run.GetState() {
		case coordinatorv1.RunState_RUN_STATE_PAUSED, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
			response.BlockedRuns++
		}
	}
	return response, nil
}

// ListPeers returns the members of the raft cluster.
func (s *ClusterServer) ListPeers(ctx context.Context, _ *coordinatorv1.ListPeersRequest) (*coordinatorv1.ListPeersResponse, error) {
	unconfirmed := s.Cluster.Read(ctx) != nil
	peers, err := s.peers()
	if err != nil {
		return nil, s.mapError(err)
	}
	return &coordinatorv1.ListPeersResponse{Peers: peers, Stale: unconfirmed}, nil
}

func (s *ClusterServer) peers() ([]*coordinatorv1.Peer, error) {
	members, err := s.Cluster.Peers()
	if err != nil {
		return nil, err
	}
	peers := make([]*coordinatorv1.Peer, 0, len(members))
	for _, m := range members {
		peers = append(peers, &coordinatorv1.Peer{
			Id: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.Leader, CommitIndex: m.CommitIndex, TrailsLeaderBy: m.Trails,
			Version: m.Version, Reachable: m.Reachable, LastContact: durationpb.New(m.LastContact), Term: m.Term,
		})
	}
	return peers, nil
}

// CreateCoordinatorToken makes a token with which one further coordinator joins.
func (s *ClusterServer) CreateCoordinatorToken(ctx context.Context, req *coordinatorv1.CreateCoordinatorTokenRequest) (*coordinatorv1.CreateCoordinatorTokenResponse, error) {
	token, expires, err := s.tokenFor(ctx, accessv1.Role_ROLE_COORDINATOR, req.GetName(), nil, req.GetTtl(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.CreateCoordinatorTokenResponse{Token: token, ExpiresAt: expires}, nil
}

// CreateUserToken makes a token with which one person or program gets a client certificate.
func (s *ClusterServer) CreateUserToken(ctx context.Context, req *coordinatorv1.CreateUserTokenRequest) (*coordinatorv1.CreateUserTokenResponse, error) {
	switch req.GetRole() {
	case accessv1.Role_ROLE_VIEWER, accessv1.Role_ROLE_OPERATOR, accessv1.Role_ROLE_ADMIN, accessv1.Role_ROLE_SERVICE:
	default:
		return nil, invalid("role %s is no user's: give viewer, operator, admin or service", req.GetRole())
	}
	if req.GetName() == "" {
		return nil, invalid("name is empty: say whom the token is for")
	}
	token, expires, err := s.tokenFor(ctx, req.GetRole(), req.GetName(), nil, req.GetTtl(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.CreateUserTokenResponse{Token: token, ExpiresAt: expires}, nil
}

// WatchEvents sends every change of the replicated state from an index on.
func (s *ClusterServer) WatchEvents(req *coordinatorv1.WatchEventsRequest, stream grpc.ServerStreamingServer[coordinatorv1.WatchEventsResponse]) error {
	return s.watch(stream.Context(), req, stream.Send)
}

func (s *ClusterServer) watch(ctx context.Context, req *coordinatorv1.WatchEventsRequest, send func(*coordinatorv1.WatchEventsResponse) error) error {
	if err := s.Cluster.Read(ctx); err != nil {
		return s.mapError(err)
	}
	after := req.GetFromIndex()
	if after == 0 {
		after = s.State.Index()
	}
	if err := s.State.Wait(ctx, after); err != nil {
		return s.mapError(err)
	}
	for {
		events, upTo, complete, err := s.State.Events(ctx, after)
		if err != nil {
			return s.mapError(err)
		}
		if !complete {
			return rpcerr.New(codes.OutOfRange, coordinatorv1.ErrorReason_ERROR_REASON_COMPACTED,
				"the events after index %d are no longer kept: list, and resume at the index of the list", after)
		}
		if err := sendEvents(events, upTo, req.GetKinds(), send); err != nil {
			return err
		}
		after = upTo
	}
}

func sendEvents(events []state.Event, upTo uint64, kinds []string, send func(*coordinatorv1.WatchEventsResponse) error) error {
	for _, event := range events {
		if len(kinds) > 0 && !slices.Contains(kinds, event.Kind) {
			continue
		}
		if err := send(&coordinatorv1.WatchEventsResponse{Index: event.Index, Kind: event.Kind, Key: event.Key, Deleted: event.Deleted}); err != nil {
			return err
		}
	}
	return send(&coordinatorv1.WatchEventsResponse{Index: upTo})
}

package api

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// beatInterval is what the contract says: coordinators call a host silent that sends nothing for several of these.
const beatInterval = 5 * time.Second

// Host knows what the host is like.
type Host interface {
	// Inventory returns what is known, nil before the first look, and a channel that is closed when it has changed. It must not be changed.
	Inventory() (*agentv1.Inventory, <-chan struct{})
}

// Coordinators learns where the coordinators are.
type Coordinators interface {
	// Learn takes the addresses that one coordinator knows, which is some. The coordinator stands by them until forget is called.
	Learn(addresses []string) (forget func())
}

// hostServer serves HostService.
type hostServer struct {
	agentv1.UnimplementedHostServiceServer
	base
	host         Host
	coordinators Coordinators
}

// WatchHost takes the addresses of the coordinators, sends the inventory at once and when it changes, and beats.
func (s *hostServer) WatchHost(req *agentv1.WatchHostRequest, stream grpc.ServerStreamingServer[agentv1.WatchHostResponse]) error {
	if addresses := req.GetCoordinators(); len(addresses) > 0 {
		forget := s.coordinators.Learn(addresses)
		defer forget()
	}
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	inventory, changed := s.host.Inventory()
	for {
		if err := stream.Send(&agentv1.WatchHostResponse{Inventory: inventory, SentAt: timestamppb.Now()}); err != nil {
			return err
		}
		inventory = nil
		select {
		case <-changed:
			inventory, changed = s.host.Inventory()
		case <-beat.C:
		case <-stream.Context().Done():
			return s.wire(stream.Context().Err())
		}
	}
}

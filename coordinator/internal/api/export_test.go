package api

import (
	"context"

	"google.golang.org/grpc"
)

// Reach lets the servers' planner reach hosts in another way.
func (s *Servers) Reach(conn func(ctx context.Context, host string) (grpc.ClientConnInterface, error)) {
	s.Host.planner.Conn = conn
}

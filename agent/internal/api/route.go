package api

import (
	"context"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Routes is the proxy that the host drives.
type Routes interface {
	// List returns the routes in order of their names.
	List(ctx context.Context) ([]*agentv1.RouteState, error)
	// Update changes the upstreams of a route and returns when the proxy serves by them.
	Update(ctx context.Context, route *agentv1.Route, add, remove []string) (upstreams []string, err error)
	// SetMaintenance shows a page instead of what routes lead to, or ends that, and returns the routes that show one.
	SetMaintenance(ctx context.Context, req *agentv1.SetMaintenanceRequest) (routes []string, err error)
}

// routeServer serves RouteService.
type routeServer struct {
	agentv1.UnimplementedRouteServiceServer
	base
	routes Routes // nil if the host drives no proxy.
}

// ListRoutes returns the routes of the proxy; none if the host drives none.
func (s *routeServer) ListRoutes(ctx context.Context, _ *agentv1.ListRoutesRequest) (*agentv1.ListRoutesResponse, error) {
	if s.routes == nil {
		return &agentv1.ListRoutesResponse{}, nil
	}
	found, err := s.routes.List(ctx)
	if err != nil {
		return nil, s.wireRead(err)
	}
	return &agentv1.ListRoutesResponse{Routes: found}, nil
}

// UpdateRoute changes the upstreams of a route.
func (s *routeServer) UpdateRoute(ctx context.Context, req *agentv1.UpdateRouteRequest) (*agentv1.UpdateRouteResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.UpdateRouteResponse, error) {
		if s.routes == nil {
			return nil, noProxy()
		}
		upstreams, err := s.routes.Update(ctx, req.GetRoute(), req.GetAdd(), req.GetRemove())
		return &agentv1.UpdateRouteResponse{Upstreams: upstreams}, err
	})
}

// SetMaintenance shows a page instead of what routes lead to, or ends that.
func (s *routeServer) SetMaintenance(ctx context.Context, req *agentv1.SetMaintenanceRequest) (*agentv1.SetMaintenanceResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.SetMaintenanceResponse, error) {
		if s.routes == nil {
			return nil, noProxy()
		}
		routes, err := s.routes.SetMaintenance(ctx, req)
		return &agentv1.SetMaintenanceResponse{Routes: routes}, err
	})
}

func noProxy() error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ROUTE, true, "this host drives no proxy: start its agent with --route-driver")
}

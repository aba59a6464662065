package api

import (
	"context"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Prober asks something else, from this host, how it is.
type Prober interface {
	// HTTP asks a URL.
	HTTP(ctx context.Context, req *agentv1.ProbeHttpRequest) (*agentv1.ProbeHttpResponse, error)
	// TCP opens a connection.
	TCP(ctx context.Context, req *agentv1.ProbeTcpRequest) (*agentv1.ProbeTcpResponse, error)
}

// probeServer serves ProbeService.
type probeServer struct {
	agentv1.UnimplementedProbeServiceServer
	base
	prober Prober
}

// ProbeHttp asks a URL.
func (s *probeServer) ProbeHttp(ctx context.Context, req *agentv1.ProbeHttpRequest) (*agentv1.ProbeHttpResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.ProbeHttpResponse, error) {
		return s.prober.HTTP(ctx, req)
	})
}

// ProbeTcp opens a connection.
func (s *probeServer) ProbeTcp(ctx context.Context, req *agentv1.ProbeTcpRequest) (*agentv1.ProbeTcpResponse, error) {
	return perform(ctx, s.base, req, func(ctx context.Context) (*agentv1.ProbeTcpResponse, error) {
		return s.prober.TCP(ctx, req)
	})
}

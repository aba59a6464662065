package grpcserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	agent       = accessv1.Role_ROLE_AGENT
	coordinator = accessv1.Role_ROLE_COORDINATOR
	admin       = accessv1.Role_ROLE_ADMIN
	viewer      = accessv1.Role_ROLE_VIEWER
)

// services answer with who the gate says is calling, or as their function says.
type services struct {
	coordinatorv1.UnimplementedEnrollServiceServer
	coordinatorv1.UnimplementedPeerServiceServer
	coordinatorv1.UnimplementedRunServiceServer

	joins   atomic.Int32
	propose func(context.Context) error
	watch   func(grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error
}

func (s *services) Join(ctx context.Context, _ *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	s.joins.Add(1)
	return &coordinatorv1.JoinResponse{Identity: callerName(ctx)}, nil
}

func (s *services) Propose(ctx context.Context, _ *coordinatorv1.ProposeRequest) (*coordinatorv1.ProposeResponse, error) {
	if s.propose != nil {
		if err := s.propose(ctx); err != nil {
			return nil, err
		}
	}
	return &coordinatorv1.ProposeResponse{Result: []byte(callerName(ctx))}, nil
}

func (s *services) WatchRun(_ *coordinatorv1.WatchRunRequest, out grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error {
	return s.watch(out)
}

func callerName(ctx context.Context) string {
	c, ok := grpcserver.CallerFrom(ctx)
	if !ok {
		return "nobody"
	}
	return c.String()
}

// fleet is a coordinator that serves.
type fleet struct {
	identitytest.Cluster
	*services
	gate *grpcserver.Gate
	addr string
	log  *logBuffer
}

func newFleet(t *testing.T, lookup func(grpcserver.Caller) error) *fleet {
	t.Helper()
	f := &fleet{Cluster: identitytest.New(t, "prod"), services: &services{}, log: &logBuffer{}}
	f.gate = grpcserver.NewGate(grpcserver.GateOptions{Lookup: lookup, Logger: slog.New(slog.NewTextHandler(f.log, nil))})
	f.addr = f.serve(t, credentials.NewTLS(mtls.Server(f.Credentials(t, coordinator, "c1"), mtls.ALPNgRPC)))
	return f
}

// serve starts a server and returns its address.
func (f *fleet) serve(t *testing.T, creds credentials.TransportCredentials) string {
	t.Helper()
	s := grpcserver.New(f.gate, grpc.Creds(creds))
	coordinatorv1.RegisterEnrollServiceServer(s, f.services)
	coordinatorv1.RegisterPeerServiceServer(s, f.services)
	coordinatorv1.RegisterRunServiceServer(s, f.services)
	healthpb.RegisterHealthServer(s, health.NewServer())
	if err := f.gate.Check(s); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began, by a quick test.
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

// as returns a connection of an identity; nil has no certificate.
func (f *fleet) as(t *testing.T, c *identity.Credentials) *grpc.ClientConn {
	t.Helper()
	root := identity.Pin(f.Credentials(t, agent, "x").Roots()[0])
	cfg := mtls.Pinned(root, mtls.ALPNgRPC)
	if c != nil {
		cfg = mtls.Client(c, coordinator, mtls.ALPNgRPC)
	}
	return dial(t, f.addr, cfg)
}

func dial(t *testing.T, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return cc
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// wantError checks code and reason of an error; codes.OK wants none.
func wantError(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || rpcerr.Reason(err) != reason {
		t.Errorf("%v with reason %q, want %v with %q", err, rpcerr.Reason(err), code, reason)
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// hostService is what an agent serves in the tests.
type hostService struct {
	agentv1.UnimplementedHostServiceServer
	callers chan string
}

func (h *hostService) WatchHost(_ *agentv1.WatchHostRequest, out grpc.ServerStreamingServer[agentv1.WatchHostResponse]) error {
	h.callers <- callerName(out.Context())
	if err := out.Send(&agentv1.WatchHostResponse{}); err != nil {
		return err
	}
	<-out.Context().Done()
	return out.Context().Err()
}

// oneListener hands out one connection, and then waits until it is closed.
type oneListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func listenOn(c net.Conn) *oneListener {
	l := &oneListener{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: c.LocalAddr()}
	l.conns <- c
	return l
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneListener) Addr() net.Addr { return l.addr }

// dialOnce returns a dialler that has one connection.
func dialOnce(c net.Conn) func(context.Context, string) (net.Conn, error) {
	var used atomic.Bool
	return func(context.Context, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("the agent's connection is gone")
		}
		return c, nil
	}
}

func evict(names ...string) func(grpcserver.Caller) error {
	return func(c grpcserver.Caller) error {
		for _, n := range names {
			if c.ID.Name == n {
				return fmt.Errorf("%s was evicted", n)
			}
		}
		if len(c.Serial) != 16 {
			return fmt.Errorf("serial %x is not that of a certificate", c.Serial)
		}
		return nil
	}
}

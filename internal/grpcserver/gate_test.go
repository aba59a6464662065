package grpcserver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
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

func TestWhoMayCall(t *testing.T) {
	f := newFleet(t, evict("h9"))
	ctx := testContext(t)
	join := func(cc *grpc.ClientConn) (string, error) {
		resp, err := coordinatorv1.NewEnrollServiceClient(cc).Join(ctx, &coordinatorv1.JoinRequest{})
		return resp.GetIdentity(), err
	}
	propose := func(cc *grpc.ClientConn) (string, error) {
		resp, err := coordinatorv1.NewPeerServiceClient(cc).Propose(ctx, &coordinatorv1.ProposeRequest{})
		return string(resp.GetResult()), err
	}
	healthy := func(cc *grpc.ClientConn) (string, error) {
		_, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
		return "", err
	}
	c2, h7, h9, ann := f.Credentials(t, coordinator, "c2"), f.Credentials(t, agent, "h7"), f.Credentials(t, agent, "h9"), f.Credentials(t, admin, "ann")
	for _, tc := range []struct {
		name   string
		as     *identity.Credentials
		call   func(*grpc.ClientConn) (string, error)
		caller string
		code   codes.Code
		reason string
	}{
		{name: "coordinator proposes", as: c2, call: propose, caller: "spiffe://coordinator.prod.muster/c2"},
		{name: "agent proposes", as: h7, call: propose, code: codes.PermissionDenied, reason: "NOT_ALLOWED"},
		{name: "admin proposes", as: ann, call: propose, code: codes.PermissionDenied, reason: "NOT_ALLOWED"}, // roles are no ranks.
		{name: "nobody proposes", call: propose, code: codes.Unauthenticated, reason: "UNKNOWN_IDENTITY"},
		{name: "nobody joins", call: join, caller: "anonymous"},
		{name: "evicted agent joins again", as: h9, call: join, caller: "spiffe://agent.prod.muster/h9"},
		{name: "agent asks for health", as: h7, call: healthy},
		{name: "evicted agent asks for health", as: h9, call: healthy, code: codes.PermissionDenied, reason: "UNKNOWN_IDENTITY"},
		{name: "nobody asks for health", call: healthy, code: codes.Unauthenticated, reason: "UNKNOWN_IDENTITY"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.call(f.as(t, tc.as))
			wantError(t, err, tc.code, tc.reason)
			if got != tc.caller {
				t.Errorf("the service saw %q, want %q", got, tc.caller)
			}
		})
	}
	for _, want := range []string{"code=PermissionDenied", "caller=spiffe://agent.prod.muster/h7", "reason=NOT_ALLOWED"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log has no %q", want)
		}
	}
}

func TestRefusedConnections(t *testing.T) {
	f := newFleet(t, nil)
	foreign, mine := identitytest.New(t, "prod"), f.Credentials(t, agent, "h7")
	pin := func(c *identity.Credentials) [32]byte { return identity.Pin(c.Roots()[0]) }
	for name, call := range map[string]func() error{
		"a joiner with the pin of another cluster sends no token": func() error {
			return tryJoin(t, dial(t, f.addr, mtls.Pinned(pin(foreign.Credentials(t, agent, "h7")), mtls.ALPNgRPC)))
		},
		"a client with a foreign certificate": func() error {
			cfg := mtls.Pinned(pin(mine), mtls.ALPNgRPC)
			cfg.Certificates = append(cfg.Certificates, *foreign.Credentials(t, agent, "h7").Certificate())
			return tryJoin(t, dial(t, f.addr, cfg))
		},
		"a client that wants an agent": func() error { return tryJoin(t, dial(t, f.addr, mtls.Client(mine, agent, mtls.ALPNgRPC))) },
		"a server without TLS": func() error {
			addr := f.serve(t, insecure.NewCredentials())
			cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			defer cc.Close()
			return tryJoin(t, cc)
		},
		"a server that was handed a raw connection": func() error {
			addr := f.serve(t, grpcserver.Handshaked())
			return tryJoin(t, dial(t, addr, mtls.Pinned(pin(mine), mtls.ALPNgRPC)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := call()
			if c := status.Code(err); c != codes.Unavailable && c != codes.Unauthenticated {
				t.Errorf("Join: %v", err)
			}
			if n := f.joins.Load(); n != 0 {
				t.Fatalf("%d requests with a token arrived", n)
			}
		})
	}
}

func tryJoin(t *testing.T, cc *grpc.ClientConn) error {
	t.Helper()
	_, err := coordinatorv1.NewEnrollServiceClient(cc).Join(testContext(t), &coordinatorv1.JoinRequest{TokenSecret: []byte("secret")})
	return err
}

func TestCheck(t *testing.T) {
	gate := grpcserver.NewGate(grpcserver.GateOptions{})
	s := grpcserver.New(gate)
	agentv1.RegisterHostServiceServer(s, agentv1.UnimplementedHostServiceServer{})
	agentv1.RegisterContainerServiceServer(s, agentv1.UnimplementedContainerServiceServer{})
	agentv1.RegisterOperationServiceServer(s, agentv1.UnimplementedOperationServiceServer{})
	agentv1.RegisterRouteServiceServer(s, agentv1.UnimplementedRouteServiceServer{})
	coordinatorv1.RegisterClusterServiceServer(s, coordinatorv1.UnimplementedClusterServiceServer{})
	coordinatorv1.RegisterEnrollServiceServer(s, coordinatorv1.UnimplementedEnrollServiceServer{})
	coordinatorv1.RegisterHostServiceServer(s, coordinatorv1.UnimplementedHostServiceServer{})
	coordinatorv1.RegisterPeerServiceServer(s, coordinatorv1.UnimplementedPeerServiceServer{})
	coordinatorv1.RegisterRunServiceServer(s, coordinatorv1.UnimplementedRunServiceServer{})
	coordinatorv1.RegisterSecretServiceServer(s, coordinatorv1.UnimplementedSecretServiceServer{})
	coordinatorv1.RegisterStackServiceServer(s, coordinatorv1.UnimplementedStackServiceServer{})
	if err := gate.Check(s); err != nil {
		t.Errorf("our own services: %v", err)
	}
	testgrpc.RegisterTestServiceServer(s, testgrpc.UnimplementedTestServiceServer{})
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "ghost.v1.Service", Methods: []grpc.MethodDesc{{MethodName: "Do"}}}, nil)
	err := gate.Check(s)
	for _, want := range []string{"/grpc.testing.TestService/UnaryCall: it declares no", "/grpc.testing.TestService/FullDuplexCall: ", "/ghost.v1.Service/Do: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check = %v, want %q named", err, want)
		}
	}
}

func TestAuthorizeWithoutGRPC(t *testing.T) {
	ctx := t.Context()
	gate := grpcserver.NewGate(grpcserver.GateOptions{Lookup: func(c grpcserver.Caller) error {
		if c.ID.Name == "late" {
			return rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_STALE, "the registry is behind")
		}
		return nil
	}})
	who := func(r accessv1.Role, name string) grpcserver.Caller {
		return grpcserver.Caller{ID: identity.ID{Cluster: "prod", Role: r, Name: name}}
	}
	const propose, hosts = "/muster.coordinator.v1.PeerService/Propose", "/muster.coordinator.v1.HostService/ListHosts"
	for _, tc := range []struct {
		name   string
		method string
		caller grpcserver.Caller
		bytes  int
		code   codes.Code
		reason string
	}{
		{"allowed", hosts, who(viewer, "v"), 256 << 10, codes.OK, ""},
		{"the default bound", hosts, who(viewer, "v"), 256<<10 + 1, codes.ResourceExhausted, "TOO_LARGE"},
		{"a bound of its own", propose, who(coordinator, "c1"), 2 << 20, codes.OK, ""},
		{"above it", propose, who(coordinator, "c1"), 2<<20 + 1, codes.ResourceExhausted, "TOO_LARGE"},
		{"not its role", hosts, who(agent, "h7"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"no role", hosts, grpcserver.Caller{}, 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"the registry's own answer", hosts, who(viewer, "late"), 0, codes.Unavailable, "STALE"},
		{"no such method", "/muster.coordinator.v1.HostService/Nothing", who(admin, "a"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"a message's name", "/muster.coordinator.v1/ListHostsRequest", who(admin, "a"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"no rule", "/grpc.testing.TestService/UnaryCall", who(admin, "a"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"no slash first", strings.TrimPrefix(hosts, "/"), who(viewer, "v"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"no method", "/muster.coordinator.v1.HostService", who(viewer, "v"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
		{"empty", "", who(viewer, "v"), 0, codes.PermissionDenied, "NOT_ALLOWED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantError(t, gate.Authorize(ctx, tc.method, tc.caller, tc.bytes), tc.code, tc.reason)
		})
	}
}

func TestJoinRate(t *testing.T) {
	const join = "/muster.coordinator.v1.EnrollService/Join"
	gate := grpcserver.NewGate(grpcserver.GateOptions{})
	from := func(ip string, port int) context.Context {
		return peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: port}})
	}
	for i := range 60 {
		if err := gate.Authorize(from("192.0.2.1", 1000+i), join, grpcserver.Caller{Anonymous: true}, 10); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := gate.Authorize(from("192.0.2.1", 9), join, grpcserver.Caller{Anonymous: true}, 10)
	wantError(t, err, codes.ResourceExhausted, "RATE_LIMITED")
	if got := rpcerr.Metadata(err)["retry_after"]; got != "1s" {
		t.Errorf("retry_after = %q, want 1s", got)
	}
	if err := gate.Authorize(from("192.0.2.2", 9), join, grpcserver.Caller{Anonymous: true}, 10); err != nil {
		t.Errorf("another address: %v", err)
	}
}

func TestWhatHandlersReturn(t *testing.T) {
	f := newFleet(t, nil)
	client := coordinatorv1.NewPeerServiceClient(f.as(t, f.Credentials(t, coordinator, "c2")))
	conflict := rpcerr.New(codes.Aborted, coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "read again")
	for _, tc := range []struct {
		name     string
		handler  func(context.Context) error
		code     codes.Code
		reason   string
		message  string
		inTheLog string
	}{
		{"panic", func(context.Context) error { panic("password 1234") }, codes.Internal, "", "internal error: the server's log has the cause", "password 1234"},
		{"bad index", func(context.Context) error { return make([]error, 3)[len(f.Name)] }, codes.Internal, "", "internal error: the server's log has the cause", "index out of range"},
		{"plain error", func(context.Context) error { return errors.New("disk sda1 full") }, codes.Internal, "", "internal error: the server's log has the cause", "disk sda1 full"},
		{"status", func(context.Context) error { return conflict }, codes.Aborted, "CONFLICT", "read again", ""},
		{"wrapped status", func(context.Context) error { return fmt.Errorf("lock shop: %w", conflict) }, codes.Aborted, "CONFLICT", "lock shop: read again", ""},
		{"deadline", func(context.Context) error { return fmt.Errorf("wait: %w", context.DeadlineExceeded) }, codes.DeadlineExceeded, "", "wait: context deadline exceeded", ""},
		{"nothing", func(context.Context) error { return nil }, codes.OK, "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f.propose = tc.handler
			_, err := client.Propose(testContext(t), &coordinatorv1.ProposeRequest{})
			wantError(t, err, tc.code, tc.reason)
			if got := rpcerr.Message(err); got != tc.message {
				t.Errorf("the caller is told %q, want %q", got, tc.message)
			}
			if !strings.Contains(f.log.String(), tc.inTheLog) {
				t.Errorf("the log has no %q", tc.inTheLog)
			}
		})
	}
	failure := rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true, "port 80 is taken").WithEvidence("nginx")
	f.propose = func(context.Context) error { return fmt.Errorf("start: %w", failure) }
	_, err := client.Propose(testContext(t), &coordinatorv1.ProposeRequest{})
	if got, ok := rpcerr.Failure(err); !ok || !got.GetPermanent() || got.GetEvidence() != "nginx" || got.GetMessage() != "port 80 is taken" {
		t.Errorf("Failure = %v, %v", got, ok)
	}
}

func TestLargeRequests(t *testing.T) {
	f := newFleet(t, nil)
	f.watch = func(grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error { return nil }
	peers := coordinatorv1.NewPeerServiceClient(f.as(t, f.Credentials(t, coordinator, "c2")))
	for size, want := range map[int]string{2<<20 - 100: "", 2<<20 + 1: "TOO_LARGE", 5 << 20: ""} {
		_, err := peers.Propose(testContext(t), &coordinatorv1.ProposeRequest{Command: make([]byte, size)})
		code := codes.OK
		if size > 2<<20 { // the largest one is refused by gRPC itself, before it is in memory.
			code = codes.ResourceExhausted
		}
		wantError(t, err, code, want)
	}
	runs := coordinatorv1.NewRunServiceClient(f.as(t, f.Credentials(t, viewer, "eve")))
	for size, want := range map[int]string{1000: "", 300 << 10: "TOO_LARGE"} {
		stream, err := runs.WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{RunId: strings.Repeat("x", size)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); rpcerr.Reason(err) != want {
			t.Errorf("watch with %d bytes: %v, want %q", size, err, want)
		}
	}
	wantError(t, join(t, f, 16<<10), codes.ResourceExhausted, "TOO_LARGE")
	wantError(t, join(t, f, 16<<10-100), codes.OK, "")
}

func join(t *testing.T, f *fleet, size int) error {
	t.Helper()
	_, err := coordinatorv1.NewEnrollServiceClient(f.as(t, nil)).Join(testContext(t), &coordinatorv1.JoinRequest{Csr: make([]byte, size)})
	return err
}

package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/agent"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const patience = 20 * time.Second

// coordinator is a fake with a real port: TLS, joining, and agents' connections told apart by ALPN.
type coordinator struct {
	t       *testing.T
	cluster identitytest.Cluster
	creds   *identity.Credentials
	address string
	agents  chan *tls.Conn
	joins   chan net.Conn
	failed  chan error // of handshakes.
	deny    func(*coordinatorv1.JoinRequest) error

	mu       sync.Mutex
	listener net.Listener
}

func newCoordinator(t *testing.T, cluster identitytest.Cluster, role accessv1.Role) *coordinator {
	t.Helper()
	return namedCoordinator(t, cluster, role, "c1")
}

func namedCoordinator(t *testing.T, cluster identitytest.Cluster, role accessv1.Role, name string) *coordinator {
	t.Helper()
	c := &coordinator{
		t: t, cluster: cluster, creds: cluster.Credentials(t, role, name),
		agents: make(chan *tls.Conn, 16), joins: make(chan net.Conn), failed: make(chan error, 1),
	}
	c.listen("127.0.0.1:0")
	t.Cleanup(c.down)
	server := grpcserver.New(grpcserver.NewGate(grpcserver.GateOptions{}))
	coordinatorv1.RegisterEnrollServiceServer(server, &enroll{c: c})
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(&chanListener{conns: c.joins, done: make(chan struct{})}) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-stopped; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return c
}

// listen takes connections on an address until down.
func (c *coordinator) listen(address string) {
	c.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.listener, c.address = l, l.Addr().String()
	c.mu.Unlock()
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, mtls.Server(c.creds, mtls.ALPNgRPC, mtls.ALPNAgent))
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			err = conn.HandshakeContext(ctx)
			cancel()
			switch {
			case err != nil:
				_ = raw.Close()
				select {
				case c.failed <- err:
				default: // one is enough for a test.
				}
			case conn.ConnectionState().NegotiatedProtocol == mtls.ALPNAgent:
				c.agents <- conn
			default:
				c.joins <- conn
			}
		}
	}()
}

func (c *coordinator) down() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.listener.Close()
}

// next returns the connection that the agent opens next, ready to call over.
func (c *coordinator) next() (*grpc.ClientConn, *tls.Conn) {
	c.t.Helper()
	select {
	case conn := <-c.agents:
		var used atomic.Bool
		cc, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(grpcserver.Handshaked()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				if used.Swap(true) {
					return nil, io.EOF
				}
				return conn, nil
			}))
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = cc.Close() })
		return cc, conn
	case <-time.After(patience):
		c.t.Fatal("the agent does not connect")
		return nil, nil
	}
}

// enroll signs whatever is asked for.
type enroll struct {
	coordinatorv1.UnimplementedEnrollServiceServer
	c *coordinator
}

func (e *enroll) Join(_ context.Context, req *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	if e.c.deny != nil {
		if err := e.c.deny(req); err != nil {
			return nil, err
		}
	}
	id := identity.ID{Cluster: e.c.cluster.Name, Role: accessv1.Role_ROLE_AGENT, Name: req.GetName()}
	cert, err := identity.Issue(e.c.cluster.Authority, id, req.GetCsr(), time.Now(), time.Hour)
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.JoinResponse{
		CertificateChain: cert.Chain, CaBundle: [][]byte{e.c.cluster.Authority.GetRoot().GetCertificate()},
		Identity: id.String(), Coordinators: []string{e.c.address},
	}, nil
}

// chanListener is the listener of the connections that are left to gRPC.
type chanListener struct {
	conns <-chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *chanListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (*chanListener) Addr() net.Addr { return &net.TCPAddr{} }

func token(t *testing.T, cluster identitytest.Cluster) string {
	t.Helper()
	token, err := identity.NewToken(cluster.Authority.GetRoot().GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	return token.String() + "\n"
}

func join(t *testing.T, c *coordinator) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	id, err := agent.Join(t.Context(), agent.JoinOptions{DataDir: dir, Coordinators: []string{c.address}, Token: token(t, c.cluster), Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "spiffe://agent.test.muster/h1"; id != want {
		t.Fatalf("got identity %s, want %s", id, want)
	}
	return dir
}

// run runs an agent; stop ends it and fails the test unless it ends well.
func run(t *testing.T, dir string, coordinators ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Run(ctx, agent.Options{
			DataDir: dir, Coordinators: coordinators, Logger: slog.New(slog.DiscardHandler), DockerHost: "unix://" + filepath.Join(dir, "no-engine.sock"),
			Labels: map[string]string{"rack": "a"}, PortRange: "21000-21999", SecretsDir: filepath.Join(dir, "secrets"),
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the agent ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the agent does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestServesEveryCoordinatorThatItJoined(t *testing.T) {
	c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
	dir := join(t, c)
	stop := run(t, dir)
	cc, conn := c.next()
	if id, ok := mtls.PeerID(conn.ConnectionState()); !ok || id.Name != "h1" {
		t.Fatalf("got a connection of %v", id)
	}
	i := inventory(t, cc)
	if i.GetAddress() != "127.0.0.1" || i.GetLabels()["rack"] != "a" || i.GetPortFirst() != 21000 || i.GetPortLast() != 21999 ||
		i.GetNanoCpus() <= 0 || i.GetMemoryBytes() <= 0 || i.GetKernel() == "" || i.GetHostname() == "" || i.GetEngine().GetUp() || i.GetEngine().GetError() == "" {
		t.Fatalf("got inventory %v, want the machine, the options, and an engine that is down", i)
	}

	// An operation's outcome outlives the connection and the agent.
	update := &agentv1.UpdateRouteRequest{Operation: &agentv1.Operation{Id: "run/1", Epoch: 3, Digest: "d"}, Route: &agentv1.Route{Name: "web.app"}}
	_, err := agentv1.NewRouteServiceClient(cc).UpdateRoute(t.Context(), update)
	first, ok := rpcerr.Failure(err)
	if !ok || first.GetReason() != agentv1.FailureReason_FAILURE_REASON_ROUTE {
		t.Fatalf("got %v, want a failure for want of a proxy", err)
	}
	stop()
	run(t, dir)
	cc, _ = c.next()
	operations, err := agentv1.NewOperationServiceClient(cc).ListOperations(t.Context(), &agentv1.ListOperationsRequest{})
	if err != nil || len(operations.GetOperations()) != 1 || operations.GetOperations()[0].GetOperationId() != "run/1" {
		t.Fatalf("got %v, %v, want the one operation", operations, err)
	}
	update.Operation.Epoch = 2
	if _, err = agentv1.NewRouteServiceClient(cc).UpdateRoute(t.Context(), update); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("got %v for an old epoch, want FAILED_PRECONDITION", err)
	}
}

func TestConnectsAgain(t *testing.T) {
	c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
	run(t, join(t, c))
	cc, conn := c.next()
	inventory(t, cc)

	// The connection is cut: both ends of TCP are told nothing by TLS or HTTP/2.
	if err := conn.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	cc, conn = c.next()
	inventory(t, cc)
	if took := time.Since(cut); took > 2*time.Second {
		t.Errorf("connecting again took %s", took)
	}

	// The coordinator goes away for a while, and comes back at the same address.
	address := c.address
	c.down()
	if err := conn.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	<-time.After(300 * time.Millisecond)
	c.listen(address)
	back := time.Now()
	cc, _ = c.next()
	inventory(t, cc)
	if took := time.Since(back); took > 3*time.Second {
		t.Errorf("connecting to the coordinator that came back took %s", took)
	}
}

func TestServesNobodyButCoordinatorsOfItsCluster(t *testing.T) {
	ours := identitytest.New(t, "test")
	impostors := map[string]*coordinator{
		"an agent of the cluster":                   newCoordinator(t, ours, accessv1.Role_ROLE_AGENT),
		"a coordinator of another cluster":          newCoordinator(t, identitytest.New(t, "other"), accessv1.Role_ROLE_COORDINATOR),
		"a coordinator of another one's namesake":   newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR),
		"a person of the cluster, an administrator": newCoordinator(t, ours, accessv1.Role_ROLE_ADMIN),
	}
	c := newCoordinator(t, ours, accessv1.Role_ROLE_COORDINATOR)
	dir := join(t, c)
	addresses := []string{c.address}
	for _, i := range impostors {
		addresses = append(addresses, i.address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- agent.Run(ctx, agent.Options{DataDir: dir, Coordinators: addresses, Logger: slog.New(slog.DiscardHandler)})
	}()
	cc, _ := c.next()
	inventory(t, cc)
	for name, i := range impostors {
		select {
		case err := <-i.failed:
			if !strings.Contains(err.Error(), "remote error") {
				t.Errorf("%s: got %v, want that the agent ends the handshake", name, err)
			}
		case <-i.agents:
			t.Errorf("%s is served", name)
		case <-time.After(patience):
			t.Errorf("%s was never dialled", name)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestJoinRefuses(t *testing.T) {
	c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
	joined := join(t, c)
	before, err := os.ReadFile(filepath.Join(joined, identity.ChainFile))
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	c.deny = func(req *coordinatorv1.JoinRequest) error {
		asked = true
		return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED, "join denied: ask for a new token")
	}
	tests := []struct {
		name  string
		opts  agent.JoinOptions
		want  string
		asked bool
	}{
		{"an identity is there", agent.JoinOptions{DataDir: joined, Token: token(t, c.cluster)}, "holds an identity already", false},
		{"the token is none", agent.JoinOptions{Token: "mjt1.abc"}, "token", false},
		{"the name is none", agent.JoinOptions{Token: token(t, c.cluster), Name: "Host 1"}, "--name", false},
		{"the coordinator denies", agent.JoinOptions{Token: token(t, c.cluster), Name: "h2"}, "join denied", true},
		{"the server is of another cluster than the token", agent.JoinOptions{Token: token(t, identitytest.New(t, "test")), Name: "h2"}, "not of the cluster that made the token", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked = false
			tt.opts.Coordinators = []string{c.address}
			if tt.opts.DataDir == "" {
				tt.opts.DataDir = filepath.Join(t.TempDir(), "data")
			}
			_, err := agent.Join(t.Context(), tt.opts)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q in it", err, tt.want)
			}
			if asked != tt.asked {
				t.Errorf("the coordinator was asked: %v, want %v", asked, tt.asked)
			}
			if tt.opts.DataDir != joined {
				if _, err := identity.LoadCredentials(tt.opts.DataDir); err == nil {
					t.Error("an identity was saved")
				}
			}
		})
	}
	if after, err := os.ReadFile(filepath.Join(joined, identity.ChainFile)); err != nil || string(after) != string(before) {
		t.Errorf("the identity that was there has changed (%v)", err)
	}
}

func TestJoinTakesTheTokensNameOrTheMachines(t *testing.T) {
	machine, err := os.Hostname()
	if err != nil {
		t.Skip("the machine has no name")
	}
	machine, _, _ = strings.Cut(strings.ToLower(machine), ".")
	if identity.ValidName(machine) != nil {
		t.Skipf("the machine's name %q is no name of a host: what it becomes is not checked", machine)
	}
	for _, prescribed := range []string{"", "h7"} {
		t.Run("prescribed "+prescribed, func(t *testing.T) {
			c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
			c.deny = func(req *coordinatorv1.JoinRequest) error {
				if req.GetName() == "" && prescribed != "" {
					req.Name = prescribed
				}
				if req.GetName() == "" || prescribed != "" && req.GetName() != prescribed {
					return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED, "join denied")
				}
				return nil
			}
			want := prescribed
			if want == "" {
				want = machine
			}
			id, err := agent.Join(t.Context(), agent.JoinOptions{DataDir: t.TempDir(), Coordinators: []string{"127.0.0.1:1", c.address}, Token: token(t, c.cluster)})
			if err != nil || !strings.HasSuffix(id, "/"+want) {
				t.Fatalf("got %s, %v, want a host called %s", id, err, want)
			}
		})
	}
}

func TestJoinWaitsForALeader(t *testing.T) {
	c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
	asked := 0
	c.deny = func(*coordinatorv1.JoinRequest) error {
		if asked++; asked < 3 {
			return rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "no leader now")
		}
		return nil
	}
	join(t, c)
	if asked != 3 {
		t.Errorf("asked %d times, want 3", asked)
	}
}

func TestRunRefuses(t *testing.T) {
	c := newCoordinator(t, identitytest.New(t, "test"), accessv1.Role_ROLE_COORDINATOR)
	joined := join(t, c)
	damaged := join(t, c)
	if err := os.WriteFile(filepath.Join(damaged, "ledger"), []byte("not a ledger"), 0o600); err != nil {
		t.Fatal(err)
	}
	busy := join(t, c)
	run(t, busy)
	cc, _ := c.next()
	inventory(t, cc)
	tests := []struct {
		name string
		opts agent.Options
		want string
	}{
		{"no identity", agent.Options{DataDir: t.TempDir()}, "muster-agent join"},
		{"another agent", agent.Options{DataDir: busy}, "another muster-agent uses"},
		{"port range", agent.Options{DataDir: joined, PortRange: "9000-80"}, "--port-range"},
		{"address", agent.Options{DataDir: joined, AdvertiseAddress: "here"}, "--advertise-address"},
		{"driver", agent.Options{DataDir: joined, RouteDriver: "nginx"}, `"nginx"`},
		{"coordinator", agent.Options{DataDir: joined, Coordinators: []string{"c1"}, AdvertiseAddress: "127.0.0.1"}, `"c1"`},
		{"ledger", agent.Options{DataDir: damaged}, "offset 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Logger = slog.New(slog.DiscardHandler)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := agent.Run(ctx, tt.opts); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func inventory(t *testing.T, cc *grpc.ClientConn) *agentv1.Inventory {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := agentv1.NewHostServiceClient(cc).WatchHost(ctx, &agentv1.WatchHostRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if i := resp.GetInventory(); i != nil {
			return i
		}
	}
}

package hosts_test

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// fakeHost is an agent's view of its host. It sends an inventory at once and whenever it is set, and a beat every 5 s unless it is mute.
type fakeHost struct {
	agentv1.UnimplementedHostServiceServer

	name string

	mu        sync.Mutex
	inventory *agentv1.Inventory
	changed   chan struct{}
	mute      bool
	streams   int
	open      int
	told      [][]string // coordinators by watch
	refusals  int        // how many watches are refused first
}

func newFakeHost(name string) *fakeHost {
	return &fakeHost{name: name, changed: make(chan struct{}), inventory: &agentv1.Inventory{
		AgentVersion: "dev", Hostname: name, Address: "10.0.0.1", MemoryBytes: 1 << 30, RouteDrivers: []string{"caddy"},
		Engine: &agentv1.EngineStatus{Up: true, Version: "28.0"},
	}}
}

// set changes the inventory and tells it.
func (f *fakeHost) set(edit func(*agentv1.Inventory)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inventory = proto.CloneOf(f.inventory)
	edit(f.inventory)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeHost) silence(mute bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mute = mute
}

func (f *fakeHost) WatchHost(req *agentv1.WatchHostRequest, stream grpc.ServerStreamingServer[agentv1.WatchHostResponse]) error {
	f.mu.Lock()
	f.streams++
	f.open++
	f.told = append(f.told, req.GetCoordinators())
	refuse := f.streams <= f.refusals
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open--
	}()
	if refuse {
		return status.Error(codes.PermissionDenied, "not yet")
	}
	beat := time.NewTicker(5 * time.Second)
	defer beat.Stop()
	var sent *agentv1.Inventory
	for {
		f.mu.Lock()
		inventory, changed, mute := f.inventory, f.changed, f.mute
		f.mu.Unlock()
		resp := &agentv1.WatchHostResponse{}
		if inventory != sent {
			resp.Inventory, sent = inventory, inventory
		}
		if !mute {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-beat.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// oneConn is a listener of one connection, which is all that an agent serves on.
type oneConn struct {
	conn chan net.Conn
	addr net.Addr
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }

// session is an agent's server on one connection.
type session struct {
	server *grpc.Server
	ended  chan struct{}
}

// serve does what an agent does on a connection that it has dialled.
func (f *fakeHost) serve(conn *tls.Conn) *session {
	l := &oneConn{conn: make(chan net.Conn, 1), addr: conn.LocalAddr(), done: make(chan struct{})}
	l.conn <- conn
	s := &session{
		server: grpc.NewServer(grpc.Creds(grpcserver.Handshaked()),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true})),
		ended: make(chan struct{}),
	}
	agentv1.RegisterHostServiceServer(s.server, f)
	go func() {
		defer close(s.ended)
		_ = s.server.Serve(l)
	}()
	return s
}

func (s *session) stop() {
	s.server.Stop()
	<-s.ended
}

// registry is what the replicated state holds of hosts.
type registry struct {
	mu      sync.Mutex
	hosts   map[string]*coordinatorv1.Host
	updates []*raftv1.HostUpdate
	calls   int
	fail    error
}

func newRegistry(names ...string) *registry {
	r := &registry{hosts: map[string]*coordinatorv1.Host{}}
	for _, name := range names {
		r.hosts[name] = &coordinatorv1.Host{Name: name, State: coordinatorv1.HostState_HOST_STATE_JOINED}
	}
	return r
}

func (r *registry) states() map[string]*coordinatorv1.Host {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*coordinatorv1.Host{}
	for name, host := range r.hosts {
		out[name] = proto.CloneOf(host)
	}
	return out
}

func (r *registry) transition(_ context.Context, updates []*raftv1.HostUpdate) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.fail != nil {
		return r.fail
	}
	for _, u := range updates {
		r.updates = append(r.updates, u)
		r.hosts[u.GetHost()].State = u.GetState()
		if u.GetInventory() != nil {
			r.hosts[u.GetHost()].Inventory = u.GetInventory()
		}
	}
	return nil
}

// taken returns the transitions since the last call.
func (r *registry) taken() []*raftv1.HostUpdate {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.updates
	r.updates = nil
	return u
}

// world is a coordinator's Hosts and the means to connect agents to it.
type world struct {
	*hosts.Hosts

	t       *testing.T
	cluster identitytest.Cluster
	pipes   *pipes
}

// pipes is a listener of TLS connections in memory, whose handshake is done, as a port hands them out.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// newWorld serves until the test ends.
func newWorld(t *testing.T, o hosts.Options) *world {
	t.Helper()
	w := &world{t: t, cluster: identitytest.New(t, "test"), Hosts: hosts.New(o), pipes: &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, w.pipes) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return w
}

// tls returns both ends of a connection that an agent has opened.
func (w *world) tls(name string) (agent, coordinator *tls.Conn) {
	w.t.Helper()
	a, c := net.Pipe()
	return w.handshake(a, c, name)
}

func (w *world) handshake(a, c net.Conn, name string) (agent, coordinator *tls.Conn) {
	w.t.Helper()
	agent = tls.Client(a, mtls.Client(w.cluster.Credentials(w.t, accessv1.Role_ROLE_AGENT, name), accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent))
	coordinator = tls.Server(c, mtls.Server(w.cluster.Credentials(w.t, accessv1.Role_ROLE_COORDINATOR, "c1"), mtls.ALPNAgent))
	errs := make(chan error, 1)
	go func() { errs <- agent.Handshake() }()
	if err := coordinator.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	if err := <-errs; err != nil {
		w.t.Fatal(err)
	}
	return agent, coordinator
}

// holeConn swallows what is sent and gets nothing once the hole is open.
type holeConn struct {
	net.Conn

	open chan struct{}
}

func (h *holeConn) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	select {
	case <-h.open:
		if err == nil {
			return h.Read(p)
		}
	default:
	}
	return n, err
}

func (h *holeConn) Write(p []byte) (int, error) {
	select {
	case <-h.open:
		return len(p), nil
	default:
		return h.Conn.Write(p)
	}
}

// connect lets a host's agent connect.
func (w *world) connect(f *fakeHost) *session {
	w.t.Helper()
	agent, coordinator := w.tls(f.name)
	s := f.serve(agent)
	w.t.Cleanup(s.stop)
	w.pipes.conns <- coordinator
	return s
}

// lead runs Lead until the returned function is called, which waits for it.
func (w *world) lead() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Lead(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Lead: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

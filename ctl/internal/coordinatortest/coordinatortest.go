// Package coordinatortest is a cluster of coordinators for tests of musterctl: real gRPC over real mutual TLS on loopback,
// with answers that the test scripts. It holds no state and knows no stack: what coordinators do is package coordinator's.
package coordinatortest

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ClusterName is the name of every test cluster.
const ClusterName = "demo"

// Cluster is some coordinators of one authority.
type Cluster struct {
	// Nodes are the coordinators c1, c2, ….
	Nodes []*Node

	authority *raftv1.Authority
}

// New starts n coordinators, which end with the test. All of them answer Join; every other call is UNIMPLEMENTED until On
// says otherwise.
func New(t testing.TB, n int) *Cluster {
	t.Helper()
	authority, err := identity.NewAuthority(ClusterName, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{authority: authority}
	for i := range n {
		dir := c.Credentials(t, accessv1.Role_ROLE_COORDINATOR, fmt.Sprintf("c%d", i+1))
		node := newNode(t, dir)
		c.Nodes = append(c.Nodes, node)
		t.Cleanup(node.Stop)
	}
	return c
}

// Addresses of the coordinators in their order.
func (c *Cluster) Addresses() []string {
	out := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		out = append(out, n.Address)
	}
	return out
}

// Credentials makes an identity of the cluster and returns the folder that holds it.
func (c *Cluster) Credentials(t testing.TB, role accessv1.Role, name string) string {
	t.Helper()
	return c.CredentialsFor(t, role, name, time.Hour)
}

// CredentialsFor makes an identity that is valid for a given time.
func (c *Cluster) CredentialsFor(t testing.TB, role accessv1.Role, name string, life time.Duration) string {
	t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := identity.Issue(c.authority, identity.ID{Cluster: ClusterName, Role: role, Name: name}, csr, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := identity.SaveCredentials(dir, key, cert.Chain, [][]byte{c.authority.GetRoot().GetCertificate()}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Token makes a token of the cluster and lets every node answer one Join that has it, as a user of the role and name.
func (c *Cluster) Token(t testing.TB, role accessv1.Role, name string) string {
	t.Helper()
	root := c.authority.GetRoot().GetCertificate()
	token, err := identity.NewToken(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		On(n, "Join", func(_ context.Context, q *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
			if q.GetTokenId() != token.ID || string(q.GetTokenSecret()) != string(token.Secret) {
				return nil, status.Error(codes.PermissionDenied, "the token was refused")
			}
			id := identity.ID{Cluster: ClusterName, Role: role, Name: name}
			cert, err := identity.Issue(c.authority, id, q.GetCsr(), time.Now(), time.Hour)
			if err != nil {
				return nil, err
			}
			return &coordinatorv1.JoinResponse{
				CertificateChain: cert.Chain, CaBundle: [][]byte{root}, Identity: id.String(), ClusterId: "cluster-1",
				Coordinators: c.Addresses(),
			}, nil
		})
	}
	return token.String()
}

// Handler answers one unary call.
type Handler = func(ctx context.Context, request any) (any, error)

// Node is one coordinator.
type Node struct {
	// Address at which it listens.
	Address string

	creds *identity.Credentials

	mu       sync.Mutex
	server   *grpc.Server
	served   chan struct{}
	handlers map[string]Handler
	watch    func(q *coordinatorv1.WatchRunRequest, s grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error
	calls    []Call
	// snapshots are answered by these.
	snapshots Snapshots
}

// Call is a call that a node has seen.
type Call struct {
	// Method like ApplyStack.
	Method string
	// Request as it came.
	Request proto.Message
}

func newNode(t testing.TB, dir string) *Node {
	t.Helper()
	creds, err := identity.LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{creds: creds, handlers: map[string]Handler{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.Address = l.Addr().String()
	n.serve(l)
	return n
}

// services are those that musterctl calls.
type services struct {
	coordinatorv1.UnimplementedEnrollServiceServer
	coordinatorv1.UnimplementedHostServiceServer
	coordinatorv1.UnimplementedStackServiceServer
	coordinatorv1.UnimplementedSecretServiceServer
	coordinatorv1.UnimplementedServiceServiceServer
	coordinatorv1.UnimplementedProcedureServiceServer
}

type runs struct {
	coordinatorv1.UnimplementedRunServiceServer
	node *Node
}

// WatchRun is answered by what OnWatch set.
func (r *runs) WatchRun(q *coordinatorv1.WatchRunRequest, s grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error {
	r.node.record("WatchRun", q)
	r.node.mu.Lock()
	watch := r.node.watch
	r.node.mu.Unlock()
	if watch == nil {
		return status.Error(codes.Unimplemented, "this test watches no run")
	}
	return watch(q, s)
}

func (n *Node) serve(l net.Listener) {
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(mtls.Server(n.creds, mtls.ALPNgRPC))), grpc.UnaryInterceptor(n.answer))
	s := &services{}
	coordinatorv1.RegisterClusterServiceServer(server, &clusters{node: n})
	coordinatorv1.RegisterEnrollServiceServer(server, s)
	coordinatorv1.RegisterHostServiceServer(server, s)
	coordinatorv1.RegisterStackServiceServer(server, s)
	coordinatorv1.RegisterSecretServiceServer(server, s)
	coordinatorv1.RegisterServiceServiceServer(server, s)
	coordinatorv1.RegisterProcedureServiceServer(server, s)
	coordinatorv1.RegisterRunServiceServer(server, &runs{node: n})
	n.mu.Lock()
	n.server, n.served = server, make(chan struct{})
	served := n.served
	n.mu.Unlock()
	go func() { // Stop waits for it.
		defer close(served)
		_ = server.Serve(l) // it ends with Stop.
	}()
}

func (n *Node) answer(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	if m, ok := request.(proto.Message); ok {
		n.record(method, m)
	}
	n.mu.Lock()
	h := n.handlers[method]
	n.mu.Unlock()
	if h == nil {
		return next(ctx, request)
	}
	return h(ctx, request)
}

func (n *Node) record(method string, m proto.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, Call{Method: method, Request: proto.Clone(m)})
}

// Calls returns the requests of a method that the node has seen.
func (n *Node) Calls(method string) []proto.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []proto.Message
	for _, c := range n.calls {
		if c.Method == method {
			out = append(out, c.Request)
		}
	}
	return out
}

// Stop kills the node: its connections are cut. A second Stop does nothing.
func (n *Node) Stop() {
	n.mu.Lock()
	server, served := n.server, n.served
	n.server = nil
	n.mu.Unlock()
	if server != nil {
		server.Stop()
		<-served
	}
}

// Start starts the node again at its address.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", n.Address)
	if err != nil {
		t.Fatal(err)
	}
	n.serve(l)
}

// On lets a node answer a unary method.
func On[Q, A any](n *Node, method string, f func(context.Context, *Q) (*A, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[method] = func(ctx context.Context, request any) (any, error) {
		q, ok := request.(*Q)
		if !ok {
			return nil, status.Errorf(codes.Internal, "%s was scripted for %T and got %T", method, q, request)
		}
		a, err := f(ctx, q)
		if err != nil {
			return nil, err
		}
		return a, nil
	}
}

// OnWatch lets a node answer WatchRun.
func (n *Node) OnWatch(f func(q *coordinatorv1.WatchRunRequest, s grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watch = f
}

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	// beatEvery, pingAfter and pingTime are those of agents.
	beatEvery = 5 * time.Second
	pingAfter = 10 * time.Second
	pingTime  = 10 * time.Second
	// firstRetry and lastRetry bound the pauses between attempts to connect.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// joinsPerSource is below what one address may do in a minute.
	joinsPerSource = 50
	atATime        = 32
	simBuffer      = 4 << 10
)

// simulator is agents without hosts, in one process: each has an identity and a connection of its own over which it tells how it is and answers that it
// has no containers. One server serves all the connections, which spares this process memory; the coordinator cannot tell.
type simulator struct {
	agentv1.UnimplementedHostServiceServer
	agentv1.UnimplementedContainerServiceServer

	endpoint string
	hosts    coordinatorv1.HostServiceClient
	agents   []*identity.Credentials
	server   *grpc.Server
	conns    *connListener
	served   sync.WaitGroup
	stop     context.CancelFunc
	// asked counts the answers to ListContainers.
	asked atomic.Uint64
}

func newSimulator(endpoint string, hosts coordinatorv1.HostServiceClient) *simulator {
	return &simulator{endpoint: endpoint, hosts: hosts}
}

// enroll lets agents join until there are n, with tokens, as any agent does. One address may join only so often, so they come from many of loopback's.
func (s *simulator) enroll(ctx context.Context, n int) error {
	first := len(s.agents)
	s.agents = append(s.agents, make([]*identity.Credentials, n-first)...)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for from := first; from < n; from += joinsPerSource {
		group.Go(func() error { return s.enrollSome(ctx, from, min(from+joinsPerSource, n)) })
	}
	return group.Wait()
}

func (s *simulator) enrollSome(ctx context.Context, from, to int) (err error) {
	var cc *grpc.ClientConn
	defer func() {
		if cc != nil {
			err = errors.Join(err, cc.Close())
		}
	}()
	for i := from; i < to; i++ {
		name := fmt.Sprintf("h%05d", i)
		created, err := s.hosts.CreateHostToken(ctx, &coordinatorv1.CreateHostTokenRequest{Name: name})
		if err != nil {
			return err
		}
		token, err := identity.ParseToken(created.GetToken())
		if err != nil {
			return err
		}
		if cc == nil {
			if cc, err = s.dialFrom(from/joinsPerSource, token); err != nil {
				return err
			}
		}
		key, csr, err := identity.NewRequest()
		if err != nil {
			return err
		}
		joined, err := coordinatorv1.NewEnrollServiceClient(cc).Join(ctx, &coordinatorv1.JoinRequest{
			TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Name: name,
		}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if s.agents[i], err = identity.NewCredentials(key, joined.GetCertificateChain(), joined.GetCaBundle()); err != nil {
			return err
		}
	}
	return nil
}

// dialFrom connects from an address of loopback of its own.
func (s *simulator) dialFrom(source int, token identity.Token) (*grpc.ClientConn, error) {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(source/250), byte(source%250+1))}}
	return grpc.NewClient("passthrough:///"+s.endpoint, grpc.WithTransportCredentials(credentials.NewTLS(mtls.Pinned(token.Pin, mtls.ALPNgRPC))),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
}

// connect starts the first n agents, and returns when each has connected once.
func (s *simulator) connect(ctx context.Context, n int) error {
	s.conns = &connListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	s.server = grpc.NewServer(
		grpc.Creds(grpcserver.Handshaked()), grpc.ReadBufferSize(simBuffer), grpc.WriteBufferSize(simBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: beatEvery, PermitWithoutStream: true}),
	)
	agentv1.RegisterHostServiceServer(s.server, s)
	agentv1.RegisterContainerServiceServer(s.server, s)
	server, conns := s.server, s.conns
	s.served.Go(func() { _ = server.Serve(conns) }) // ends with Stop
	living, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	turns := make(chan struct{}, atATime)
	first := make(chan struct{}, n)
	for _, agent := range s.agents[:n] {
		s.served.Go(func() { s.live(living, agent, conns, turns, first) })
	}
	ctx, cancel := context.WithTimeout(ctx, agentsLimit)
	defer cancel()
	for i := range n {
		select {
		case <-first:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d are connected: %w", i, n, ctx.Err())
		}
	}
	return nil
}

// live keeps an agent connected until ctx ends, and tells first when it is for the first time. Only so many connect at a time.
func (s *simulator) live(ctx context.Context, agent *identity.Credentials, conns *connListener, turns, first chan struct{}) {
	for ctx.Err() == nil {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := s.dial(ctx, agent)
		<-turns
		if err != nil {
			return // ctx has ended
		}
		held := &heldConn{Conn: conn, ended: make(chan struct{})}
		if conns.give(ctx, held) != nil {
			return
		}
		select {
		case first <- struct{}{}:
		default: // connected anew
		}
		select {
		case <-held.ended:
		case <-ctx.Done():
		}
	}
}

// heldConn tells when the server closes it.
type heldConn struct {
	*tls.Conn

	ended chan struct{}
	once  sync.Once
}

// Close closes the connection.
func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// dial tries until it is let in, as agents do: a coordinator with too many handshakes at a time sends some away.
func (s *simulator) dial(ctx context.Context, agent *identity.Credentials) (*tls.Conn, error) {
	dialer := tls.Dialer{Config: mtls.Client(agent, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent)}
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		conn, err := dialer.DialContext(ctx, "tcp", s.endpoint)
		if secure, ok := conn.(*tls.Conn); ok && err == nil {
			return secure, nil
		}
		if perr := pause(ctx, rand.N(retry)); perr != nil {
			return nil, errors.Join(err, perr)
		}
	}
}

// disconnect ends all connections.
func (s *simulator) disconnect() {
	if s.server != nil {
		s.stop()
		s.server.Stop()
	}
	s.served.Wait()
}

// WatchHost tells the inventory, and then beats.
func (s *simulator) WatchHost(_ *agentv1.WatchHostRequest, stream grpc.ServerStreamingServer[agentv1.WatchHostResponse]) error {
	inventory := &agentv1.Inventory{
		AgentVersion: "simulated", Address: "10.0.0.1", Hostname: "simulated", Platform: "linux/amd64", Kernel: "6.1.0", NanoCpus: 8e9, MemoryBytes: 32 << 30,
		Engine: &agentv1.EngineStatus{Up: true, Version: "20.10.24", ApiVersion: "1.41", StorageDriver: "overlay2"}, PortFirst: 21000, PortLast: 21999,
	}
	// The first beat comes at a moment of its own, so that the fleet does not beat in step.
	next := time.NewTimer(rand.N(beatEvery))
	defer next.Stop()
	for {
		if err := stream.Send(&agentv1.WatchHostResponse{Inventory: inventory, SentAt: timestamppb.Now()}); err != nil {
			return err
		}
		inventory = nil
		select {
		case <-next.C:
			next.Reset(beatEvery)
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// ListContainers answers that there are none.
func (s *simulator) ListContainers(context.Context, *agentv1.ListContainersRequest) (*agentv1.ListContainersResponse, error) {
	s.asked.Add(1)
	return &agentv1.ListContainersResponse{}, nil
}

// connListener hands connections that were dialled to a server, as if they had been accepted.
type connListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *connListener) give(ctx context.Context, conn net.Conn) error {
	select {
	case l.conns <- conn:
		return nil
	case <-l.closed:
	case <-ctx.Done():
	}
	return errors.Join(net.ErrClosed, conn.Close())
}

// Accept returns the next connection.
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is nobody's.
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

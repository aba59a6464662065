// Package coordinator is one member of the raft-replicated cluster that plans and drives procedures, and serves the API for operators and for
// other services. This package only wires: what a coordinator does is in the packages below internal.
//
// One TCP port serves gRPC, the agents' reversed connections and raft, told apart by ALPN; a second one serves JSON over the same services,
// metrics and health.
package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/spheroseg/muster/coordinator/internal/api"
	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/coordinator/internal/port"
	"github.com/spheroseg/muster/coordinator/internal/procedure"
	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/coordinator/internal/warden"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/version"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	dialTime    = 5 * time.Second
	stopTime    = 5 * time.Second
	memberRetry = 2 * time.Second
)

// Options of a coordinator that runs.
type Options struct {
	// DataDir that init or join made.
	DataDir string
	// Listen and HTTPListen override the settings of the data directory; empty keeps them.
	Listen, HTTPListen string
	// UnlockKeyFile holds the key that seals log and snapshots; empty means unlock.key in the data directory. It is safer elsewhere.
	UnlockKeyFile string
	Logger        *slog.Logger
}

// coordinator is the parts of a running coordinator.
type coordinator struct {
	settings    Settings
	credentials *identity.Credentials
	log         *slog.Logger
	state       *state.State
	registry    *registry
	port        *port.Port
	cluster     *cluster.Cluster
	hosts       *hosts.Hosts
	engine      *procedure.Engine
	warden      *warden.Warden
	gate        *grpcserver.Gate
	servers     *api.Servers
	grpc        *grpc.Server
}

// Run serves until the context ends. A leader hands its office over first.
func Run(ctx context.Context, o Options) error {
	c, err := open(o)
	if err != nil {
		return err
	}
	return c.run(ctx)
}

func (c *coordinator) run(ctx context.Context) error {
	c.log.Info("coordinator starts", "id", c.settings.Name, "listen", c.settings.Listen, "http_listen", c.settings.HTTPListen, "version", version.Version)
	// The servers outlive the cluster's farewell: a leader that hands over its office still answers its peers.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer stopServing()
		return c.cluster.Run(ctx)
	})
	group.Go(func() error { return keepMemory(serving) })
	group.Go(func() error { return c.port.Run(serving) })
	group.Go(func() error { return c.hosts.Serve(serving, c.port.Agents()) })
	group.Go(func() error { return c.serveGRPC(serving) })
	if c.settings.HTTPListen != "" {
		group.Go(func() error { return c.serveHTTP(serving) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	c.log.Info("coordinator stopped")
	return nil
}

// open builds all parts; nothing runs yet.
func open(o Options) (*coordinator, error) {
	c := &coordinator{log: o.Logger, state: state.New()}
	var err error
	if c.settings, err = loadSettings(o.DataDir); err != nil {
		return nil, err
	}
	if o.Listen != "" {
		c.settings.Listen = o.Listen
	}
	if o.HTTPListen != "" {
		c.settings.HTTPListen = o.HTTPListen
	}
	if c.credentials, err = identity.LoadCredentials(o.DataDir); err != nil {
		return nil, err
	}
	keyFile := o.UnlockKeyFile
	if keyFile == "" {
		keyFile = filepath.Join(o.DataDir, unlockKeyFile)
	}
	key, err := loadUnlockKey(keyFile)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", c.settings.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w: is another coordinator running here?", err)
	}
	c.registry = &registry{
		state:  c.state,
		read:   func(ctx context.Context) error { return c.cluster.Read(ctx) },
		leader: func() string { id, _ := c.cluster.Leader(); return id },
	}
	if c.port, err = port.New(port.Options{
		Listener: listener, TLS: mtls.Server(c.credentials, mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft), Admit: c.registry.admit, Logger: c.log,
	}); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	c.hosts = hosts.New(hosts.Options{
		Logger: c.log, Registered: c.registry.lookup, Transition: c.recordHosts, States: c.hostStates,
		Coordinators: c.addresses,
	})
	clock := newClock(func() time.Time { return c.state.View().Meta().GetNow().AsTime() }, c.log.With("component", "clock"))
	if c.cluster, err = cluster.New(cluster.Options{
		ID: c.settings.Name, Address: c.settings.Advertise, ClusterID: c.settings.ClusterID, DataDir: o.DataDir, SealKey: key,
		FSM: c.state, Raft: c.port.Raft(), DialRaft: c.dialRaft, DialPeer: c.dialPeer, Lead: c.lead, Logger: c.log,
		Now: clock.Now,
	}); err != nil {
		return nil, errors.Join(err, c.port.Close())
	}
	c.engine = procedure.New(procedure.Options{
		ID: c.settings.Name, State: c.state, Propose: c.propose, Conn: c.hosts.Conn, HostsChanged: c.hosts.Changed, Logger: c.log,
		Now: clock.Now,
	})
	c.warden = warden.New(warden.Options{
		ID: c.settings.Name, State: c.state, Planner: &runbook.Planner{Conn: c.hosts.Await}, Propose: c.propose,
		Now: clock.Now, Logger: c.log,
	})
	c.servers = api.New(api.Options{
		ID: c.settings.Name, State: c.state, Cluster: c.cluster, Hosts: c.hosts, Version: version.Version, Logger: c.log,
	})
	c.gate = grpcserver.NewGate(grpcserver.GateOptions{Lookup: c.registry.lookup, Logger: c.log})
	c.grpc = grpcserver.New(c.gate)
	c.servers.Register(c.grpc)
	coordinatorv1.RegisterPeerServiceServer(c.grpc, cluster.NewPeerServer(c.cluster))
	if err := c.gate.Check(c.grpc); err != nil {
		return nil, errors.Join(err, c.port.Close())
	}
	return c, nil
}

func (c *coordinator) propose(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error) {
	result, _, err := c.cluster.Propose(ctx, command)
	return result, err
}

// serveGRPC serves until the context ends, and then lets calls end for a while.
func (c *coordinator) serveGRPC(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.grpc.Serve(c.port.GRPC()) })
	group.Go(func() error {
		<-ctx.Done()
		timer := time.AfterFunc(stopTime, c.grpc.Stop)
		defer timer.Stop()
		c.grpc.GracefulStop()
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	return nil
}

// dialRaft opens a raft connection to another coordinator.
func (c *coordinator) dialRaft(ctx context.Context, address string) (net.Conn, error) {
	dialer := tls.Dialer{Config: mtls.Client(c.credentials, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNRaft)}
	return dialer.DialContext(ctx, "tcp", address)
}

// dialPeer makes a gRPC connection to another coordinator.
func (c *coordinator) dialPeer(_ context.Context, address string) (grpc.ClientConnInterface, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(mtls.Client(c.credentials, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: dialTime, PermitWithoutStream: true}),
		grpc.WithIdleTimeout(0),
	)
}

// lead is what only the leader does: the engine, the hosts' transitions, looking after hosts that went or came back, and taking new
// coordinators into the cluster.
func (c *coordinator) lead(ctx context.Context, term uint64) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.engine.Lead(ctx, term) })
	group.Go(func() error { return c.hosts.Lead(ctx) })
	group.Go(func() error { return c.warden.Lead(ctx) })
	group.Go(func() error { return c.admitCoordinators(ctx) })
	return group.Wait()
}

// admitCoordinators makes the raft cluster's members those that the registry has: who joined is taken in, and who was evicted is taken out, should
// the removal have been cut short, or have met a leader that had just taken the member in.
func (c *coordinator) admitCoordinators(ctx context.Context) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	admitted := map[string]string{}
	for {
		changed := c.state.Changed()
		for _, known := range c.state.View().Identities() {
			if known.GetRole() != accessv1.Role_ROLE_COORDINATOR || known.GetEvicted() || admitted[known.GetName()] == known.GetAddress() {
				continue
			}
			if err := c.cluster.AddMember(ctx, known.GetName(), known.GetAddress()); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				c.log.Warn("coordinator not taken in yet", "id", known.GetName(), "err", err)
				retry.Reset(memberRetry)
				continue
			}
			admitted[known.GetName()] = known.GetAddress()
		}
		if err := c.dropEvicted(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.log.Warn("evicted coordinator not taken out yet", "err", err)
			retry.Reset(memberRetry)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-retry.C:
		}
	}
}

// dropEvicted takes evicted coordinators out of the raft cluster.
func (c *coordinator) dropEvicted(ctx context.Context) error {
	members, err := c.cluster.Members()
	if err != nil {
		return err
	}
	view := c.state.View()
	for _, name := range members {
		id := identity.ID{Cluster: c.settings.ClusterID, Role: accessv1.Role_ROLE_COORDINATOR, Name: name}
		if !view.Identity(id.String()).GetEvicted() {
			continue
		}
		if err := c.cluster.RemoveMember(ctx, name); err != nil {
			return fmt.Errorf("take out %s: %w", name, err)
		}
	}
	return nil
}

// recordHosts commits transitions of hosts.
func (c *coordinator) recordHosts(ctx context.Context, updates []*raftv1.HostUpdate) error {
	result, err := c.propose(ctx, &raftv1.Command{
		Version: state.CommandVersion, Actor: "hosts/" + c.settings.Name,
		Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: updates}},
	})
	if err != nil {
		return err
	}
	if refusal := result.GetError(); refusal != nil {
		return errors.New(refusal.GetMessage())
	}
	return nil
}

func (c *coordinator) hostStates() map[string]*coordinatorv1.Host {
	known := map[string]*coordinatorv1.Host{}
	for _, host := range c.state.View().Hosts() {
		known[host.GetName()] = host
	}
	return known
}

// addresses of all coordinators of the registry, in order of their names; none while the state may be behind. A coordinator that replays its
// log, or that is cut off, would tell hosts of coordinators that are gone, and they would forget those that came after.
func (c *coordinator) addresses(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	if c.cluster.Read(ctx) != nil {
		return nil
	}
	var known []string
	for _, i := range c.state.View().Identities() {
		if i.GetRole() == accessv1.Role_ROLE_COORDINATOR && !i.GetEvicted() && i.GetAddress() != "" {
			known = append(known, i.GetAddress())
		}
	}
	return known
}

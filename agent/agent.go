// Package agent is the program that runs on every host: it joins a cluster (Join), and serves the host's capabilities to the
// coordinators (Run). It wires; what the capabilities do is theirs.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/spheroseg/muster/agent/internal/api"
	"github.com/spheroseg/muster/agent/internal/container"
	"github.com/spheroseg/muster/agent/internal/host"
	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/agent/internal/probe"
	"github.com/spheroseg/muster/agent/internal/route"
	"github.com/spheroseg/muster/agent/internal/uplink"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/version"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	// operationGrace is what operations that change the host are given to end when the agent is told to.
	operationGrace = 10 * time.Second
	// answerGrace is for the last answers.
	answerGrace = 300 * time.Millisecond
	// A coordinator that vanished without a word is noticed after pingAfter and pingTimeout.
	pingAfter, pingTimeout = 10 * time.Second, 10 * time.Second
	// caddy is the one route driver.
	caddy = "caddy"
	// maintenanceFile in the data folder remembers which routes show a page.
	maintenanceFile = "maintenance.json"
)

// Options of a running agent. DataDir and Logger are required.
type Options struct {
	// DataDir holds the identity, the settings that Join wrote, and the ledger.
	DataDir string
	// Coordinators to start with, as host:port, besides those that are remembered. One that answers tells where all of them are.
	Coordinators []string
	// DockerHost of the engine; empty means unix:///var/run/docker.sock.
	DockerHost string
	// AdvertiseAddress is the IP address under which others reach this host; empty means that of the way to the coordinators.
	AdvertiseAddress string
	// Labels are added to those of the join token.
	Labels map[string]string
	// PortRange is where instances get their host ports, as 20000-29999.
	PortRange string
	// RouteDriver is "caddy", or empty if the host drives no proxy.
	RouteDriver string
	// CaddyAdmin is the URL of Caddy's admin API.
	CaddyAdmin string
	// PolicyFile of the host; empty means the default policy.
	PolicyFile string
	// SecretsDir for the files of secrets; empty means a folder in memory.
	SecretsDir string
	// Logger of the program.
	Logger *slog.Logger
}

// Run serves the host to every coordinator until ctx ends. Then operations that change the host are given 10 s to end.
func Run(ctx context.Context, o Options) (err error) {
	if o.DataDir == "" || o.Logger == nil {
		return errors.New("agent: DataDir and Logger are required")
	}
	credentials, known, err := loadMembership(o)
	if err != nil {
		return err
	}
	unlock, err := lockDir(o.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	inventory, err := settings(o, known)
	if err != nil {
		return err
	}
	engine, err := newEngine(o, credentials.ID().Name, inventory.GetAddress())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	routes, err := newRoutes(o)
	if err != nil {
		return err
	}
	machine, err := host.New(host.Options{Settings: inventory, Engine: engine, Logger: o.Logger})
	if err != nil {
		return err
	}
	links, err := uplink.New(uplink.Options{
		Coordinators: known, TLS: mtls.Client(credentials, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent), Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	operations, err := ledger.Open(ledger.Options{Path: ledgerFile(o.DataDir), Logger: o.Logger})
	if err != nil {
		return err
	}
	services := api.Options{
		Ledger: operations, Containers: engine, Prober: probe.Prober{}, Host: machine, Logger: o.Logger,
		Coordinators: newCoordinators(o.DataDir, links, o.Logger),
	}
	if routes != nil { // a nil driver would not be a nil interface.
		services.Routes = routes
	}
	server, err := newServer(credentials.ID(), services)
	if err != nil {
		return errors.Join(err, operations.Close(ctx))
	}
	o.Logger.Info("agent starts", "host", credentials.ID().Name, "cluster", credentials.ID().Cluster, "version", version.Version,
		"address", inventory.GetAddress(), "coordinators", strings.Join(known, ","))
	return serve(ctx, operations, server, links, machine, routes)
}

// serve runs the parts until ctx ends or one of them fails, and stops them in the reverse order.
func serve(
	ctx context.Context, operations *ledger.Ledger, server *grpc.Server, links *uplink.Uplink, machine *host.Host, routes *route.Caddy,
) error {
	// The parts outlive ctx: until the last operation has ended, its caller is to hear of it.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return machine.Run(work) })
	g.Go(func() error { return links.Run(work) })
	if routes != nil {
		g.Go(func() error { return routes.Run(work) })
	}
	g.Go(func() error { return server.Serve(links) })
	g.Go(func() error { return operations.AwaitFailure(work) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-work.Done():
		}
		defer stop()
		grace, end := context.WithTimeout(context.WithoutCancel(ctx), operationGrace)
		defer end()
		err := operations.Close(grace)
		stopServer(server)
		return err
	})
	return g.Wait()
}

// stopServer lets the last answers out, then ends the connections: a watch of the host would go on for ever.
func stopServer(server *grpc.Server) {
	timer := time.AfterFunc(answerGrace, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

// newServer returns the server that coordinators of our cluster, and nobody else, may call.
func newServer(own identity.ID, o api.Options) (*grpc.Server, error) {
	gate := grpcserver.NewGate(grpcserver.GateOptions{Logger: o.Logger, Lookup: func(c grpcserver.Caller) error {
		if c.ID.Role != accessv1.Role_ROLE_COORDINATOR || c.ID.Cluster != own.Cluster {
			return fmt.Errorf("it is not a coordinator of cluster %s", own.Cluster)
		}
		return nil
	}})
	server := grpcserver.New(gate,
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
	)
	if err := api.Register(server, o); err != nil {
		return nil, err
	}
	return server, gate.Check(server)
}

func newEngine(o Options, name, address string) (*container.Engine, error) {
	var policy container.Policy
	if o.PolicyFile != "" {
		var err error
		if policy, err = container.LoadPolicy(o.PolicyFile); err != nil {
			return nil, err
		}
	}
	return container.New(container.Options{
		DockerHost: o.DockerHost, HostName: name, Address: address, SecretsDir: o.SecretsDir, Policy: policy, Logger: o.Logger,
	})
}

// newRoutes returns the driver of the host's proxy; nil if it has none.
func newRoutes(o Options) (*route.Caddy, error) {
	switch o.RouteDriver {
	case "":
		return nil, nil
	case caddy:
		route.KeepQueued(o.Logger)
		return route.NewCaddy(o.CaddyAdmin, o.Logger, route.WithState(filepath.Join(o.DataDir, maintenanceFile)))
	default:
		return nil, fmt.Errorf("route driver %q is not known: use --route-driver %s", o.RouteDriver, caddy)
	}
}

// settings returns what the inventory says of the agent's own options.
func settings(o Options, coordinators []string) (*agentv1.Inventory, error) {
	first, last, err := portRange(o.PortRange)
	if err != nil {
		return nil, err
	}
	i := &agentv1.Inventory{
		AgentVersion: version.Version, Address: o.AdvertiseAddress, Labels: o.Labels, PortFirst: first, PortLast: last,
	}
	if o.RouteDriver != "" {
		i.RouteDrivers = []string{o.RouteDriver}
	}
	if i.GetAddress() == "" {
		if i.Address, err = addressTowards(coordinators[0]); err != nil {
			return nil, err
		}
	}
	if net.ParseIP(i.GetAddress()) == nil {
		return nil, fmt.Errorf("--advertise-address %q is not an IP address", i.GetAddress())
	}
	return i, nil
}

// addressTowards returns this host's address on the way to another. Nothing is sent.
func addressTowards(coordinator string) (string, error) {
	conn, err := net.Dial("udp", coordinator)
	if err != nil {
		return "", fmt.Errorf("find this host's address on the way to %s: %w; give it with --advertise-address", coordinator, err)
	}
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, errors.Join(err, conn.Close())
}

// portRange parses a range such as 20000-29999; empty means that one.
func portRange(s string) (first, last uint32, err error) {
	if s == "" {
		s = "20000-29999"
	}
	low, high, _ := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, fmt.Errorf("--port-range %q is not a range of ports like 20000-29999", s)
	}
	return uint32(a), uint32(b), nil
}

// Package api holds the coordinator's gRPC servers: each checks its request, reads the state or proposes a command, and maps the error. The
// behaviour is elsewhere: planning in runbook, deciding in state, running in procedure. The same servers serve gRPC and, through
// connect, JSON.
package api

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// Options of the servers. All fields are required.
type Options struct {
	// ID of this coordinator.
	ID      string
	State   *state.State
	Cluster *cluster.Cluster
	Hosts   *hosts.Hosts
	// Version of this coordinator's program.
	Version string
	Logger  *slog.Logger
}

// Servers are the coordinator's servers, for gRPC and for JSON alike.
type Servers struct {
	Host      *HostServer
	Stack     *StackServer
	Run       *RunServer
	Cluster   *ClusterServer
	Enroll    *EnrollServer
	Secret    *SecretServer
	Procedure *ProcedureServer
	Service   *ServiceServer
}

// New returns the servers.
func New(options Options) *Servers {
	b := &backend{Options: options, log: options.Logger.With("component", "api"), planner: &runbook.Planner{Conn: options.Hosts.Await}}
	return &Servers{
		Host: &HostServer{backend: b}, Stack: &StackServer{backend: b}, Run: &RunServer{backend: b}, Cluster: &ClusterServer{backend: b}, Enroll: &EnrollServer{backend: b}, Secret: &SecretServer{backend: b}, Procedure: &ProcedureServer{backend: b},
		Service: &ServiceServer{backend: b},
	}
}

// Register enters the servers into a gRPC server.
func (s *Servers) Register(g grpc.ServiceRegistrar) {
	coordinatorv1.RegisterHostServiceServer(g, s.Host)
	coordinatorv1.RegisterStackServiceServer(g, s.Stack)
	coordinatorv1.RegisterRunServiceServer(g, s.Run)
	coordinatorv1.RegisterClusterServiceServer(g, s.Cluster)
	coordinatorv1.RegisterEnrollServiceServer(g, s.Enroll)
	coordinatorv1.RegisterSecretServiceServer(g, s.Secret)
	coordinatorv1.RegisterProcedureServiceServer(g, s.Procedure)
	coordinatorv1.RegisterServiceServiceServer(g, s.Service)
}

// backend is what the servers share.
type backend struct {
	Options
	log     *slog.Logger
	planner *runbook.Planner
}

// read returns a view that holds everything that was acknowledged before the call, or, if the caller accepts that, what this coordinator has.
func (b *backend) read(ctx context.Context, stale bool) (*state.View, error) {
	if stale {
		if err := b.Cluster.Stale(); err != nil {
			return nil, rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_STALE, "%s: ask another coordinator", err)
		}
		return b.State.View(), nil
	}
	if err := b.Cluster.Read(ctx); err != nil {
		return nil, b.mapError(err)
	}
	return b.State.View(), nil
}

// propose commits a command on behalf of the caller. A refusal comes back as its error.
func (b *backend) propose(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error) {
	result, _, err := b.proposeAt(ctx, command)
	return result, err
}

// proposeAndView is propose, and a view that holds what the command has done: it needs no word of the followers, as a read of the newest state does.
func (b *backend) proposeAndView(ctx context.Context, command *raftv1.Command) (*raftv1.Result, *state.View, error) {
	result, index, err := b.proposeAt(ctx, command)
	if err != nil {
		return nil, nil, err
	}
	if err := b.State.Wait(ctx, index); err != nil {
		return nil, nil, b.mapError(err)
	}
	return result, b.State.View(), nil
}

func (b *backend) proposeAt(ctx context.Context, command *raftv1.Command) (*raftv1.Result, uint64, error) {
	command.Version, command.Actor = state.CommandVersion, actor(ctx)
	result, index, err := b.Cluster.Propose(ctx, command)
	if err != nil {
		return nil, 0, b.mapError(err)
	}
	if refusal := result.GetError(); refusal != nil {
		return nil, 0, refusalError(refusal)
	}
	return result, index, nil
}

func actor(ctx context.Context) string {
	caller, ok := grpcserver.CallerFrom(ctx)
	if !ok {
		return "nobody"
	}
	return caller.String()
}

const (
	requestIDLimit = 64
	reasonLimit    = 1000
	tokenLife      = 15 * time.Minute
	tokenLifeLimit = 24 * time.Hour
)

func invalid(format string, args ...any) error {
	return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, format, args...)
}

func checkRequest(requestID, reason string, required bool) error {
	switch {
	case requestID == "" && required:
		return invalid("request_id is empty: give each new request an id of its own, so that it can be repeated safely")
	case len(requestID) > requestIDLimit:
		return invalid("request_id has %d characters: at most %d are allowed", len(requestID), requestIDLimit)
	case len(reason) > reasonLimit:
		return invalid("reason has %d characters: at most %d are allowed", len(reason), reasonLimit)
	}
	return nil
}

// life returns how long a token lives.
func life(given time.Duration) (time.Duration, error) {
	switch {
	case given == 0:
		return tokenLife, nil
	case given < 0 || given > tokenLifeLimit:
		return 0, invalid("ttl is %s: it must be more than 0 and at most %s", given, tokenLifeLimit)
	}
	return given, nil
}

func notFound(reason coordinatorv1.ErrorReason, format string, args ...any) error {
	return rpcerr.New(codes.NotFound, reason, "%s", fmt.Sprintf(format, args...))
}

package coordinator

import (
	"bytes"
	"context"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// lookup refuses a caller that the registry does not have, on every call: a certificate alone makes nobody somebody.
func (c *coordinator) lookup(caller grpcserver.Caller) error {
	known := c.find(caller.ID)
	switch {
	case known == nil && c.state.View().Meta().GetClusterId() == "" && caller.ID.Role == accessv1.Role_ROLE_COORDINATOR:
		return nil // This coordinator has joined and got no state yet; those who bring it are coordinators.
	case known == nil:
		return unknownIdentity("%s is not in the registry: join or log in again", caller.ID)
	case known.GetEvicted():
		return unknownIdentity("%s was evicted", caller.ID)
	case known.GetRole() != caller.ID.Role:
		return unknownIdentity("%s is registered with another role", caller.ID)
	case !bytes.Equal(known.GetSerial(), caller.Serial):
		return unknownIdentity("the certificate of %s was replaced by a newer one", caller.ID)
	}
	return nil
}

// find looks into the registry. Who is not there may have joined a moment ago on another coordinator, so the leader is asked before it counts.
func (c *coordinator) find(id identity.ID) *raftv1.Identity {
	if known := c.state.View().Identity(id.String()); known != nil {
		return known
	}
	ctx, cancel := context.WithTimeout(context.Background(), registryTime)
	defer cancel()
	if err := c.cluster.Read(ctx); err != nil {
		return nil
	}
	return c.state.View().Identity(id.String())
}

// registeredHost decides whether an agent's connection is taken.
func (c *coordinator) registeredHost(id identity.ID) error {
	known := c.find(id)
	if known == nil || known.GetEvicted() || known.GetRole() != accessv1.Role_ROLE_AGENT {
		return unknownIdentity("%s is not in the registry", id)
	}
	return nil
}

func unknownIdentity(format string, args ...any) error {
	return rpcerr.New(codes.Unauthenticated, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, format, args...)
}

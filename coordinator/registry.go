package coordinator

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// registryTime is how long a caller whom this coordinator does not know waits for the leader's word.
const registryTime = 2 * time.Second

// registry decides who is somebody. A certificate alone makes nobody somebody: the replicated state must have it, with this very serial.
type registry struct {
	state *state.State
	// read returns when the state holds everything that was committed before the call.
	read func(ctx context.Context) error
	// leader of the cluster by its id; empty while this coordinator knows none.
	leader func() string
}

// lookup refuses a caller that the registry does not have, on every call.
func (r *registry) lookup(caller grpcserver.Caller) error {
	final, err := r.judge(caller)
	if err == nil || final {
		return err
	}
	// Who is not there, or has another certificate, may have joined a moment ago on another coordinator, so the leader's word counts.
	if r.confirm() != nil {
		return rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER,
			"%s cannot be looked up: this coordinator does not know it, and reaches no leader that might; ask another coordinator", caller)
	}
	_, err = r.judge(caller)
	return err
}

// admit decides about a connection. Callers of gRPC are looked up at every call, and agents when they are about to serve; what is left are
// other coordinators that want to speak raft.
//
// A coordinator that is behind gets the newer state, and with it the newer coordinators, over these very connections: if it refused all whom
// it does not know, and they were the leader, it would stay behind for ever. So an unknown one is refused only on the word of a leader. One
// that is known to be evicted is refused always: it gets a new certificate if it ever comes back. Raft itself counts no vote of strangers.
func (r *registry) admit(alpn string, caller grpcserver.Caller) error {
	if alpn != mtls.ALPNRaft {
		return nil
	}
	final, err := r.judge(caller)
	if err == nil || final {
		return err
	}
	if r.leader() == "" || r.confirm() != nil {
		return nil
	}
	_, err = r.judge(caller)
	return err
}

// confirm brings the state up to date.
func (r *registry) confirm() error {
	ctx, cancel := context.WithTimeout(context.Background(), registryTime)
	defer cancel()
	return r.read(ctx)
}

// judge returns what the registry, as this coordinator has it, has against a caller, and whether that is final: no newer registry could say
// otherwise.
func (r *registry) judge(caller grpcserver.Caller) (final bool, err error) {
	view := r.state.View()
	known := view.Identity(caller.ID.String())
	switch {
	case known == nil && view.Meta().GetClusterId() == "" && caller.ID.Role == accessv1.Role_ROLE_COORDINATOR:
		return false, nil // This coordinator has joined and got no state yet; those who bring it are coordinators.
	case known == nil:
		return false, unknownIdentity("%s is not in the registry: join or log in again", caller.ID)
	case known.GetRole() != caller.ID.Role:
		return false, unknownIdentity("%s is registered with another role", caller.ID)
	case !bytes.Equal(known.GetSerial(), caller.Serial):
		return false, unknownIdentity("the certificate of %s was replaced by a newer one", caller.ID)
	case known.GetEvicted():
		return true, unknownIdentity("%s was evicted", caller.ID)
	}
	return false, nil
}

func unknownIdentity(format string, args ...any) error {
	return rpcerr.New(codes.Unauthenticated, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, format, args...)
}

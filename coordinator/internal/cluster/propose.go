package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ErrOutcomeUnknown is returned when a command may or may not have been committed, or may yet be. Repeating it is safe only with the
// same request id, or if it is idempotent by itself.
var ErrOutcomeUnknown = errors.New("cluster: outcome unknown")

// ErrInvalidCommand is returned for a command that no member would accept. Nothing was done.
var ErrInvalidCommand = errors.New("cluster: invalid command")

const (
	backoffFirst = time.Millisecond
	backoffLast  = 250 * time.Millisecond
)

// Propose commits a command on the leader, wherever that is, and returns what applying it gave and its index. When it returns, the
// leader's FSM has applied the command; this member's may be behind (FSM.Wait).
//
// It waits 5 s for a leader and tries for 10 s in all. Refusals of members that do not lead are tried again. When an answer is lost, a
// command with a request id is tried again, because the FSM recognises it; any other ends in ErrOutcomeUnknown. An unset version of the
// command is filled in; its time is always the leader's at the commit. cmd itself stays as it is.
func (c *Cluster) Propose(ctx context.Context, cmd *raftv1.Command) (*raftv1.Result, uint64, error) {
	cmd = outermost(cmd)
	if cmd.GetVersion() == 0 {
		cmd.Version = commandVersion
	}
	if err := validCommand(cmd, proto.Size(cmd)); err != nil { // said at once, not when there is a leader
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var (
		result *raftv1.Result
		index  uint64
		lost   error // an attempt whose outcome is unknown
	)
	err := c.retry(ctx, func() (err error) {
		result, index, err = c.proposeOnce(ctx, cmd)
		if errors.Is(err, ErrOutcomeUnknown) {
			lost = err
			if cmd.GetRequestId() != "" && ctx.Err() == nil {
				return again{err}
			}
		}
		return err
	})
	if err != nil && lost != nil && !errors.Is(err, ErrOutcomeUnknown) {
		return nil, 0, fmt.Errorf("%w; then: %w", lost, err)
	}
	return result, index, err
}

// again marks an error after which a call is tried again although it is neither ErrNoLeader nor ErrNotLeader.
type again struct{ error }

func (a again) Unwrap() error { return a.error }

// retry calls until it is done, fails for good, ctx ends, or no leader was found for leaderWait.
func (c *Cluster) retry(ctx context.Context, call func() error) error {
	pause := backoffFirst
	var leaderless time.Time
	for {
		err := call()
		var a again
		retriable := errors.Is(err, ErrNoLeader) || errors.Is(err, ErrNotLeader) || errors.As(err, &a)
		if err == nil || !retriable {
			return err
		}
		if errors.As(err, &a) {
			err = a.error
		}
		switch {
		case !errors.Is(err, ErrNoLeader):
			leaderless = time.Time{}
		case leaderless.IsZero():
			leaderless = time.Now()
		case time.Since(leaderless) > leaderWait:
			return err
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			if errors.Is(err, ErrNotLeader) { // of no use to a caller who asked any member
				err = ErrNoLeader
			}
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
		pause = min(2*pause, backoffLast)
	}
}

// proposeOnce commits here if this member leads, and asks the leader otherwise. ErrNoLeader and ErrNotLeader mean that nothing was done.
func (c *Cluster) proposeOnce(ctx context.Context, cmd *raftv1.Command) (*raftv1.Result, uint64, error) {
	r, leave, ok := c.enter()
	if !ok {
		return nil, 0, ErrNoLeader
	}
	defer leave()
	addr, here := c.locate(r)
	switch {
	case here:
		return c.commit(ctx, cmd)
	case addr == "":
		return nil, 0, ErrNoLeader
	default:
		return c.forward(ctx, addr, cmd)
	}
}

// locate tells where the leader is: its address, or that it is this member.
func (c *Cluster) locate(r *raft.Raft) (addr string, here bool) {
	if r.State() == raft.Leader {
		return c.opts.Address, true
	}
	a, id := r.LeaderWithID()
	if string(id) == c.opts.ID { // just lost
		return "", false
	}
	return string(a), false
}

// commit appends the command to the log of this member, which must lead, and waits until it is applied. It stamps the command: the state
// lets its time never go back, so one proposer whose clock is ahead would let every deadline of the cluster pass.
func (c *Cluster) commit(ctx context.Context, cmd *raftv1.Command) (*raftv1.Result, uint64, error) {
	cmd = proto.CloneOf(cmd)
	cmd.Now = timestamppb.New(c.opts.Now())
	data, err := encodeCommand(cmd)
	if err != nil {
		return nil, 0, err
	}
	r, leave, ok := c.enter()
	if !ok {
		return nil, 0, ErrNotLeader
	}
	type answer struct {
		result *raftv1.Result
		index  uint64
		err    error
	}
	answers := make(chan answer, 1)
	go func() { // refuseCalls waits for it
		defer leave()
		result, index, err := apply(r, data)
		answers <- answer{result, index, err}
	}()
	select {
	case a := <-answers:
		return a.result, a.index, a.err
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// apply appends a command and waits until it is applied.
func apply(r *raft.Raft, data []byte) (*raftv1.Result, uint64, error) {
	f := r.Apply(data, proposeTimeout)
	if err := f.Error(); err != nil {
		return nil, 0, applyError(err)
	}
	result, ok := f.Response().(*raftv1.Result)
	if !ok { // never: the adapter returns nothing else
		return nil, 0, fmt.Errorf("%w: the state machine answered %T", ErrOutcomeUnknown, f.Response())
	}
	return result, f.Index(), nil
}

// applyError tells a definite no from an open outcome.
func applyError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	default: // leadership lost, shutdown, a failed write of the leader's own log, which others may have
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// outermost copies a command without what is inside of it, which is only read from here on.
func outermost(cmd *raftv1.Command) *raftv1.Command {
	shallow := &raftv1.Command{}
	from, to := cmd.ProtoReflect(), shallow.ProtoReflect()
	from.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		to.Set(field, value)
		return true
	})
	to.SetUnknown(from.GetUnknown())
	return shallow
}

func encodeCommand(cmd *raftv1.Command) ([]byte, error) {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidCommand, err)
	}
	return data, validCommand(cmd, len(data))
}

// validCommand refuses a command that no member would accept, or that is too large for the log.
func validCommand(cmd *raftv1.Command, size int) error {
	if err := checkCommand(cmd); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidCommand, err)
	}
	if size > maxCommandBytes {
		return fmt.Errorf("%w: it has %d bytes, at most %d fit in the log; split it", ErrInvalidCommand, size, maxCommandBytes)
	}
	return nil
}

// forward asks the leader at addr.
func (c *Cluster) forward(ctx context.Context, addr string, cmd *raftv1.Command) (*raftv1.Result, uint64, error) {
	data, err := encodeCommand(cmd)
	if err != nil {
		return nil, 0, err
	}
	cc, err := c.peer(ctx, addr)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	var at peer.Peer
	resp, err := coordinatorv1.NewPeerServiceClient(cc).Propose(ctx, &coordinatorv1.ProposeRequest{Command: data}, grpc.Peer(&at))
	if err != nil {
		return nil, 0, peerError(ctx, cc, addr, err, at.Addr != nil)
	}
	var result raftv1.Result
	if err := proto.Unmarshal(resp.GetResult(), &result); err != nil { // it is committed, but what came out of it cannot be told
		return nil, 0, fmt.Errorf("%w: result of coordinator %s: %w", ErrOutcomeUnknown, addr, err)
	}
	return &result, resp.GetIndex(), nil
}

// peerError sorts the error of a question to the leader. sent says whether it may have reached the leader: grpc knows the peer of a call
// only if the call was given to a connection.
func peerError(ctx context.Context, cc grpc.ClientConnInterface, addr string, err error, sent bool) error {
	wrap := func(kind error) error { return fmt.Errorf("%w: coordinator %s: %s", kind, addr, rpcerr.Message(err)) }
	switch rpcerr.Reason(err) {
	case reason(coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER):
		return wrap(ErrNotLeader)
	case reason(coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN):
		return wrap(ErrOutcomeUnknown)
	case reason(coordinatorv1.ErrorReason_ERROR_REASON_INVALID), reason(coordinatorv1.ErrorReason_ERROR_REASON_TOO_LARGE):
		return wrap(ErrInvalidCommand)
	}
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return fmt.Errorf("coordinator %s refused: %w", addr, err)
	case codes.Unavailable:
		if r, ok := cc.(interface{ ResetConnectBackoff() }); ok {
			r.ResetConnectBackoff() // a leader that has just come back must not wait for the client's patience
		}
	}
	if !sent && ctx.Err() == nil {
		return wrap(ErrNoLeader)
	}
	return wrap(ErrOutcomeUnknown)
}

// reason is the name of an ErrorReason as it is on the wire.
func reason(r coordinatorv1.ErrorReason) string {
	return rpcerr.Reason(rpcerr.New(codes.Unknown, r, ""))
}

// peer returns the connection to the member at addr.
func (c *Cluster) peer(ctx context.Context, addr string) (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	cc, ok := c.peers[addr]
	c.mu.Unlock()
	if ok {
		return cc, nil
	}
	cc, err := c.opts.DialPeer(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to coordinator %s: %w", addr, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if first, ok := c.peers[addr]; ok { // another call was quicker
		if closer, ok := cc.(interface{ Close() error }); ok {
			_ = closer.Close() // it was never used
		}
		return first, nil
	}
	c.peers[addr] = cc
	return cc, nil
}

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ErrRestore is returned when a snapshot was not restored. Nothing was changed.
var ErrRestore = errors.New("cluster: snapshot not restored")

const (
	// restoreTime bounds a restore: the members must get the whole snapshot and confirm it.
	restoreTime = 2 * time.Minute
	// restoreGap of indexes is left free, so that what is committed while a restore begins stays below it: indexes never go back.
	restoreGap = 1 << 20
)

// RemoveMember takes a member out of the cluster, through any member. A leader that is to go hands over first. Its errors are statuses:
// PEER_NOT_FOUND, and QUORUM if those that are left and work would not be a majority. A repeated call is PEER_NOT_FOUND.
func (c *Cluster) RemoveMember(ctx context.Context, id string) error {
	lost := false
	return c.onLeader(ctx, func(r *raft.Raft) error {
		return settle(c.removeHere(r, id), &lost)
	}, func(ctx context.Context, peers coordinatorv1.PeerServiceClient) error {
		_, err := peers.RemoveMember(ctx, &coordinatorv1.RemoveMemberRequest{Id: id})
		return settle(err, &lost)
	})
}

// settle lets a removal whose outcome was lost be tried again: if the member is not there then, it was removed.
func settle(err error, lost *bool) error {
	switch {
	case errors.Is(err, ErrOutcomeUnknown), rpcerr.Reason(err) == reason(coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN):
		*lost = true
		return again{err}
	case *lost && rpcerr.Reason(err) == reason(coordinatorv1.ErrorReason_ERROR_REASON_PEER_NOT_FOUND):
		return nil
	}
	return err
}

// HandOver lets a member lead, through any member; an empty id lets raft choose the one that is furthest. It returns when the present leader
// leads no longer. Its errors are statuses: PEER_NOT_FOUND, and QUORUM for one that cannot lead.
func (c *Cluster) HandOver(ctx context.Context, id string) error {
	return c.onLeader(ctx, func(r *raft.Raft) error {
		return c.handOverHere(r, id)
	}, func(ctx context.Context, peers coordinatorv1.PeerServiceClient) error {
		_, err := peers.HandOver(ctx, &coordinatorv1.HandOverRequest{Id: id})
		return err
	})
}

// onLeader does something here if this member leads, and asks the leader otherwise.
func (c *Cluster) onLeader(ctx context.Context, here func(*raft.Raft) error, there func(context.Context, coordinatorv1.PeerServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*proposeTimeout)
	defer cancel()
	return c.retry(ctx, func() error {
		r, leave, ok := c.enter()
		if !ok {
			return ErrNoLeader
		}
		defer leave()
		addr, leads := c.locate(r)
		switch {
		case leads:
			return here(r)
		case addr == "":
			return ErrNoLeader
		}
		cc, err := c.peer(ctx, addr)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
		err = there(ctx, coordinatorv1.NewPeerServiceClient(cc))
		var a again
		if err == nil || definite(err) || errors.As(err, &a) {
			return err
		}
		return peerError(ctx, cc, addr, err, true)
	})
}

// definite says that a status of another member is for the caller, not about the way there.
func definite(err error) bool {
	switch rpcerr.Reason(err) {
	case reason(coordinatorv1.ErrorReason_ERROR_REASON_PEER_NOT_FOUND), reason(coordinatorv1.ErrorReason_ERROR_REASON_QUORUM):
		return true
	}
	return false
}

func noPeer(id string) error {
	return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_PEER_NOT_FOUND,
		"the cluster has no coordinator %q: `musterctl operator raft peers` lists them", id)
}

func noQuorum(format string, args ...any) error {
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_QUORUM, format, args...)
}

// removeHere is RemoveMember on the leader.
func (c *Cluster) removeHere(r *raft.Raft, id string) error {
	peers, err := c.Peers()
	if err != nil {
		return err
	}
	if err := removable(peers, id); err != nil {
		return err
	}
	if id == c.opts.ID {
		// A leader that removes itself would leave the others to miss it first.
		if err := c.handOverHere(r, ""); err != nil {
			return err
		}
		return ErrNotLeader // ask the one that leads now
	}
	if err := r.RemoveServer(raft.ServerID(id), 0, proposeTimeout).Error(); err != nil {
		return fmt.Errorf("remove member %s: %w", id, applyError(err))
	}
	c.logger.Info("member removed", "member", id)
	return nil
}

// removable refuses a removal after which those that work would not be a majority.
func removable(peers []Peer, id string) error {
	found := false
	voters, healthy := 0, 0
	for _, p := range peers {
		if p.ID == id {
			found = true
			continue
		}
		if p.Voter {
			voters++
			if p.Reachable {
				healthy++
			}
		}
	}
	switch {
	case !found:
		return noPeer(id)
	case voters == 0:
		return noQuorum("%s is the last voter: without it there is no cluster; let another coordinator join first", id)
	case healthy < voters/2+1:
		return noQuorum("without %s only %d of %d voters would answer, and %d are needed: start those that do not answer, or remove them first",
			id, healthy, voters, voters/2+1)
	}
	return nil
}

// handOverHere is HandOver on the leader.
func (c *Cluster) handOverHere(r *raft.Raft, id string) error {
	if id == c.opts.ID {
		return nil
	}
	peers, err := c.Peers()
	if err != nil {
		return err
	}
	others := 0
	var to *Peer
	for i, p := range peers {
		if p.ID == id {
			to = &peers[i]
		}
		if p.ID != c.opts.ID && p.Voter && p.Reachable {
			others++
		}
	}
	var transfer raft.Future
	switch {
	case id == "" && others == 0:
		return noQuorum("no other voter answers: nobody could lead but %s", c.opts.ID)
	case id == "":
		transfer = r.LeadershipTransfer()
	case to == nil:
		return noPeer(id)
	case !to.Voter || !to.Reachable:
		return noQuorum("%s cannot lead: it does not vote yet, or does not answer", id)
	default:
		transfer = r.LeadershipTransferToServer(raft.ServerID(to.ID), raft.ServerAddress(to.Address))
	}
	if err := transfer.Error(); err != nil && r.State() == raft.Leader {
		c.logger.Warn("leadership not handed over", "to", id, "err", err)
		return fmt.Errorf("%w: hand over the leadership: %w", ErrNotLeader, err) // whoever leads when it is tried again
	}
	c.logger.Info("leadership handed over", "to", id)
	return nil
}

// Restore replaces the state of all members by a snapshot of the FSM, on the leader only (ErrNotLeader). snapshot gets the index that
// the state will have, which is above every index until now, and returns the state. The members stay as they are, and the work of the leader begins
// anew. It returns the index. ErrOutcomeUnknown means that leadership was lost before a majority had it: look, and repeat it.
func (c *Cluster) Restore(ctx context.Context, snapshot func(index uint64) ([]byte, error)) (uint64, error) {
	r, leave, ok := c.enter()
	if !ok {
		return 0, ErrNotLeader
	}
	defer leave()
	if r.State() != raft.Leader {
		return 0, ErrNotLeader
	}
	// Who is not sure to lead must not throw away its state.
	if _, err := c.readIndex(ctx); err != nil {
		return 0, err
	}
	before := r.LastIndex() + restoreGap
	index := before + 1 // raft takes the one after the snapshot's
	data, err := snapshot(index)
	if err != nil {
		return 0, err
	}
	meta := &raft.SnapshotMeta{Version: 1, Index: before, Term: r.CurrentTerm(), Size: int64(len(data))}
	if err := r.Restore(meta, bytes.NewReader(data), restoreTime); err != nil {
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) {
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		if errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrRaftShutdown) {
			return 0, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err) // this member has it; whether the others get it is theirs to say
		}
		return 0, fmt.Errorf("%w: %w", ErrRestore, err)
	}
	c.logger.Warn("snapshot restored", "index", index)
	select {
	case c.anew <- struct{}{}:
	default: // it is told already
	}
	return index, nil
}

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Peer is a member of the cluster and how it stands.
type Peer struct {
	// ID and Address of the member.
	ID, Address string
	// Voter says that it votes.
	Voter bool
	// Leader says that this member takes it for the leader.
	Leader bool
	// Reachable says that it answered; what follows is zero if it did not.
	Reachable bool
	// Version of its program.
	Version string
	// CommitIndex that it knows, and AppliedIndex of the last command in its FSM.
	CommitIndex, AppliedIndex uint64
	// Trails says by how many entries it is behind the furthest member that answered.
	Trails uint64
	// Term that it knows.
	Term uint64
	// LastContact with the leader; negative if it has heard none.
	LastContact time.Duration
}

// AddMember lets a coordinator into the cluster, on the leader only (ErrNotLeader). It gets no vote until it has caught up, which the
// leader sees to by itself. A member that is there already stays as it is; it cannot change its address, as an identity cannot join twice.
func (c *Cluster) AddMember(ctx context.Context, id, addr string) error {
	if id == "" || addr == "" {
		return fmt.Errorf("%w: a member needs an id and an address, got %q and %q", ErrInvalidCommand, id, addr)
	}
	r, leave, ok := c.enter()
	if !ok {
		return ErrNotLeader
	}
	if r.State() != raft.Leader {
		leave()
		return ErrNotLeader
	}
	for _, s := range servers(r) {
		switch {
		case string(s.ID) == id && string(s.Address) == addr:
			leave()
			return nil
		case string(s.ID) == id:
			leave()
			return fmt.Errorf("%w: member %s is at %s and cannot move to %s", ErrInvalidCommand, id, s.Address, addr)
		case string(s.Address) == addr:
			leave()
			return fmt.Errorf("%w: address %s is that of member %s", ErrInvalidCommand, addr, s.ID)
		}
	}
	done := make(chan error, 1)
	go func() { // refuseCalls waits for it
		defer leave()
		done <- r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, proposeTimeout).Error()
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("add member %s: %w", id, applyError(err))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("add member %s: %w: %w", id, ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// Members returns the ids of the members by the newest configuration. It asks nobody.
func (c *Cluster) Members() ([]string, error) {
	r, leave, ok := c.enter()
	if !ok {
		return nil, ErrNoLeader
	}
	defer leave()
	var ids []string
	for _, s := range servers(r) {
		ids = append(ids, string(s.ID))
	}
	return ids, nil
}

// Peers returns the members in order of their ids. It asks all of them at once and waits 1 s at most; it needs no leader.
func (c *Cluster) Peers() ([]Peer, error) {
	r, leave, ok := c.enter()
	if !ok {
		return nil, ErrNoLeader
	}
	defer leave()
	_, leader := r.LeaderWithID()
	members := servers(r)
	peers := make([]Peer, len(members))
	var asked sync.WaitGroup
	for i, s := range members {
		p := &peers[i]
		*p = Peer{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter, Leader: s.ID == leader}
		asked.Go(func() {
			status := c.status(r)
			if p.ID != c.opts.ID {
				var err error
				if status, err = c.peerStatus(context.Background(), p.Address); err != nil || status.GetId() != p.ID {
					return
				}
			}
			p.fill(status)
		})
	}
	asked.Wait()
	var furthest uint64
	for _, p := range peers {
		furthest = max(furthest, p.CommitIndex)
	}
	for i := range peers {
		if peers[i].Reachable {
			peers[i].Trails = furthest - peers[i].CommitIndex
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return peers, nil
}

func (p *Peer) fill(s *coordinatorv1.PeerStatusResponse) {
	p.Reachable = true
	p.Version = s.GetVersion()
	p.CommitIndex = s.GetCommitIndex()
	p.AppliedIndex = s.GetAppliedIndex()
	p.Term = s.GetTerm()
	p.LastContact = -1
	if s.GetLastContact() != nil {
		p.LastContact = s.GetLastContact().AsDuration()
	}
}

// peerStatus asks the member at addr.
func (c *Cluster) peerStatus(ctx context.Context, addr string) (*coordinatorv1.PeerStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	cc, err := c.peer(ctx, addr)
	if err != nil {
		return nil, err
	}
	resp, err := coordinatorv1.NewPeerServiceClient(cc).PeerStatus(ctx, &coordinatorv1.PeerStatusRequest{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask coordinator %s", addr), peerError(ctx, cc, addr, err, false))
	}
	return resp, nil
}

// servers are the members by the newest configuration, committed or not.
func servers(r *raft.Raft) []raft.Server {
	f := r.GetConfiguration()
	if f.Error() != nil { // never: raft answers from memory
		return nil
	}
	return f.Configuration().Servers
}

func voters(r *raft.Raft) []raft.Server {
	return slices.DeleteFunc(slices.Clone(servers(r)), func(s raft.Server) bool { return s.Suffrage != raft.Voter })
}

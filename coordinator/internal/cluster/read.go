package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// readBatch is how many reads share one question to the followers, at most.
const readBatch = 256

// readRequest waits for an index. The channel has room for the answer, so that nobody waits for a reader that has gone.
type readRequest chan readAnswer

type readAnswer struct {
	index uint64
	err   error
}

// Read returns when this member's FSM holds everything that was committed before the call: after it, the FSM may be read. It waits 5 s
// for a leader and takes 10 s at most.
func (c *Cluster) Read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var index uint64
	err := c.retry(ctx, func() (err error) {
		index, err = c.readOnce(ctx)
		if errors.Is(err, ErrOutcomeUnknown) && ctx.Err() == nil { // a read that got no answer has done nothing
			return again{ErrNoLeader}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := c.opts.FSM.Wait(ctx, index); err != nil {
		return fmt.Errorf("wait for the state at index %d: %w", index, err)
	}
	return nil
}

func (c *Cluster) readOnce(ctx context.Context) (uint64, error) {
	r, leave, ok := c.enter()
	if !ok {
		return 0, ErrNoLeader
	}
	defer leave()
	addr, here := c.locate(r)
	switch {
	case here:
		return c.readIndex(ctx)
	case addr == "":
		return 0, ErrNoLeader
	}
	cc, err := c.peer(ctx, addr)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	resp, err := coordinatorv1.NewPeerServiceClient(cc).ReadIndex(ctx, &coordinatorv1.ReadIndexRequest{})
	if err != nil {
		return 0, peerError(ctx, cc, addr, err, false)
	}
	return resp.GetIndex(), nil
}

// readIndex returns, on the leader, an index up to which a member must have applied before it may be read.
func (c *Cluster) readIndex(ctx context.Context) (uint64, error) {
	_, leave, ok := c.enter()
	if !ok {
		return 0, ErrNotLeader
	}
	defer leave() // the server of reads runs until the last call has left
	req := make(readRequest, 1)
	select {
	case c.reads <- req:
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
	select {
	case a := <-req:
		return a.index, a.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// serveReads answers reads in batches: all that wait when a batch begins are covered by one question to the followers.
func (c *Cluster) serveReads(ctx context.Context, r *raft.Raft) {
	var ready uint64 // term whose barrier has passed
	batch := make([]readRequest, 0, readBatch)
	for {
		select {
		case <-ctx.Done():
			return
		case req := <-c.reads:
			batch = append(batch[:0], req)
		}
		for full := false; !full && len(batch) < readBatch; {
			select {
			case req := <-c.reads:
				batch = append(batch, req)
			default:
				full = true
			}
		}
		var a readAnswer
		a.index, a.err = c.confirm(r, &ready)
		for _, req := range batch {
			req <- a
		}
	}
}

// confirm proves that this member still leads, and returns the index of its FSM.
//
// A leader's FSM may lack what earlier leaders acknowledged until a barrier of its own term has passed; after that it holds every
// acknowledged command as long as the term is the same. raft.AppliedIndex would not do: it counts what was handed to the FSM, not what
// the FSM has applied.
func (c *Cluster) confirm(r *raft.Raft, ready *uint64) (uint64, error) {
	term := r.CurrentTerm()
	if r.State() != raft.Leader {
		return 0, ErrNotLeader
	}
	if *ready != term {
		if err := r.Barrier(proposeTimeout).Error(); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		if r.CurrentTerm() != term {
			return 0, ErrNotLeader
		}
		*ready = term
	}
	if err := r.VerifyLeader().Error(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	if r.CurrentTerm() != term {
		return 0, ErrNotLeader
	}
	return c.opts.FSM.Index(), nil
}

package state

import (
	"crypto/sha256"
	"encoding/hex"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// putProcedure stores a version of a procedure. The same text again makes no new version.
func (c *change) putProcedure(op *raftv1.PutProcedure) (*raftv1.Result, error) {
	given := op.GetProcedure()
	if given.GetName() == "" || len(given.GetSource()) == 0 {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "a procedure needs a name and a text, got %q and %d bytes", given.GetName(), len(given.GetSource()))
	}
	sum := sha256.Sum256(given.GetSource())
	digest := hex.EncodeToString(sum[:])
	before := c.view().Procedure(given.GetName())
	if before.GetDigest() == digest {
		return &raftv1.Result{Procedure: before}, nil
	}
	stored := &coordinatorv1.StoredProcedure{
		Name: given.GetName(), Version: before.GetVersion() + 1, Source: given.GetSource(), Digest: digest, Title: given.GetTitle(),
		StoredAt: c.stamp(), StoredBy: c.actor,
	}
	c.put(tableProcedure, stored.GetName(), stored)
	return &raftv1.Result{Procedure: stored}, nil
}

// dropProcedure forgets a procedure. Its runs hold their own plans.
func (c *change) dropProcedure(op *raftv1.DropProcedure) (*raftv1.Result, error) {
	stored := c.view().Procedure(op.GetName())
	if stored == nil {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_NOT_FOUND, "there is no procedure %q: `musterctl procedure list` shows them", op.GetName())
	}
	c.drop(tableProcedure, stored.GetName(), stored)
	return &raftv1.Result{Procedure: stored}, nil
}

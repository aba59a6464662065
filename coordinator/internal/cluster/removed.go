package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/spheroseg/muster/internal/durable"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ErrRemoved is returned by New and Run of a member that was taken out of the cluster for good.
var ErrRemoved = errors.New("cluster: this coordinator was removed from the cluster")

const (
	removedFile = "removed"
	// askEvery is how often a member asks the others whether it is still one of them.
	askEvery = 2 * time.Second
)

// checkRemoved refuses the directory of a member that was told that it is none any more.
func checkRemoved(dir, id string) error {
	path := filepath.Join(dir, removedFile)
	at, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read whether this member was removed: %w", err)
	}
	return fmt.Errorf("%w (%s learnt it at %s): its data directory is of no use any more: to have a coordinator on this machine again, "+
		"make a token and join under another name in an empty data directory", ErrRemoved, id, at)
}

// awaitRemoval returns nil when ctx ends, and ErrRemoved when another member says that this one is none any more. Raft would not tell: a
// member that was removed while it was down has no leader, for ever, and one that the others left behind when the cluster was recovered
// from a lost quorum would go on as if it were the cluster.
func (c *Cluster) awaitRemoval(ctx context.Context, r *raft.Raft) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, server := range servers(r) {
			if string(server.ID) == c.opts.ID || !c.disowned(ctx, string(server.Address)) {
				continue
			}
			at := []byte(c.opts.Now().UTC().Format(time.RFC3339))
			err := durable.WriteFile(filepath.Join(c.dir, removedFile), at, 0o600)
			return errors.Join(fmt.Errorf("%w: %s says so: this coordinator (%s) serves nothing any more; its data directory is of no use, "+
				"and a coordinator on this machine must join anew under another name", ErrRemoved, server.ID, c.opts.ID), err)
		}
	}
}

// disowned asks the member at addr for its status. A member answers UNKNOWN_IDENTITY only when the newest registry has no such coordinator.
func (c *Cluster) disowned(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	cc, err := c.peer(ctx, addr)
	if err != nil {
		return false
	}
	_, err = coordinatorv1.NewPeerServiceClient(cc).PeerStatus(ctx, &coordinatorv1.PeerStatusRequest{})
	return rpcerr.Reason(err) == reason(coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY)
}

package coordinatortest

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Snapshots answers the streams of ClusterService.
type Snapshots struct {
	// Save answers SaveSnapshot.
	Save func(grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error
	// Restore answers RestoreSnapshot.
	Restore func(grpc.ClientStreamingServer[coordinatorv1.RestoreSnapshotRequest, coordinatorv1.RestoreSnapshotResponse]) error
}

// OnSnapshots lets a node answer the saving and restoring of snapshots.
func (n *Node) OnSnapshots(s Snapshots) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snapshots = s
}

// clusters serves ClusterService.
type clusters struct {
	coordinatorv1.UnimplementedClusterServiceServer
	node *Node
}

func (c *clusters) scripted() Snapshots {
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return c.node.snapshots
}

// SaveSnapshot is answered by what OnSnapshots set.
func (c *clusters) SaveSnapshot(q *coordinatorv1.SaveSnapshotRequest, s grpc.ServerStreamingServer[coordinatorv1.SaveSnapshotResponse]) error {
	c.node.record("SaveSnapshot", q)
	if save := c.scripted().Save; save != nil {
		return save(s)
	}
	return status.Error(codes.Unimplemented, "this test saves no snapshot")
}

// RestoreSnapshot is answered by what OnSnapshots set.
func (c *clusters) RestoreSnapshot(s grpc.ClientStreamingServer[coordinatorv1.RestoreSnapshotRequest, coordinatorv1.RestoreSnapshotResponse]) error {
	if restore := c.scripted().Restore; restore != nil {
		return restore(s)
	}
	return status.Error(codes.Unimplemented, "this test restores no snapshot")
}

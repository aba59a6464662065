package state

import (
	"maps"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func (c *change) updateHosts(op *raftv1.UpdateHosts) (*raftv1.Result, error) {
	for _, update := range op.GetHosts() {
		host := clone(c.view().Host(update.GetHost()))
		if host.GetName() == "" {
			continue // It was removed meanwhile.
		}
		if update.GetState() != host.GetState() {
			host.State, host.StateSince = update.GetState(), c.stamp()
		}
		if update.GetInventory() != nil {
			host.Inventory = update.GetInventory()
		}
		host.Labels, host.Revision = hostLabels(host), c.index
		c.put(tableHost, host.GetName(), host)
	}
	return &raftv1.Result{}, nil
}

// hostLabels joins the labels of the agent's configuration and of the join token; the token's win, since an administrator gave them.
func hostLabels(host *coordinatorv1.Host) map[string]string {
	labels := maps.Clone(host.GetInventory().GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, host.GetTokenLabels())
	return labels
}

// cordonHost keeps new instances away from a host, or lets them come again.
func (c *change) cordonHost(op *raftv1.CordonHost) (*raftv1.Result, error) {
	host := clone(c.view().Host(op.GetHost()))
	if host.GetName() == "" {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q: `musterctl host list` shows them", op.GetHost())
	}
	host.Cordoned, host.CordonedBy, host.CordonReason = op.GetCordoned(), "", ""
	if op.GetCordoned() {
		host.CordonedBy, host.CordonReason = c.actor, op.GetReason()
	}
	host.Revision = c.index
	c.put(tableHost, host.GetName(), host)
	return &raftv1.Result{Host: host}, nil
}

func (c *change) takeOver(op *raftv1.TakeOver) (*raftv1.Result, error) {
	c.meta.Epoch, c.meta.Engine = c.index, op.GetCoordinator()
	return &raftv1.Result{Epoch: c.index}, nil
}

// stale says that a command comes from an engine that another one has replaced.
func (c *change) stale(epoch uint64) error {
	if epoch < c.meta.GetEpoch() {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "engine %d was replaced by %d", epoch, c.meta.GetEpoch())
	}
	return nil
}

func (c *change) putSecret(op *raftv1.PutSecret) (*raftv1.Result, error) {
	version := c.batch.newestVersion(op.GetName()) + 1
	c.put(tableSecret, op.GetName(), &raftv1.Secret{
		Name: op.GetName(), Version: version, Value: op.GetValue(), CreatedAt: c.stamp(), CreatedBy: c.actor,
	})
	c.batch.secrets[op.GetName()] = version
	return &raftv1.Result{Version: version}, nil
}

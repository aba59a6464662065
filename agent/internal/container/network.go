package container

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	// lockDir holds the files by which agents of one engine exclude each other.
	lockDir  = "/run/muster/lock"
	lockPoll = 10 * time.Millisecond
)

// ensureNetworks creates the missing networks of a spec. Engines before 25 allow two networks of one name, on which containers neither find
// each other nor start, so creation is serialized: by a lock in this agent, and by a locked file between agents of one engine.
func (e *Engine) ensureNetworks(ctx context.Context, spec *agentv1.ContainerSpec) error {
	for _, n := range spec.GetNetworks() {
		if err := e.ensureNetwork(ctx, spec, n); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) ensureNetwork(ctx context.Context, spec *agentv1.ContainerSpec, n *agentv1.NetworkAttachment) error {
	unlock, err := e.networks.lock(ctx, n.GetName())
	if err != nil {
		return err
	}
	defer unlock()
	found, err := e.networksNamed(ctx, n.GetName())
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if n.GetExternal() {
			return missingNetwork(spec.GetName(), n.GetName())
		}
		if found, err = e.createNetwork(ctx, spec, n); err != nil {
			return err
		}
	}
	if len(found) > 1 {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true,
			"host %s has %d networks %q: remove all but one (docker network rm %s)", e.name, len(found), n.GetName(), found[1].ID[:12])
	}
	return nil
}

func missingNetwork(name, net string) error {
	return invalid("container %q: external network %q does not exist on this host; create it (docker network create %s)", name, net, net)
}

func (e *Engine) createNetwork(ctx context.Context, spec *agentv1.ContainerSpec, n *agentv1.NetworkAttachment) ([]network.Summary, error) {
	labels := make(map[string]string)
	maps.Copy(labels, n.GetLabels())
	if stack := spec.GetLabels()[labelStack]; stack != "" {
		labels[labelStack] = stack
	}
	opts := network.CreateOptions{Driver: cmp.Or(n.GetDriver(), "bridge"), Internal: n.GetInternal(), Labels: labels}
	if n.GetSubnet() != "" {
		opts.IPAM = &network.IPAM{Config: []network.IPAMConfig{{Subnet: n.GetSubnet()}}}
	}
	unlock, err := lockFile(ctx, e.networkLock)
	if err != nil {
		return nil, e.failure(ctx, err, "create network %q", n.GetName())
	}
	defer unlock()
	// Another agent of this engine may have created it while this one waited.
	found, err := e.networksNamed(ctx, n.GetName())
	if err != nil || len(found) > 0 {
		return found, err
	}
	err = e.call(ctx, 0, func(ctx context.Context) error {
		_, err := e.docker.NetworkCreate(ctx, n.GetName(), opts)
		return err
	})
	if err != nil && !cerrdefs.IsConflict(err) && !cerrdefs.IsAlreadyExists(err) {
		return nil, e.failure(ctx, err, "create network %q", n.GetName())
	}
	return e.networksNamed(ctx, n.GetName())
}

// lockFile holds a lock that the agents of one engine share. It ends with the process, too.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-ticker.C:
		}
	}
}

// networksNamed returns the networks of exactly that name, the oldest first.
func (e *Engine) networksNamed(ctx context.Context, name string) ([]network.Summary, error) {
	var found []network.Summary
	err := e.call(ctx, quickLimit, func(ctx context.Context) (err error) {
		found, err = e.docker.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", name))})
		return err
	})
	if err != nil {
		return nil, e.failure(ctx, err, "look for network %q", name)
	}
	// The engine's filter also matches parts of names.
	found = slices.DeleteFunc(found, func(n network.Summary) bool { return n.Name != name })
	slices.SortFunc(found, func(a, b network.Summary) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return found, nil
}

// connect joins the container to those of its networks that it is not in yet.
func (e *Engine) connect(ctx context.Context, spec *agentv1.ContainerSpec, c container.InspectResponse) error {
	for _, n := range spec.GetNetworks() {
		if c.NetworkSettings != nil && c.NetworkSettings.Networks[n.GetName()] != nil {
			continue
		}
		err := e.call(ctx, 0, func(ctx context.Context) error {
			return e.docker.NetworkConnect(ctx, n.GetName(), c.ID, &network.EndpointSettings{Aliases: n.GetAliases()})
		})
		if err != nil {
			return e.failure(ctx, err, "connect container %q to network %q", spec.GetName(), n.GetName())
		}
	}
	return nil
}

package container

import (
	"cmp"
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/go-connections/nat"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// inspectLimit is how many containers are inspected at once; the engine gains nothing from more.
const inspectLimit = 8

// List returns the containers of this host in order of their names; with req.all also those that Muster does not own.
func (e *Engine) List(ctx context.Context, req *agentv1.ListContainersRequest) ([]*agentv1.Container, error) {
	args := filters.NewArgs()
	if !req.GetAll() {
		args.Add("label", labelHost+"="+e.name)
	}
	if req.GetStack() != "" {
		args.Add("label", labelStack+"="+req.GetStack())
	}
	if req.GetService() != "" {
		args.Add("label", labelService+"="+req.GetService())
	}
	var all []*agentv1.Container
	err := e.read(ctx, func(ctx context.Context) error {
		summaries, err := e.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
		if err != nil {
			return err
		}
		all = make([]*agentv1.Container, len(summaries))
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(inspectLimit)
		for i, s := range summaries {
			g.Go(func() error {
				found, err := e.docker.ContainerInspect(ctx, s.ID)
				if cerrdefs.IsNotFound(err) { // removed since the list was made.
					return nil
				}
				if err == nil {
					all[i] = describe(found)
					all[i].Stopped = e.rests(found)
				}
				return err
			})
		}
		return g.Wait()
	})
	if err != nil {
		return nil, e.failure(ctx, err, "list the containers of host %s", e.name)
	}
	all = slices.DeleteFunc(all, func(c *agentv1.Container) bool { return c == nil })
	slices.SortFunc(all, func(a, b *agentv1.Container) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all, nil
}

// rests says that a container was stopped, or ended under no restart policy, and still has what it needs to be started. A job that ended is done.
func (e *Engine) rests(c container.InspectResponse) bool {
	if c.Config != nil && c.Config.Labels[labelJob] != "" {
		return false
	}
	return c.State != nil && c.State.Status == container.StateExited && c.HostConfig != nil && c.HostConfig.RestartPolicy.IsNone() && e.lostFiles(c.HostConfig.Mounts) == ""
}

func describe(c container.InspectResponse) *agentv1.Container {
	out := &agentv1.Container{
		Id:           c.ID,
		Name:         strings.TrimPrefix(c.Name, "/"),
		ImageId:      c.Image,
		RestartCount: uint32(max(c.RestartCount, 0)),
		CreatedAt:    stamp(c.Created),
		Ports:        bindings(c),
		Address:      networkAddress(c),
	}
	if c.Config != nil {
		out.Image, out.Labels = c.Config.Image, c.Config.Labels
	}
	if s := c.State; s != nil {
		out.State, out.ExitCode, out.OomKilled = s.Status, int32(s.ExitCode), s.OOMKilled
		out.StartedAt, out.FinishedAt = stamp(s.StartedAt), stamp(s.FinishedAt)
		if s.Health != nil && s.Health.Status != container.NoHealthcheck {
			out.Health = s.Health.Status
		}
	}
	return out
}

// stamp is nil for the engine's zero time, which it writes as year 1.
func stamp(s string) *timestamppb.Timestamp {
	t := parseTime(s)
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// bindings are the published ports: those in force while the container runs, else those it will ask for.
func bindings(c container.InspectResponse) []*agentv1.PortBinding {
	var ports nat.PortMap
	if c.NetworkSettings != nil && len(c.NetworkSettings.Ports) > 0 {
		ports = c.NetworkSettings.Ports
	} else if c.HostConfig != nil {
		ports = c.HostConfig.PortBindings
	}
	var out []*agentv1.PortBinding
	for port, hosts := range ports {
		for _, h := range hosts {
			hostPort, err := strconv.ParseUint(h.HostPort, 10, 16)
			if err != nil {
				hostPort = 0
			}
			out = append(out, &agentv1.PortBinding{
				HostIp: h.HostIP, HostPort: uint32(hostPort), ContainerPort: uint32(port.Int()), Protocol: port.Proto(),
			})
		}
	}
	slices.SortFunc(out, func(a, b *agentv1.PortBinding) int {
		return cmp.Or(cmp.Compare(a.GetContainerPort(), b.GetContainerPort()), cmp.Compare(a.GetProtocol(), b.GetProtocol()),
			cmp.Compare(a.GetHostIp(), b.GetHostIp()), cmp.Compare(a.GetHostPort(), b.GetHostPort()))
	})
	return out
}

// networkAddress is the container's address on its primary network, or on the first by name that has one.
func networkAddress(c container.InspectResponse) string {
	if c.NetworkSettings == nil {
		return ""
	}
	var names []string
	for name := range c.NetworkSettings.Networks {
		names = append(names, name)
	}
	slices.Sort(names)
	if c.HostConfig != nil {
		names = append([]string{string(c.HostConfig.NetworkMode)}, names...)
	}
	for _, name := range names {
		n := c.NetworkSettings.Networks[name]
		if n == nil {
			continue
		}
		if n.IPAddress != "" {
			return n.IPAddress
		}
		if n.GlobalIPv6Address != "" {
			return n.GlobalIPv6Address
		}
	}
	return ""
}

// reachable is where this host reaches a port of the container: the published address if there is one, which is what a proxy uses.
func (e *Engine) reachable(c container.InspectResponse, port uint32) (string, bool) {
	text := strconv.FormatUint(uint64(port), 10)
	if c.HostConfig != nil && c.HostConfig.NetworkMode.IsHost() {
		return net.JoinHostPort("127.0.0.1", text), true
	}
	for _, b := range bindings(c) {
		if b.GetContainerPort() != port || b.GetProtocol() != "tcp" || b.GetHostPort() == 0 {
			continue
		}
		ip := b.GetHostIp()
		if parsed := net.ParseIP(ip); parsed == nil || parsed.IsUnspecified() {
			ip = e.address
		}
		return net.JoinHostPort(ip, strconv.FormatUint(uint64(b.GetHostPort()), 10)), true
	}
	if ip := networkAddress(c); ip != "" {
		return net.JoinHostPort(ip, text), true
	}
	return "", false
}

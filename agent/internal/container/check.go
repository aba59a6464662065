package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Check returns what would stop containers of these specs from running here, in order of the specs. It changes nothing. What the
// containers in req.replaced hold counts as free, because they will be gone.
func (e *Engine) Check(ctx context.Context, req *agentv1.CheckContainersRequest) ([]*agentv1.ContainerProblem, error) {
	c := &check{e: e, replaced: req.GetReplaced()}
	if err := c.load(ctx, req.GetSpecs()); err != nil {
		return nil, e.failure(ctx, err, "look at the engine of host %s", e.name)
	}
	for _, spec := range req.GetSpecs() {
		if err := c.spec(ctx, spec); err != nil {
			return nil, err
		}
	}
	return c.problems, nil
}

// check is one run of Check: the state of the engine, read once, and the problems found.
type check struct {
	e        *Engine
	replaced []string
	all      []container.Summary
	networks []network.Summary
	info     *system.Info // read only if a spec wants GPUs.
	claimed  []claim
	problems []*agentv1.ContainerProblem
}

// claim is a host port that one of the specs will have.
type claim struct {
	ip, proto, name string
	port            uint32
}

func (c *check) load(ctx context.Context, specs []*agentv1.ContainerSpec) error {
	return c.e.read(ctx, func(ctx context.Context) (err error) {
		if c.all, err = c.e.docker.ContainerList(ctx, container.ListOptions{All: true}); err != nil {
			return err
		}
		if c.networks, err = c.e.docker.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs()}); err != nil {
			return err
		}
		if slices.ContainsFunc(specs, func(s *agentv1.ContainerSpec) bool { return len(s.GetResources().GetGpus()) > 0 }) {
			info, err := c.e.docker.Info(ctx)
			c.info = &info
			return err
		}
		return nil
	})
}

func (c *check) problem(name string, reason agentv1.FailureReason, format string, args ...any) {
	c.problems = append(c.problems, &agentv1.ContainerProblem{Container: name, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// failed records err as a problem if the host itself said it, and returns it if nothing is known.
func (c *check) failed(name string, err error) error {
	if err == nil {
		return nil
	}
	f, ok := rpcerr.Failure(err)
	if !ok || f.GetReason() == agentv1.FailureReason_FAILURE_REASON_ENGINE {
		return err
	}
	c.problem(name, f.GetReason(), "%s", f.GetMessage())
	return nil
}

func (c *check) spec(ctx context.Context, spec *agentv1.ContainerSpec) error {
	name := spec.GetName()
	if err := validate(spec); err != nil {
		return c.failed(name, err)
	}
	if err := c.failed(name, c.e.policy.admit(spec, c.e.guarded())); err != nil {
		return err
	}
	if err := c.failed(name, c.name(name)); err != nil {
		return err
	}
	for _, p := range spec.GetPorts() {
		if err := c.port(ctx, spec, p); err != nil {
			return err
		}
	}
	for _, m := range spec.GetMounts() {
		if err := c.failed(name, c.e.checkSource(ctx, name, m)); err != nil {
			return err
		}
	}
	for _, n := range spec.GetNetworks() {
		exists := slices.ContainsFunc(c.networks, func(s network.Summary) bool { return s.Name == n.GetName() })
		if n.GetExternal() && !exists {
			if err := c.failed(name, missingNetwork(name, n.GetName())); err != nil {
				return err
			}
		}
	}
	c.gpus(spec)
	return nil
}

// name fails if a container has the name that will not be gone.
func (c *check) name(name string) error {
	if slices.Contains(c.replaced, name) {
		return nil
	}
	for _, other := range c.all {
		if slices.Contains(other.Names, "/"+name) && other.State != container.StateRemoving {
			return c.e.nameTaken(name, other.State, other.Labels[labelOperation], other.Image)
		}
	}
	return nil
}

// runs says that a container holds its ports.
func runs(c container.Summary) bool {
	return c.State == container.StateRunning || c.State == container.StatePaused || c.State == container.StateRestarting
}

func (c *check) port(ctx context.Context, spec *agentv1.ContainerSpec, p *agentv1.PortBinding) error {
	name, port, ip, proto := spec.GetName(), p.GetHostPort(), c.e.hostIP(p), p.GetProtocol()
	if proto == "" {
		proto = "tcp"
	}
	if port == 0 { // the engine chooses.
		return nil
	}
	const taken = agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN
	address := net.JoinHostPort(ip, strconv.FormatUint(uint64(port), 10))
	for _, other := range c.claimed {
		if other.port == port && other.proto == proto && overlap(other.ip, ip) {
			c.problem(name, taken, "port %s/%s of host %s is wanted by container %q too: give one of them another port", address, proto, c.e.name, other.name)
			return nil
		}
	}
	c.claimed = append(c.claimed, claim{ip: ip, proto: proto, name: name, port: port})

	ours := false
	for _, other := range c.all {
		if !runs(other) || !publishes(other, ip, port, proto) {
			continue
		}
		if nameOf(other) != name && !slices.Contains(c.replaced, nameOf(other)) {
			c.problem(name, taken, "port %s/%s of host %s is taken by container %s: free it, or give the service another port", address, proto, c.e.name, nameOf(other))
			return nil
		}
		ours = true
	}
	if ours { // it is bound, by a container that will be gone, or must go for its name.
		return nil
	}
	switch err := tryBind(ctx, ip, port, proto); {
	case err == nil:
	case errors.Is(err, syscall.EADDRINUSE):
		by := ""
		if process := listener(port); process != "" && proto == "tcp" {
			if c.replacedOnHost(ctx, port) {
				return nil
			}
			by = " by " + process
		}
		c.problem(name, taken, "port %s/%s of host %s is taken%s: free it, or give the service another port", address, proto, c.e.name, by)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		c.problem(name, agentv1.FailureReason_FAILURE_REASON_INVALID, "address %s of port %d is not one of host %s: use 0.0.0.0, or leave it out", ip, port, c.e.name)
	default:
		return c.failed(name, invalid("container %q: %s", name, err))
	}
	return nil
}

// replacedOnHost says that a container which will be gone, and which uses the host's network, listens on the port.
func (c *check) replacedOnHost(ctx context.Context, port uint32) bool {
	all, err := sockets(os.Getpid(), bothFamilies)
	if err != nil {
		return false
	}
	for _, name := range c.replaced {
		found, _, err := c.e.inspect(ctx, name)
		if err != nil || !found.State.Running || !found.HostConfig.NetworkMode.IsHost() {
			continue
		}
		own, err := c.e.inodes(ctx, found)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(all, func(s socket) bool { return s.state == tcpListen && s.port == port && own[s.inode] }) {
			return true
		}
	}
	return false
}

// gpus asks whether the engine can give a container NVIDIA devices at all; which are free is not for the engine to know.
func (c *check) gpus(spec *agentv1.ContainerSpec) {
	if len(spec.GetResources().GetGpus()) == 0 || c.info == nil {
		return
	}
	if _, ok := c.info.Runtimes["nvidia"]; ok {
		return
	}
	if _, err := exec.LookPath("nvidia-container-runtime-hook"); err == nil {
		return
	}
	c.problem(spec.GetName(), agentv1.FailureReason_FAILURE_REASON_INVALID,
		"the engine of host %s cannot give containers GPUs: install nvidia-container-toolkit there, or place the service elsewhere", c.e.name)
}

package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	defaultDrainLimit = 30 * time.Second
	// quietReadings in a row make a container drained: a request may be between the listener and its first byte in one reading.
	quietReadings = 2
	quietInterval = 10 * time.Millisecond
	// settleTime passes before the first reading: what a proxy had sent before it was told arrives, and short requests end.
	settleTime = 30 * time.Millisecond
)

// Drain waits until no client has a connection to the container's ports, counted in the container's own network namespace, so that it
// does not matter through which proxy a request came. The end of the limit is no failure: the answer says how many were left.
func (e *Engine) Drain(ctx context.Context, req *agentv1.DrainContainerRequest) (*agentv1.DrainContainerResponse, error) {
	limit := defaultDrainLimit
	if req.GetLimit() != nil {
		limit = req.GetLimit().AsDuration()
	}
	began := time.Now()
	answer := func(left int) (*agentv1.DrainContainerResponse, error) {
		return &agentv1.DrainContainerResponse{Left: uint32(left), Waited: durationpb.New(time.Since(began))}, nil
	}
	found, _, err := e.inspect(ctx, req.GetName())
	if notFound(err) {
		return answer(0)
	}
	if err != nil {
		return nil, err
	}
	if !wait(ctx, min(settleTime, limit)) {
		return nil, fmt.Errorf("drain container %q: %w", req.GetName(), ctx.Err())
	}
	families := bothFamilies
	for quiet := 0; ; {
		if !found.State.Running || found.State.Pid == 0 {
			return answer(0)
		}
		open, listening, err := e.openConnections(ctx, found, req.GetPorts(), families)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			// The process has ended; the engine knows whether another took its place.
			before := found.State.Pid
			if found, _, err = e.inspect(ctx, req.GetName()); notFound(err) {
				return answer(0)
			}
			if err == nil && found.State.Pid == before && !wait(ctx, 50*time.Millisecond) {
				err = ctx.Err()
			}
			if err != nil {
				return nil, err
			}
			families = bothFamilies
			if time.Since(began) < limit {
				continue
			}
			return answer(0)
		}
		if err != nil {
			return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "count the connections of container %q: %s", req.GetName(), err)
		}
		if len(listening) > 0 {
			families = listening
		}
		if quiet++; open > 0 {
			quiet = 0
		}
		if quiet == quietReadings {
			return answer(0)
		}
		waited := time.Since(began)
		if waited >= limit {
			return answer(open)
		}
		interval := drainInterval(waited)
		if quiet > 0 {
			interval = quietInterval
		}
		if !wait(ctx, min(interval, limit-waited+time.Millisecond)) {
			return nil, fmt.Errorf("drain container %q: %w with %d connections open", req.GetName(), ctx.Err(), open)
		}
	}
}

// drainInterval is short at first, because most requests end soon, and then sparing.
func drainInterval(waited time.Duration) time.Duration {
	switch {
	case waited < time.Second:
		return 25 * time.Millisecond
	case waited < 5*time.Second:
		return 50 * time.Millisecond
	default:
		return 200 * time.Millisecond
	}
}

// openConnections counts the connections that clients have to the ports of the container; without ports, to all that it listens on. It also says in
// which of the address families it found listeners: no new connection comes in another.
func (e *Engine) openConnections(ctx context.Context, c container.InspectResponse, ports []uint32, families []string) (int, []string, error) {
	all, err := sockets(c.State.Pid, families)
	if err != nil {
		return 0, nil, err
	}
	var own map[string]bool
	if len(ports) == 0 && c.HostConfig.NetworkMode.IsHost() { // the namespace is the host's: only the container's own listeners count.
		if own, err = e.inodes(ctx, c); err != nil {
			return 0, nil, err
		}
	}
	given, listening := len(ports) > 0, []string(nil)
	for _, s := range all {
		if s.state != tcpListen || given && !slices.Contains(ports, s.port) || own != nil && !own[s.inode] {
			continue
		}
		if !given {
			ports = append(ports, s.port)
		}
		if !slices.Contains(listening, s.family) {
			listening = append(listening, s.family)
		}
	}
	open := 0
	for _, s := range all {
		if (s.state == tcpEstablished || s.state == tcpSynRecv) && slices.Contains(ports, s.port) {
			open++
			if !slices.Contains(listening, s.family) { // of a listener that is closed already.
				listening = append(listening, s.family)
			}
		}
	}
	return open, listening, nil
}

// inodes returns the sockets that the processes of the container hold.
func (e *Engine) inodes(ctx context.Context, c container.InspectResponse) (map[string]bool, error) {
	var top container.TopResponse
	err := e.call(ctx, quickLimit, func(ctx context.Context) (err error) {
		top, err = e.docker.ContainerTop(ctx, c.ID, []string{"-o", "pid"})
		return err
	})
	if err != nil {
		return nil, err
	}
	var pids []string
	for _, row := range top.Processes {
		pids = append(pids, row...)
	}
	return inodesOf(pids), nil
}

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Real-time signals as the C library numbers them, and the last that has a name of its own.
const (
	lastNamed  = 31
	firstTimed = 34
	lastTimed  = 64
)

// Signal sends a signal to the first process of a container that runs.
//
// The agent sends it to the process itself where it can. The engine takes a container whose image names no stop signal for stopped by hand after
// any signal, SIGHUP too, and does not start it again when it fails later; and an answer of the engine that is lost leaves open whether the signal
// was sent.
func (e *Engine) Signal(ctx context.Context, name, signal string) error {
	number, err := signalNumber(signal)
	if err != nil {
		return err
	}
	unlock, err := e.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	found, err := e.owned(ctx, name)
	if err != nil {
		return err
	}
	if s := found.State; !s.Running || s.Restarting || s.Paused || s.Pid <= 0 {
		return notSignalled(name, signal, s.Status)
	}
	sent, err := send(found.State.Pid, found.ID, number)
	switch {
	case errors.Is(err, os.ErrProcessDone):
		return notSignalled(name, signal, container.StateExited)
	case err != nil:
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "send %s to container %q: %s", signal, name, err)
	case sent:
		e.log.Info("signal sent", "container", name, "signal", signal)
		return nil
	}
	return e.signalByEngine(ctx, found, number)
}

// signalByEngine is for an agent that does not see the container's process, or may not signal it. The engine is asked once: an answer that
// is lost is not asked for again.
func (e *Engine) signalByEngine(ctx context.Context, c container.InspectResponse, number syscall.Signal) error {
	name := strings.TrimPrefix(c.Name, "/")
	err := attempt(ctx, quickLimit, func(ctx context.Context) error {
		return e.docker.ContainerKill(ctx, c.ID, strconv.Itoa(int(number)))
	})
	switch {
	case err == nil:
		e.log.Info("signal sent by the engine", "container", name, "signal", number)
		return nil
	case notSent(err):
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "signal %d was not sent to container %q: %s", number, name, engineText(err))
	case unreachable(ctx, err), ctx.Err() != nil:
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, false,
			"docker engine at %s gave no answer: whether container %q got signal %d is not known", e.host, name, number)
	case cerrdefs.IsConflict(err), cerrdefs.IsNotFound(err):
		return notSignalled(name, number.String(), container.StateExited)
	default:
		return e.failure(ctx, err, "send signal %d to container %q", number, name)
	}
}

func notSignalled(name, signal, state string) error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_CONTAINER_EXITED, true,
		"%s was not sent to container %q: it is %s, and only one that runs takes signals; start it first", signal, name, state)
}

// send sends a signal to a process of a container. It returns false if this agent cannot tell that the process is the container's, or may not
// signal it. The process cannot change in between: what is asked about is held by its descriptor.
func send(pid int, id string, number syscall.Signal) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil { // another namespace of processes, or a kernel older than 5.3.
		return false, nil
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil || !bytes.Contains(groups, []byte(id)) {
		return false, nil
	}
	switch err := unix.PidfdSendSignal(fd, number, nil, 0); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ESRCH):
		return false, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return false, nil
	default:
		return false, err
	}
}

// signalNumber takes names as SIGHUP, HUP, SIGRTMIN+3 and SIGRTMAX-1.
func signalNumber(signal string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(signal), "SIG")
	if n := unix.SignalNum("SIG" + name); n > 0 {
		return n, nil
	}
	for _, timed := range []struct {
		base, sign string
		number     int
	}{{"RTMIN", "+", firstTimed}, {"RTMAX", "-", lastTimed}} {
		rest, ok := strings.CutPrefix(name, timed.base)
		if !ok {
			continue
		}
		if rest == "" {
			return syscall.Signal(timed.number), nil
		}
		n, err := strconv.Atoi(rest)
		if number := timed.number + n; strings.HasPrefix(rest, timed.sign) && err == nil && number >= firstTimed && number <= lastTimed {
			return syscall.Signal(number), nil
		}
	}
	var names []string
	for n := syscall.Signal(1); n <= lastNamed; n++ {
		if known := unix.SignalName(n); known != "" {
			names = append(names, known)
		}
	}
	return 0, invalid("signal %q is not known: use one of %s, SIGRTMIN+N, SIGRTMAX-N", signal, strings.Join(names, ", "))
}

// Package container works the containers of one host through its Docker engine: create, start, probe, drain, stop, remove, and what
// must be known before. It owns the meaning of a container spec, the host's policy on it, and the files of secrets and configs. Docker's
// types do not leave it. It performs; when and how often it is asked, and what was asked before, is left to the ledger.
//
// An engine that does not answer is waited for until the context of the call ends, because a restarted daemon says nothing about its
// containers. A failure is reported only for what the engine, or the container, said itself.
package container

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Labels that say whose a container is, and how it is restarted. Stack and service come with the spec; the agent sets the others.
const (
	labelOperation = "muster.operation"
	labelHost      = "muster.host"
	labelStack     = "muster.stack"
	labelService   = "muster.service"
	labelRestart   = "muster.restart"
)

const (
	// defaultSecretsDir is on tmpfs on every systemd machine, so that secrets do not reach a disk.
	defaultSecretsDir = "/run/muster/secrets"
	// quickLimit bounds one attempt of a call that an idle engine answers in milliseconds; then it counts as unreachable.
	quickLimit = 15 * time.Second
	// readPatience is how long a call that only reads waits for an engine that does not answer.
	readPatience = 5 * time.Second
)

// Options are what an Engine needs.
type Options struct {
	// DockerHost is the engine's address, such as unix:///var/run/docker.sock, which is also the default.
	DockerHost string
	// HostName is the agent's name. It tells the containers of hosts apart that share an engine.
	HostName string
	// Address is where others reach this host. Ports without a host address are published there; default 127.0.0.1.
	Address string
	// SecretsDir holds the files of secrets and configs; default /run/muster/secrets. It must be a path that the engine can mount.
	SecretsDir string
	// Policy is what the host's owner allows.
	Policy Policy
	// Logger receives what an operator should know; required.
	Logger *slog.Logger
}

// Engine is the host's Docker engine. Its methods may be called from many goroutines; those that change a container exclude each other by
// the container's name.
type Engine struct {
	docker     *client.Client
	host       string
	name       string
	address    string
	secretsDir string
	policy     Policy
	log        *slog.Logger
	names      *nameLocks
	networks   *nameLocks
	// networkLock is the file whose lock creating a network needs: one for each engine.
	networkLock string

	down atomic.Bool // the last call did not reach the engine.

	mu            sync.Mutex
	storageDriver string // of storageOf.
	storageOf     string // engine version that storageDriver was read from.
}

// sharedDir is where the agents of one machine find each other's locks.
func sharedDir() string {
	if os.MkdirAll(lockDir, 0o755) != nil {
		return os.TempDir()
	}
	return lockDir
}

// New returns an Engine. It does not need the engine to be up.
func New(opts Options) (*Engine, error) {
	if opts.HostName == "" {
		return nil, errors.New("container: the host's name is empty")
	}
	if opts.Logger == nil {
		return nil, errors.New("container: no logger")
	}
	if opts.DockerHost == "" {
		opts.DockerHost = client.DefaultDockerHost
	}
	if opts.Address == "" {
		opts.Address = "127.0.0.1"
	}
	if net.ParseIP(opts.Address) == nil {
		return nil, fmt.Errorf("container: address %q of the host is no IP address", opts.Address)
	}
	if opts.SecretsDir == "" {
		opts.SecretsDir = defaultSecretsDir
	}
	docker, err := client.NewClientWithOpts(client.WithHost(opts.DockerHost), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker host %q: %w", opts.DockerHost, err)
	}
	return &Engine{
		docker:      docker,
		host:        opts.DockerHost,
		name:        opts.HostName,
		address:     opts.Address,
		secretsDir:  opts.SecretsDir,
		policy:      opts.Policy,
		log:         opts.Logger.With("component", "container"),
		names:       newNameLocks(),
		networks:    newNameLocks(),
		networkLock: filepath.Join(sharedDir(), fmt.Sprintf("muster-network-%x", sha256.Sum256([]byte(opts.DockerHost)))[:32]),
	}, nil
}

// Close ends the idle connections to the engine.
func (e *Engine) Close() error { return e.docker.Close() }

// Status says whether the engine answers, and what it is.
func (e *Engine) Status(ctx context.Context) *agentv1.EngineStatus {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	version, err := e.docker.ServerVersion(ctx)
	if err != nil {
		return &agentv1.EngineStatus{Error: firstLine(err.Error())}
	}
	status := &agentv1.EngineStatus{Up: true, Version: version.Version, ApiVersion: e.docker.ClientVersion()}
	e.mu.Lock()
	if e.storageOf == version.Version {
		status.StorageDriver = e.storageDriver
	}
	e.mu.Unlock()
	if status.GetStorageDriver() != "" {
		return status
	}
	info, err := e.docker.Info(ctx)
	if err != nil {
		status.Error = firstLine(err.Error())
		return status
	}
	e.mu.Lock()
	e.storageDriver, e.storageOf = info.Driver, version.Version
	e.mu.Unlock()
	status.StorageDriver = info.Driver
	return status
}

// call runs f until the engine answers it, and returns that answer. limit bounds one attempt; 0 leaves that to ctx.
func (e *Engine) call(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	_, err := e.reach(ctx, limit, f)
	return err
}

// reach is call that also tells for how long the engine did not answer; 0 if it answered at once.
func (e *Engine) reach(ctx context.Context, limit time.Duration, f func(context.Context) error) (time.Duration, error) {
	var since time.Time
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		began := time.Now()
		err := attempt(ctx, limit, f)
		if !unreachable(ctx, err) {
			if err == nil && e.down.CompareAndSwap(true, false) {
				e.log.Info("docker engine answers again", "docker_host", e.host)
			}
			if since.IsZero() {
				return 0, err
			}
			return time.Since(since), err
		}
		if since.IsZero() {
			since = began
		}
		if e.down.CompareAndSwap(false, true) {
			e.log.Warn("docker engine does not answer, waiting for it", "docker_host", e.host, "err", err)
		}
		if !wait(ctx, delay) {
			return time.Since(since), fmt.Errorf("%w: docker engine at %s does not answer: %s", ctx.Err(), e.host, firstLine(err.Error()))
		}
	}
}

func attempt(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return f(ctx)
}

// unreachable tells an engine that gave no answer from one that refused. A daemon that lost its containerd answers, but about itself.
func unreachable(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil || os.IsPermission(err) || errors.Is(err, os.ErrPermission) {
		return false
	}
	var failure *rpcerr.OperationError
	if errors.As(err, &failure) {
		return false
	}
	if client.IsErrConnectionFailed(err) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return true
	}
	text := strings.ToLower(err.Error())
	for _, sign := range []string{"transport is closing", "transport: error while dialing", "ttrpc: closed", "containerd.sock", "server is shutting down"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// failure turns the engine's answer into a definite failure. An ended context is no answer and stays what it is.
func (e *Engine) failure(ctx context.Context, err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	var known *rpcerr.OperationError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, ctx.Err()) && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, err)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w: %s", what, ctx.Err(), engineText(err))
	case cerrdefs.IsInvalidArgument(err):
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, "%s: %s", what, engineText(err))
	default:
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "%s: %s", what, engineText(err))
	}
}

// read is call for what only reads: the caller is waiting, so that an engine which stays silent is soon reported.
func (e *Engine) read(ctx context.Context, f func(context.Context) error) error {
	short, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	err := e.call(short, 0, f)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false,
			"docker engine at %s of host %s does not answer within %s: start it, or cordon the host", e.host, e.name, readPatience)
	}
	return err
}

// inspect returns the container of that name, waiting for the engine, and for how long it waited.
func (e *Engine) inspect(ctx context.Context, name string) (container.InspectResponse, time.Duration, error) {
	var found container.InspectResponse
	outage, err := e.reach(ctx, quickLimit, func(ctx context.Context) (err error) {
		found, err = e.docker.ContainerInspect(ctx, name)
		return err
	})
	switch {
	case err == nil:
		return found, outage, nil
	case cerrdefs.IsNotFound(err):
		return found, outage, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND, true, "host %s has no container %q", e.name, name)
	default:
		return found, outage, e.failure(ctx, err, "inspect container %q", name)
	}
}

// owned is inspect for those who change the container: one that is not this host's is left alone.
func (e *Engine) owned(ctx context.Context, name string) (container.InspectResponse, error) {
	found, _, err := e.inspect(ctx, name)
	if err != nil {
		return found, err
	}
	if host := found.Config.Labels[labelHost]; host != e.name {
		return found, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_REFUSED, true,
			"container %q is not of host %s (its label %s is %q): Muster changes only what it created", name, e.name, labelHost, host)
	}
	return found, nil
}

func notFound(err error) bool {
	f, ok := rpcerr.Failure(err)
	return ok && f.GetReason() == agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND
}

// wait returns false if ctx ended before d was over.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// engineText is what the engine said, without the client's words and on one line.
func engineText(err error) string {
	return firstLine(strings.TrimPrefix(err.Error(), "Error response from daemon: "))
}

func firstLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const engineLimit = 45 * time.Second // to come up, on a busy machine

// Engine is a Docker engine: one that the fleet started on a machine, or one that was there before.
type Engine struct {
	// Socket of its API.
	Socket string
	// Machine that it runs on; nil for one that was found.
	Machine *Machine

	*API
	process *Process
	pidFile string
}

// FindEngine returns the engine of DOCKER_HOST or of the usual socket, or nil if none answers.
func FindEngine(ctx context.Context) *Engine {
	sockets := []string{"/var/run/docker.sock"}
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		path, ok := strings.CutPrefix(host, "unix://")
		if !ok {
			return nil
		}
		sockets = []string{path}
	}
	for _, socket := range sockets {
		e := &Engine{Socket: socket, API: NewAPI(socket)}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := e.Ping(ctx)
		cancel()
		if err == nil {
			return e
		}
	}
	return nil
}

// CanStartEngines says in one line what keeps this machine from starting private engines.
func CanStartEngines() error {
	if os.Geteuid() != 0 {
		return errors.New("no Docker engine answers, and only root can start a private one: start Docker, set DOCKER_HOST, or run this as root")
	}
	for _, program := range []string{"dockerd", "containerd", "runc", "iptables", "ip", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: on Debian or Ubuntu run apt-get install docker.io iptables iproute2 mount", program)
		}
	}
	return nil
}

// StartEngine starts an engine on the machine and returns when it answers. It uses nothing of an engine that the machine below may have.
func (f *Fleet) StartEngine(ctx context.Context, m *Machine) (*Engine, error) {
	dockerd, err := exec.LookPath("dockerd")
	if err != nil {
		return nil, fmt.Errorf("dockerd is missing: install docker.io: %w", err)
	}
	dir, err := f.path(m.Name + "-engine")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		return nil, err
	}
	e := &Engine{Socket: filepath.Join(dir, "docker.sock"), Machine: m, pidFile: filepath.Join(dir, "docker.pid")}
	e.API = NewAPI(e.Socket)
	e.process, err = f.Start(Command{Name: m.Name + "-engine", Path: dockerd, Machine: m, Args: []string{
		"--config-file", config,
		"--data-root", filepath.Join(dir, "data"),
		"--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", e.pidFile,
		"--host", "unix://" + e.Socket,
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/" + m.cgroup(),
		"--userland-proxy=false",
		"--insecure-registry", f.subnet() + ".0/24",
		"--log-level", "warn",
	}})
	if err != nil {
		return nil, err
	}
	return e, e.Ready(ctx)
}

// Ready waits until the engine answers.
func (e *Engine) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	return Poll(ctx, 25*time.Millisecond, "engine at "+e.Socket, func() (bool, error) {
		if e.process != nil && !e.process.Alive() {
			return false, e.process.failed()
		}
		return e.Ping(ctx) == nil, nil
	})
}

// Kill ends the engine's daemon with SIGKILL; its containers go on.
func (e *Engine) Kill() error { return e.process.Kill() }

// Restart starts a killed daemon again and waits until it answers.
func (e *Engine) Restart(ctx context.Context) error {
	// The number in the file may belong to another process by now, which keeps the daemon from starting.
	if err := os.Remove(e.pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := e.process.Restart(); err != nil {
		return err
	}
	return e.Ready(ctx)
}

// Process of an engine that the fleet started; nil for one that was found.
func (e *Engine) Process() *Process { return e.process }

// Borrow registers with the fleet what is to be removed from an engine that was found: containers, networks and volumes with the label, and images.
func (f *Fleet) Borrow(ctx context.Context, e *Engine, label string, images []string) error {
	loan := foreign{Socket: e.Socket, Label: label, Images: images}
	if err := loan.clean(ctx); err != nil {
		return err
	}
	return f.state.change(func(r *record) { r.Engines = append(r.Engines, loan) })
}

func (l foreign) clean(ctx context.Context) error {
	api := NewAPI(l.Socket)
	if err := api.Ping(ctx); err != nil {
		return fmt.Errorf("remove what bears %s: %w", l.Label, err)
	}
	containers, err := api.Containers(ctx, l.Label)
	errs := []error{err}
	for _, c := range containers {
		errs = append(errs, api.Remove(ctx, c.ID))
	}
	errs = append(errs, api.prune(ctx, l.Label))
	for _, image := range l.Images {
		errs = append(errs, api.RemoveImage(ctx, image))
	}
	return errors.Join(errs...)
}

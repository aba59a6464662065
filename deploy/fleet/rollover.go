package fleet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
)

// BuildVersion builds the coordinator's program as one that says that it is of the version, and returns its path.
func (f *Fleet) BuildVersion(ctx context.Context, version string) (string, error) {
	dir := filepath.Join(f.opts.Root, ".cache", "versions", version)
	flags := "-s -w -X github.com/spheroseg/muster/internal/version.Version=" + version
	return filepath.Join(dir, "muster-coordinator"), f.goBuild(ctx, flags, "", dir, "./coordinator/cmd/muster-coordinator")
}

// Replace stops the program and starts another one in its place, with the same arguments.
func (p *Process) Replace(ctx context.Context, path string) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	p.spec.Path = path
	return p.Restart()
}

// AddCoordinator lets a further coordinator join through one that runs, and starts it.
func (m *Muster) AddCoordinator(ctx context.Context, spec CoordinatorSpec) error {
	through := slices.IndexFunc(m.Coordinators, func(c *Coordinator) bool { return c.Alive() })
	if through < 0 {
		return fmt.Errorf("add coordinator %s: no other one runs", spec.Name)
	}
	token, err := m.token(ctx, "operator", "raft", "token", "--for", spec.Name)
	if err != nil {
		return err
	}
	return m.startCoordinator(ctx, spec, []string{"join", "--coordinator", m.Coordinators[through].Endpoint(), "--token-file", "-"}, token)
}

// ForgetCoordinator takes a coordinator off the list of those that should run. Its process is left alone.
func (m *Muster) ForgetCoordinator(name string) {
	m.Coordinators = slices.DeleteFunc(m.Coordinators, func(c *Coordinator) bool { return c.Name == name })
}

// Offline runs the coordinator's program on the data directory of a coordinator that does not run: muster-coordinator VERB --data-dir DIR ARGS.
func (m *Muster) Offline(ctx context.Context, c *Coordinator, verb string, args ...string) (Result, error) {
	dir, err := m.f.path(c.Name, "data")
	if err != nil {
		return Result{}, err
	}
	args = append([]string{verb, "--data-dir", dir}, args...)
	return m.f.Run(ctx, Command{Path: c.spec.Path, Args: args, Machine: c.Machine})
}

package fleet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Tools that are built from their Go modules, each pinned.
const (
	caddyModule    = "github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9"
	registryModule = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"
	grpcurlModule  = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
)

// Programs of this repository that the fleet runs.
type Programs struct {
	// Coordinator is the path of muster-coordinator.
	Coordinator string
	// Agent is the path of muster-agent.
	Agent string
	// Ctl is the path of musterctl.
	Ctl string
	// App is the path of the service that is rolled out, static.
	App string
}

// Build builds the programs of this repository. Go's cache makes a second time quick.
func (f *Fleet) Build(ctx context.Context) (Programs, error) {
	bin := filepath.Join(f.opts.Root, ".cache", "fleet")
	p := Programs{
		Coordinator: filepath.Join(bin, "muster-coordinator"),
		Agent:       filepath.Join(bin, "muster-agent"),
		Ctl:         filepath.Join(bin, "musterctl"),
		App:         filepath.Join(bin, "app"),
	}
	return p, f.goBuild(ctx, bin, "./coordinator/cmd/muster-coordinator", "./agent/cmd/muster-agent", "./ctl/cmd/musterctl", "./deploy/app")
}

// BuildApp builds the service that is rolled out, alone.
func (f *Fleet) BuildApp(ctx context.Context) (string, error) {
	bin := filepath.Join(f.opts.Root, ".cache", "fleet")
	return filepath.Join(bin, "app"), f.goBuild(ctx, bin, "./deploy/app")
}

func (f *Fleet) goBuild(ctx context.Context, bin string, packages ...string) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", bin + "/"}, packages...)...)
	cmd.Dir = f.opts.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

// Caddy builds the proxy, once.
func (f *Fleet) Caddy(ctx context.Context) (string, error) { return f.tool(ctx, "caddy", caddyModule) }

// RegistryProgram builds the registry, once.
func (f *Fleet) RegistryProgram(ctx context.Context) (string, error) {
	return f.tool(ctx, "registry", registryModule)
}

// Grpcurl builds the client that knows a service by its .proto alone, once.
func (f *Fleet) Grpcurl(ctx context.Context) (string, error) {
	return f.tool(ctx, "grpcurl", grpcurlModule)
}

func (f *Fleet) tool(ctx context.Context, name, module string) (string, error) {
	bin := filepath.Join(f.opts.Root, ".cache", "bin")
	path := filepath.Join(bin, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	f.opts.Logger.Info("building a tool, once", "module", module)
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "-ldflags=-s -w", module)
	cmd.Dir = f.dir // outside of this module, whose requirements are not the tool's
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s: %w: %s", module, err, tail(out, 20))
	}
	return path, nil
}

package fleet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tools that are built from their Go modules, each pinned.
const (
	caddyModule    = "github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9"
	registryModule = "github.com/distribution/distribution/v3/cmd/registry@v3.1.2"
	grpcurlModule  = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
	etcdModule     = "go.etcd.io/etcd/server/v3@v3.7.3"
)

// Programs of this repository that the fleet runs.
type Programs struct {
	// Coordinator is the path of muster-coordinator.
	Coordinator string
	// Agent is the path of muster-agent.
	Agent string
	// Ctl is the path of musterctl.
	Ctl string
	// App is the path of the static service that is rolled out.
	App string
}

// Build builds the programs of this repository into bin/, with the flags of the Makefile: what make has built is not built again.
func (f *Fleet) Build(ctx context.Context) (Programs, error) {
	bin := filepath.Join(f.opts.Root, "bin")
	p := Programs{
		Coordinator: filepath.Join(bin, "muster-coordinator"),
		Agent:       filepath.Join(bin, "muster-agent"),
		Ctl:         filepath.Join(bin, "musterctl"),
	}
	describe := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	describe.Dir = f.opts.Root
	version, err := describe.Output()
	if err != nil {
		version = []byte("dev")
	}
	flags := "-s -w -X github.com/spheroseg/muster/internal/version.Version=" + strings.TrimSpace(string(version))
	if err := f.goBuild(ctx, flags, "", bin, "./agent/cmd/muster-agent", "./coordinator/cmd/muster-coordinator", "./ctl/cmd/musterctl"); err != nil {
		return p, err
	}
	p.App, err = f.BuildApp(ctx)
	return p, err
}

// BuildApp builds the service that is rolled out, alone.
func (f *Fleet) BuildApp(ctx context.Context) (string, error) {
	bin := filepath.Join(f.opts.Root, ".cache", "bin")
	return filepath.Join(bin, "app"), f.goBuild(ctx, "-s -w", "", bin, "./deploy/app")
}

// BuildCommitLoad builds the program that measures commits without the public API, alone.
func (f *Fleet) BuildCommitLoad(ctx context.Context) (string, error) {
	bin := filepath.Join(f.opts.Root, ".cache", "bin")
	return filepath.Join(bin, "commitload"), f.goBuild(ctx, "-s -w", "", bin, "./coordinator/internal/commitload")
}

// BuildCrashing builds programs that can be told where to die, with the tag crashpoint, and the fake engine. They are for tests only and lie beside the tools.
func (f *Fleet) BuildCrashing(ctx context.Context) (p Programs, fakeEngine string, err error) {
	if p, err = f.Build(ctx); err != nil {
		return p, "", err
	}
	bin := filepath.Join(f.opts.Root, ".cache", "crash")
	p.Coordinator, p.Agent = filepath.Join(bin, "muster-coordinator"), filepath.Join(bin, "muster-agent")
	return p, filepath.Join(bin, "fakeengine"), f.goBuild(ctx, "-s -w", "crashpoint", bin, "./agent/cmd/muster-agent", "./coordinator/cmd/muster-coordinator", "./deploy/fakeengine")
}

func (f *Fleet) goBuild(ctx context.Context, ldflags, tags, bin string, packages ...string) error {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-tags", tags, "-o", bin + "/"}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
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

// Etcd builds the store that the benchmark compares with, once. Its module has replace directives, with which go install does not build it: so a
// module is written that requires it.
func (f *Fleet) Etcd(ctx context.Context) (string, error) {
	path := filepath.Join(f.opts.Root, ".cache", "bin", "etcd")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	dir, err := f.path("etcd-source")
	if err != nil {
		return "", err
	}
	const program = "package main\n\nimport (\n\t\"os\"\n\n\t\"go.etcd.io/etcd/server/v3/etcdmain\"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
		return "", err
	}
	f.opts.Logger.Info("building a tool, once", "module", etcdModule)
	for _, args := range [][]string{
		{"mod", "init", "etcd"}, {"get", etcdModule}, {"build", "-trimpath", "-ldflags=-s -w", "-o", path, "."},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, tail(out, 20))
		}
	}
	return path, nil
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

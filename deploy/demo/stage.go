package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

const (
	stackLabel = "muster.stack=demo"
	imageName  = "muster-demo-app"
)

// stage is everything that the acts are played on.
type stage struct {
	v       *view
	f       *fleet.Fleet
	m       *fleet.Muster
	engine  *fleet.Engine
	witness *fleet.Witness
	proxy   *fleet.Proxy
	compose string
	images  map[string]*fleet.Image
	load    *load.Load
	results []result
}

// run plays the whole demo and cleans up, whatever happens.
func run(ctx context.Context, v *view, logger *slog.Logger, keep bool) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	f, err := fleet.Open(ctx, fleet.Options{Name: "demo", Keep: keep, Logger: logger})
	if err != nil {
		return err
	}
	held := false
	defer func() {
		if !held {
			f.Drop() // nothing worth looking at, or an interrupted start
		}
		err = errors.Join(err, f.Close())
	}()
	s := &stage{v: v, f: f}
	s.compose = filepath.Join(root, "deploy", "stacks", "demo", "compose.yaml")
	if _, err := os.Stat(s.compose); err != nil {
		return fmt.Errorf("run this at the top of the repository: %w", err)
	}
	if err := s.build(ctx); err != nil {
		if ctx.Err() == nil {
			f.Logs(os.Stderr, 8)
		}
		return err
	}
	err = s.play(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted (%w): everything is being removed", context.Cause(ctx))
	}
	held = true
	s.finish(keep)
	if err != nil {
		f.Logs(os.Stderr, 15)
	}
	return err
}

// build sets the stage: programs, engine, images, proxy, coordinators, agents.
func (s *stage) build(ctx context.Context) error {
	s.v.head("A fleet on this machine")
	programs, err := s.f.Build(ctx)
	if err != nil {
		return err
	}
	if _, err := s.f.Caddy(ctx); err != nil {
		return err
	}
	machine, err := s.startEngine(ctx)
	if err != nil {
		return err
	}
	if err := s.makeImages(ctx, programs.App); err != nil {
		return err
	}
	address := "127.0.0.1"
	if machine != nil {
		address = machine.Address
	}
	free := portFinder(machine == nil)
	public, admin := free(8088), free(22019) // not 2019, where this machine may have a proxy of its own
	s.proxy, err = s.f.StartCaddy(ctx, machine, "caddy", net.JoinHostPort(address, public), net.JoinHostPort("127.0.0.1", admin))
	if err != nil {
		return err
	}
	s.v.say("proxy: Caddy at %s", s.proxy.URL)
	var coordinators []fleet.CoordinatorSpec
	var agents []fleet.AgentSpec
	for i := range 3 {
		coordinators = append(coordinators, fleet.CoordinatorSpec{
			Name: fmt.Sprintf("c%d", i+1), Machine: machine, Address: address, Port: number(free(7443 + i)), HTTPPort: number(free(7480 + i)),
		})
		agents = append(agents, fleet.AgentSpec{
			Name: fmt.Sprintf("h%d", i+1), Machine: machine, Engine: s.engine, Address: fmt.Sprintf("127.0.0.%d", 11+i),
			Ports: fmt.Sprintf("%d-%d", 21000+1000*i, 21999+1000*i), Labels: map[string]string{"zone": string(rune('a' + i))},
		})
	}
	agents[0].CaddyAdmin = s.proxy.Admin
	s.m, err = s.f.StartMuster(ctx, programs, coordinators, agents)
	if err != nil {
		return err
	}
	leader, err := s.m.Leader(ctx)
	if err != nil {
		return err
	}
	s.v.say("3 coordinators, each with its own identity; %s leads. 3 agents joined with tokens: h1, h2, h3", leader.Name)
	s.witness = s.f.Watch(ctx, s.engine)
	return nil
}

// startEngine finds an engine, or starts a private one on a machine of its own.
func (s *stage) startEngine(ctx context.Context) (*fleet.Machine, error) {
	var machine *fleet.Machine
	where := "found"
	if s.engine = fleet.FindEngine(ctx); s.engine == nil {
		if err := fleet.CanStartEngines(); err != nil {
			return nil, err
		}
		var err error
		if machine, err = s.f.Machine(ctx, "demo"); err != nil {
			return nil, err
		}
		if s.engine, err = s.f.StartEngine(ctx, machine); err != nil {
			return nil, err
		}
		where = "none answered: started a private one, in namespaces of its own"
	} else {
		var images []string
		for _, v := range versions() {
			images = append(images, imageName+":"+v)
		}
		if err := s.f.Borrow(ctx, s.engine, stackLabel, images); err != nil {
			return nil, err
		}
	}
	version, err := s.engine.Version(ctx)
	if err != nil {
		return nil, err
	}
	s.v.say("engine: Docker %s (%s)", version, where)
	return machine, nil
}

func versions() []string { return []string{"v1", "v2", "v3", "v4"} }

func (s *stage) makeImages(ctx context.Context, app string) error {
	s.images = map[string]*fleet.Image{}
	for _, v := range versions() {
		env := []string{"VERSION=" + v, "STARTUP_MS=1000", "WORK_MS=20"}
		if v == "v3" {
			env = append(env, "BROKEN=1")
		}
		image, err := fleet.NewImage(fleet.ImageSpec{Tag: imageName + ":" + v, Program: app, Env: env, Labels: map[string]string{"version": v}})
		if err != nil {
			return err
		}
		s.images[v] = image
		if err := s.engine.LoadImages(ctx, image); err != nil {
			return err
		}
	}
	s.v.say("images: %s:v1 to v4, built here FROM scratch, nothing pulled. Ready after 1 s; v3 never; all drop what is in flight when stopped", imageName)
	return nil
}

// portFinder returns a function that gives a free port on the loopback address, the wanted one if it is. A private machine has all ports free.
func portFinder(look bool) func(int) string {
	given := map[string]bool{}
	return func(want int) string {
		port := fmt.Sprint(want)
		for look {
			l, err := net.Listen("tcp", "127.0.0.1:"+port)
			if err != nil {
				port = "0"
				continue
			}
			_, port, err = net.SplitHostPort(l.Addr().String())
			if cerr := l.Close(); err == nil && cerr == nil && !given[port] {
				break
			}
			port = "0"
		}
		given[port] = true
		return port
	}
}

func number(port string) int {
	var n int
	_, _ = fmt.Sscan(port, &n)
	return n
}

// startLoad keeps a constant load on the proxy and its counts on the status line, until the returned function is called.
func (s *stage) startLoad(ctx context.Context) (func(), error) {
	l, err := load.New(load.Options{URL: s.proxy.URL, Rate: 200})
	if err != nil {
		return nil, err
	}
	s.load = l
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				s.v.setStatus("")
				return
			case <-tick.C:
				total, failed := l.Counts()
				s.v.setStatus(fmt.Sprintf("load: %d requests in this act, %d failed", total, failed))
			}
		}
	})
	return func() { cancel(); wg.Wait() }, nil
}

// answers asks the proxy once and returns the version that answered.
func (s *stage) answers(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.proxy.URL, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the proxy answers %s", resp.Status)
	}
	return resp.Header.Get("X-Version"), nil
}

// exitCode of a command that ran; -1 for one that did not.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// around is where to look after the demo.
func (s *stage) around(kept bool) {
	ctl := "musterctl"
	if path, err := filepath.Rel(mustDir(), s.m.Command().Path); err == nil {
		ctl = path
	}
	if kept {
		s.v.line("\nEverything still runs. Look around:\n")
		s.v.line("  export %s", strings.Join(s.m.Env, " \\\n         "))
	} else {
		s.v.line("\n`KEEP=1 make demo` leaves the fleet running, to look around with:\n")
	}
	for _, c := range []string{"status", "host list", "service list", "service ps demo/web", "stack history demo", "run list", "operator raft peers"} {
		s.v.line("  %s %s", ctl, c)
	}
	s.v.line("  VERSION=v2 %s stack apply -f deploy/stacks/demo/compose.yaml --dry-run", ctl)
	if kept {
		s.v.line("  curl %s", s.proxy.URL)
		s.v.line("  docker -H unix://%s ps\n", s.engine.Socket)
		program, err := os.Executable()
		if err != nil {
			program = "demo"
		}
		s.v.line("`%s -stop`, or the next `make demo`, removes it all. Logs are in %s.", program, s.f.Dir())
	}
}

func mustDir() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return dir
}

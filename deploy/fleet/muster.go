package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const clusterLimit = 60 * time.Second // for members to vote and hosts to be up

// CoordinatorSpec describes one coordinator.
type CoordinatorSpec struct {
	// Name of the coordinator.
	Name string
	// Machine that it runs on; nil means beside the fleet.
	Machine *Machine
	// Address that it listens on.
	Address string
	// Port of gRPC, agents and raft.
	Port int
	// HTTPPort of JSON, health and metrics.
	HTTPPort int
	// Env in addition to the fleet's own environment.
	Env []string
}

// Endpoint is host:port of the coordinator.
func (c CoordinatorSpec) Endpoint() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.Port)) }

// HTTP is host:port of the coordinator's JSON side.
func (c CoordinatorSpec) HTTP() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.HTTPPort)) }

// AgentSpec describes one agent.
type AgentSpec struct {
	// Name of the host.
	Name string
	// Machine that it runs on; nil means beside the fleet.
	Machine *Machine
	// Engine that it works with.
	Engine *Engine
	// Address at which published ports of the host are reached.
	Address string
	// Ports that it may publish, FIRST-LAST.
	Ports string
	// Labels of the host.
	Labels map[string]string
	// CaddyAdmin is the URL of the proxy's admin API, if this agent drives one.
	CaddyAdmin string
	// Env in addition to the fleet's own environment.
	Env []string
}

// Coordinator is a running coordinator.
type Coordinator struct {
	CoordinatorSpec
	*Process
}

// Agent is a running agent.
type Agent struct {
	AgentSpec
	*Process
}

// Muster is a running cluster with its agents, and an operator who is logged in.
type Muster struct {
	// Coordinators in order of their specs.
	Coordinators []*Coordinator
	// Agents in order of their specs.
	Agents []*Agent
	// Env with which musterctl finds its configuration.
	Env []string

	f        *Fleet
	programs Programs
}

// StartMuster founds a cluster, lets the other coordinators join it, logs an operator in, and lets the agents join. It returns when all members vote
// and all hosts are up.
func (f *Fleet) StartMuster(ctx context.Context, programs Programs, coordinators []CoordinatorSpec, agents []AgentSpec) (*Muster, error) {
	home, err := f.path("operator")
	if err != nil {
		return nil, err
	}
	m := &Muster{f: f, programs: programs, Env: environment(home)}
	token := filepath.Join(home, "admin.token")
	for i, spec := range coordinators {
		args := []string{"init", "--cluster", "fleet", "--admin-token-file", token}
		stdin := ""
		if i > 0 {
			if stdin, err = m.token(ctx, "operator", "raft", "token", "--for", spec.Name); err != nil {
				return nil, err
			}
			args = []string{"join", "--coordinator", coordinators[0].Endpoint(), "--token-file", "-"}
		}
		if err := m.startCoordinator(ctx, spec, args, stdin); err != nil {
			return nil, err
		}
		if i == 0 {
			if err := m.login(ctx, coordinators, token); err != nil {
				return nil, err
			}
		}
	}
	if err := m.Voters(ctx, len(coordinators)); err != nil {
		return nil, err
	}
	for _, spec := range agents {
		if err := m.startAgent(ctx, spec); err != nil {
			return nil, err
		}
	}
	return m, m.HostsUp(ctx, len(agents))
}

func (m *Muster) startCoordinator(ctx context.Context, spec CoordinatorSpec, args []string, stdin string) error {
	dir, err := m.f.path(spec.Name, "data")
	if err != nil {
		return err
	}
	args = append(args, "--data-dir", dir, "--name", spec.Name, "--listen", spec.Endpoint(), "--advertise", spec.Endpoint(), "--http-listen", spec.HTTP())
	// A member joins through a cluster that may be electing at this moment: the token is not burnt by a refusal for that reason.
	if _, err := m.f.Run(ctx, Command{Path: m.programs.Coordinator, Args: args, Stdin: stdin, Machine: spec.Machine}); err != nil {
		return err
	}
	p, err := m.f.Start(Command{Name: spec.Name, Path: m.programs.Coordinator, Args: []string{"run", "--data-dir", dir}, Machine: spec.Machine, Env: spec.Env})
	if err != nil {
		return err
	}
	m.Coordinators = append(m.Coordinators, &Coordinator{spec, p})
	return nil
}

// login waits for the first coordinator to take the token.
func (m *Muster) login(ctx context.Context, coordinators []CoordinatorSpec, token string) error {
	var endpoints []string
	for _, c := range coordinators {
		endpoints = append(endpoints, c.Endpoint())
	}
	first := m.Coordinators[0]
	ctx, cancel := context.WithTimeout(ctx, clusterLimit)
	defer cancel()
	err := Poll(ctx, 25*time.Millisecond, "the first coordinator to listen", func() (bool, error) {
		if err := first.failed(); err != nil {
			return false, err
		}
		conn, err := net.DialTimeout("tcp", first.Endpoint(), time.Second)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
	if err != nil {
		return err
	}
	_, err = m.Ctl(ctx, "login", "--coordinator", strings.Join(endpoints, ","), "--token-file", token)
	return err
}

func (m *Muster) startAgent(ctx context.Context, spec AgentSpec) error {
	dir, err := m.f.path(spec.Name, "data")
	if err != nil {
		return err
	}
	token, err := m.token(ctx, "host", "token", "--for", spec.Name)
	if err != nil {
		return err
	}
	_, err = m.f.Run(ctx, Command{Path: m.programs.Agent, Stdin: token, Machine: spec.Machine, Args: []string{
		"join", "--data-dir", dir, "--coordinator", m.endpoints(), "--token-file", "-", "--name", spec.Name,
	}})
	if err != nil {
		return err
	}
	args := []string{"run", "--data-dir", dir, "--docker-host", "unix://" + spec.Engine.Socket, "--advertise-address", spec.Address, "--port-range", spec.Ports}
	for _, key := range slices.Sorted(maps.Keys(spec.Labels)) {
		args = append(args, "--label", key+"="+spec.Labels[key])
	}
	if spec.CaddyAdmin != "" {
		args = append(args, "--route-driver", "caddy", "--caddy-admin", spec.CaddyAdmin)
		if spec.Machine == nil {
			if err := m.f.state.change(func(r *record) { r.Folders = append(r.Folders, routesFolder(spec.CaddyAdmin)) }); err != nil {
				return err
			}
		}
	}
	p, err := m.f.Start(Command{Name: spec.Name, Path: m.programs.Agent, Args: args, Machine: spec.Machine, Env: spec.Env})
	if err != nil {
		return err
	}
	m.Agents = append(m.Agents, &Agent{spec, p})
	return nil
}

// routesFolder is where an agent beside the fleet keeps the upstreams of the proxy whose admin API is at the URL. On a machine it goes with the machine.
func routesFolder(admin string) string {
	return filepath.Join("/var/lib/muster-routes", strings.ReplaceAll(strings.TrimPrefix(admin, "http://"), ":", "-"))
}

// token asks for a join token.
func (m *Muster) token(ctx context.Context, args ...string) (string, error) {
	res, err := m.Ctl(ctx, args...)
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(res.Stdout) {
		if strings.HasPrefix(word, "mjt1.") {
			return word + "\n", nil
		}
	}
	return "", fmt.Errorf("musterctl %s printed no token", strings.Join(args, " "))
}

// Command of musterctl, as the operator who is logged in.
func (m *Muster) Command(args ...string) Command {
	return Command{Path: m.programs.Ctl, Args: args, Env: m.Env}
}

// Ctl runs musterctl to its end.
func (m *Muster) Ctl(ctx context.Context, args ...string) (Result, error) {
	return m.f.Run(ctx, m.Command(args...))
}

// CtlTo is Ctl with its output sent to writers as it comes.
func (m *Muster) CtlTo(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	return m.f.RunTo(ctx, m.Command(args...), stdout, stderr)
}

// Login returns the same cluster as seen by another person or program, who has a certificate of their own, and the folder with that certificate.
func (m *Muster) Login(ctx context.Context, name, role string) (*Muster, string, error) {
	token, err := m.token(ctx, "operator", "user", "token", "--for", name, "--role", role)
	if err != nil {
		return nil, "", err
	}
	home, err := m.f.path("user-" + name)
	if err != nil {
		return nil, "", err
	}
	other := &Muster{f: m.f, programs: m.programs, Coordinators: m.Coordinators, Agents: m.Agents, Env: environment(home)}
	login := other.Command("login", "--coordinator", other.endpoints(), "--token-file", "-")
	login.Stdin = token
	if _, err := m.f.Run(ctx, login); err != nil {
		return nil, "", err
	}
	keys, err := other.keys()
	return other, keys, err
}

// environment keeps what musterctl writes inside a folder.
func environment(home string) []string {
	return []string{
		"MUSTERCTL_CONFIG=" + filepath.Join(home, "config.yaml"),
		"XDG_STATE_HOME=" + filepath.Join(home, "state"),
		"XDG_CACHE_HOME=" + filepath.Join(home, "cache"),
	}
}

func (m *Muster) endpoints() string {
	var endpoints []string
	for _, c := range m.Coordinators {
		endpoints = append(endpoints, c.Endpoint())
	}
	return strings.Join(endpoints, ",")
}

// Items runs musterctl with -o json and decodes the items.
func Items[T any](ctx context.Context, m *Muster, args ...string) ([]T, error) {
	res, err := m.Ctl(ctx, append(args, "-o", "json")...)
	if err != nil {
		return nil, err
	}
	var doc struct{ Items []T }
	if err := json.Unmarshal([]byte(res.Stdout), &doc); err != nil {
		return nil, fmt.Errorf("musterctl %s: %w: %s", strings.Join(args, " "), err, res.Stdout)
	}
	return doc.Items, nil
}

// Peer as musterctl shows it.
type Peer struct {
	// ID of the coordinator.
	ID string
	// Voter says that it votes.
	Voter bool
	// Leader says that it leads.
	Leader bool
	// Reachable says that it answered.
	Reachable bool
}

// Host as musterctl shows it.
type Host struct {
	// Name of the host.
	Name string
	// State like HOST_STATE_UP.
	State string
}

// Leader returns the coordinator that leads now.
func (m *Muster) Leader(ctx context.Context) (*Coordinator, error) {
	var leader *Coordinator
	err := m.await(ctx, "a leader", func() (bool, error) {
		peers, err := Items[Peer](ctx, m, "operator", "raft", "peers")
		for _, p := range peers {
			for _, c := range m.Coordinators {
				if p.Leader && c.Name == p.ID && c.Alive() {
					leader = c
				}
			}
		}
		return leader != nil, err
	})
	return leader, err
}

// Voters waits until so many coordinators vote and answer.
func (m *Muster) Voters(ctx context.Context, n int) error {
	return m.await(ctx, fmt.Sprintf("%d voters", n), func() (bool, error) {
		peers, err := Items[Peer](ctx, m, "operator", "raft", "peers")
		count := 0
		for _, p := range peers {
			if p.Voter && p.Reachable {
				count++
			}
		}
		return count == n, err
	})
}

// HostsUp waits until so many hosts are up.
func (m *Muster) HostsUp(ctx context.Context, n int) error {
	return m.await(ctx, fmt.Sprintf("%d hosts to be up", n), func() (bool, error) {
		hosts, err := Items[Host](ctx, m, "host", "list")
		count := 0
		for _, h := range hosts {
			if h.State == "HOST_STATE_UP" {
				count++
			}
		}
		return count == n, err
	})
}

// Reaches waits until a coordinator, asked by itself, has the connections of all agents again. A cluster is served well before: this is for tests that
// must not be about the moment after a restart.
func (m *Muster) Reaches(ctx context.Context, c *Coordinator) error {
	return m.await(ctx, c.Name+" to reach all agents", func() (bool, error) {
		_, err := m.Ctl(ctx, "--server", c.Endpoint(), "service", "ps")
		return err == nil, err
	})
}

// HostIs waits until a host is in the state, like HOST_STATE_DOWN.
func (m *Muster) HostIs(ctx context.Context, name, state string) error {
	return m.await(ctx, name+" to be "+state, func() (bool, error) {
		hosts, err := Items[Host](ctx, m, "host", "list")
		return slices.Contains(hosts, Host{Name: name, State: state}), err
	})
}

// await polls, and takes errors for what passes: the last one is told if the time runs out. A program that ended is not waited for.
func (m *Muster) await(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, clusterLimit)
	defer cancel()
	var last error
	err := Poll(ctx, 50*time.Millisecond, what, func() (bool, error) {
		done, err := ok()
		if err == nil {
			return done, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		return false, m.dead()
	})
	if err != nil && last != nil {
		return errors.Join(err, last)
	}
	return err
}

// dead reports programs that ended by themselves; one that a test killed has been told by a signal.
func (m *Muster) dead() error {
	var errs []error
	check := func(p *Process) {
		if !p.Alive() && p.cmd.ProcessState.Exited() {
			errs = append(errs, p.failed())
		}
	}
	for _, c := range m.Coordinators {
		check(c.Process)
	}
	for _, a := range m.Agents {
		check(a.Process)
	}
	return errors.Join(errs...)
}

// Close stops the agents, then the coordinators. The fleet does it by itself for what is not on a machine.
func (m *Muster) Close(ctx context.Context) error {
	var errs []error
	for _, a := range m.Agents {
		errs = append(errs, a.Stop(ctx))
	}
	for _, c := range m.Coordinators {
		errs = append(errs, c.Stop(ctx))
	}
	return errors.Join(errs...)
}

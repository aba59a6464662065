//go:build e2e || crash

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/internal/crashpoint"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	rigHosts  = 2
	rigReady  = 10 * time.Millisecond // from a container's start to its health
	caseLimit = 60 * time.Second
	rigPoll   = 10 * time.Millisecond
)

// rig is a fleet of real coordinators and agents over engines without containers. Every program is built to die where it is told to, and a supervisor starts
// it again at once. It needs no Docker.
type rig struct {
	*fleet.Fleet
	muster  *fleet.Muster
	engines []*fleet.FakeEngine
	client  *fleet.Client
	second  *fleet.Client // another person, who approves
	runs    coordinatorv1.RunServiceClient
	stacks  coordinatorv1.StackServiceClient
	members []*member
	secrets uint64 // acknowledged versions of the probe's secret
	serial  int    // of request ids
}

// member is a process that may be killed.
type member struct {
	name    string
	process *fleet.Process
	restart func(context.Context) error
	table   *crashpoint.Table

	mu     sync.Mutex
	deaths []time.Time
}

func newRig(t *testing.T, name string) *rig {
	t.Helper()
	f, err := fleet.Open(t.Context(), fleet.Options{Name: name, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			f.Logs(t.Output(), 30)
		}
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	r := &rig{Fleet: f}
	if err := r.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) build(ctx context.Context) error {
	programs, engine, err := r.BuildCrashing(ctx)
	if err != nil {
		return err
	}
	var coordinators []fleet.CoordinatorSpec
	var agents []fleet.AgentSpec
	for i := range 3 {
		name := fmt.Sprintf("c%d", i+1)
		coordinators = append(coordinators, fleet.CoordinatorSpec{Name: name, Address: r.Loopback(1 + i), Port: 7443, HTTPPort: 7480, Env: r.points(name)})
	}
	for i := range rigHosts {
		name := fmt.Sprintf("e%d", i+1)
		e, err := r.StartFakeEngine(ctx, engine, name, rigReady, r.points(name), rigImages()...)
		if err != nil {
			return err
		}
		r.engines = append(r.engines, e)
		if err := r.add(name, e.Process(), e.Restart); err != nil {
			return err
		}
		name = fmt.Sprintf("h%d", i+1)
		agents = append(agents, fleet.AgentSpec{Name: name, Engine: e.Engine, Address: r.Loopback(11 + i), Ports: "21000-21999", Env: r.points(name)})
	}
	admin, err := freePort()
	if err != nil {
		return err
	}
	proxy, err := r.StartCaddy(ctx, nil, "caddy", net.JoinHostPort(r.Loopback(21), "8088"), admin)
	if err != nil {
		return err
	}
	agents[0].CaddyAdmin = proxy.Admin
	if r.muster, err = r.StartMuster(ctx, programs, coordinators, agents); err != nil {
		return err
	}
	again := func(p *fleet.Process) func(context.Context) error {
		return func(context.Context) error { return p.Restart() }
	}
	for _, c := range r.muster.Coordinators {
		if err := r.add(c.Name, c.Process, again(c.Process)); err != nil {
			return err
		}
	}
	for _, a := range r.muster.Agents {
		if err := r.add(a.Name, a.Process, again(a.Process)); err != nil {
			return err
		}
	}
	if r.client, err = r.muster.Dial(); err != nil {
		return err
	}
	second, _, err := r.muster.Login(ctx, "second", "operator")
	if err != nil {
		return err
	}
	if r.second, err = second.Dial(); err != nil {
		return err
	}
	r.runs, r.stacks = coordinatorv1.NewRunServiceClient(r.client), coordinatorv1.NewStackServiceClient(r.client)
	return nil
}

// counted tells the result of a test that counts, and adds it to the file that CRASH_REPORT names.
func counted(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Log(text)
	path := os.Getenv("CRASH_REPORT")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s\n\n", strings.TrimSpace(text))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

// freePort of the address at which Caddy takes orders without being told who may give them.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// points is the environment of a program that can be told where to die.
func (r *rig) points(name string) []string {
	return []string{crashpoint.Variable + "=" + filepath.Join(r.Dir(), name+".points")}
}

func (r *rig) add(name string, p *fleet.Process, restart func(context.Context) error) error {
	table, err := crashpoint.Open(filepath.Join(r.Dir(), name+".points"))
	if err != nil {
		return err
	}
	r.OnClose("points of "+name, func(context.Context) error { return table.Close() })
	r.members = append(r.members, &member{name: name, process: p, restart: restart, table: table})
	return nil
}

func (r *rig) member(name string) *member {
	for _, m := range r.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

// requestID is a new one.
func (r *rig) requestID() string {
	r.serial++
	return fmt.Sprintf("crash-%d", r.serial)
}

// supervise starts whatever dies again, until the returned function is called, which tells what went wrong.
func (r *rig) supervise(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	errs := make([]error, len(r.members))
	for i, m := range r.members {
		wg.Go(func() { errs[i] = m.supervise(ctx) })
	}
	return func() error {
		cancel()
		wg.Wait()
		return errors.Join(errs...)
	}
}

func (m *member) supervise(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.process.Done():
		}
		m.mu.Lock()
		m.deaths = append(m.deaths, time.Now())
		err := m.restart(ctx)
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// signal sends a signal to the member's process as it is now, between its death and its next life to nobody.
func (m *member) signal(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Signal(sig)
}

// died says how often the member died so far, and when last.
func (m *member) died() (int, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.deaths) == 0 {
		return 0, time.Time{}
	}
	return len(m.deaths), m.deaths[len(m.deaths)-1]
}

// whole waits until there is a leader, every member votes and answers, and every host is up. It returns the leader and a follower.
func (r *rig) whole(ctx context.Context) (leader, follower string, err error) {
	cluster, hosts := coordinatorv1.NewClusterServiceClient(r.client), coordinatorv1.NewHostServiceClient(r.client)
	last := ""
	err = fleet.Poll(ctx, rigPoll, "the fleet to be whole", func() (bool, error) {
		peers, err := cluster.ListPeers(ctx, &coordinatorv1.ListPeersRequest{})
		if err != nil {
			return false, err
		}
		leader, follower = "", ""
		voters := 0
		for _, p := range peers.GetPeers() {
			if !p.GetVoter() || !p.GetReachable() {
				continue
			}
			voters++
			if p.GetLeader() {
				leader = p.GetId()
			} else {
				follower = p.GetId()
			}
		}
		if last = fmt.Sprint(peers); voters != 3 || leader == "" {
			return false, nil
		}
		list, err := hosts.ListHosts(ctx, &coordinatorv1.ListHostsRequest{})
		up := 0
		for _, h := range list.GetHosts() {
			if h.GetState() == coordinatorv1.HostState_HOST_STATE_UP {
				up++
			}
		}
		last = fmt.Sprint(list)
		return up == rigHosts, err
	})
	if err != nil {
		return "", "", fmt.Errorf("%w; last seen: %s", err, last)
	}
	return leader, follower, nil
}

// write makes a small write through the API and returns when it is acknowledged. Every acknowledged version must be there for ever, and no other.
func (r *rig) write(ctx context.Context) error {
	secrets := coordinatorv1.NewSecretServiceClient(r.client)
	resp, err := secrets.PutSecret(ctx, &coordinatorv1.PutSecretRequest{Name: "probe", Value: []byte("v"), RequestId: r.requestID()})
	if err != nil {
		return err
	}
	r.secrets++
	if v := resp.GetSecret().GetVersion(); v != r.secrets {
		return fmt.Errorf("acknowledged version %d of the secret after %d writes: one was lost or done twice", v, r.secrets)
	}
	return nil
}

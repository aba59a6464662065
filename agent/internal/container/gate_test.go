package container_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/container"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	notReady = agentv1.FailureReason_FAILURE_REASON_NOT_READY
	exited   = agentv1.FailureReason_FAILURE_REASON_CONTAINER_EXITED
	invalid  = agentv1.FailureReason_FAILURE_REASON_INVALID
)

func execGate(argv ...string) *agentv1.Gate {
	return &agentv1.Gate{Probe: &agentv1.Gate_Exec{Exec: &agentv1.ExecProbe{Argv: argv}}, Interval: durationpb.New(50 * time.Millisecond)}
}

func tcpGate() *agentv1.Gate {
	return &agentv1.Gate{Probe: &agentv1.Gate_Tcp{Tcp: &agentv1.TcpProbe{Port: 8080}}}
}

func within(gate *agentv1.Gate, deadline time.Duration) *agentv1.Gate {
	gate.Deadline = durationpb.New(deadline)
	return gate
}

// healthcheck makes the engine run the server's own check.
func healthcheck(spec *agentv1.ContainerSpec) {
	spec.Healthcheck = &agentv1.Healthcheck{
		Test: []string{"CMD", "/server", "check"}, Interval: durationpb.New(200 * time.Millisecond), Timeout: durationpb.New(5 * time.Second), Retries: 2,
	}
}

func TestAwaitReady(t *testing.T) {
	unpublished := func(spec *agentv1.ContainerSpec) { spec.Ports = nil }
	for _, tt := range []struct {
		name   string
		env    []string
		change func(*agentv1.ContainerSpec)
		gate   *agentv1.Gate
		least  time.Duration // that it must take.

		reason    agentv1.FailureReason // 0: it becomes ready.
		texts     []string
		evidences []string
	}{
		{name: "http", env: []string{"READY_AFTER=600ms"}, gate: healthz(), least: 300 * time.Millisecond},
		{name: "http by the container's address", change: unpublished, gate: healthz()},
		{name: "http with a status", gate: &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 8080, Path: "/none", Status: 404}}}},
		{name: "tcp", gate: tcpGate()},
		{name: "exec", env: []string{"READY_AFTER=300ms"}, gate: execGate("/server", "check")},
		{name: "health", env: []string{"READY_AFTER=300ms"}, change: healthcheck, gate: &agentv1.Gate{Probe: &agentv1.Gate_Health{}}},
		{name: "running", env: []string{"NO_LISTEN=1"}, gate: &agentv1.Gate{Probe: &agentv1.Gate_Running{}}},
		{
			name: "http never", env: []string{"READY_AFTER=1h"}, gate: within(healthz(), time.Second), least: 500 * time.Millisecond, reason: notReady,
			texts: []string{"GET http://127.0.0.1:", "/healthz answered 503 after ", " probes in "}, evidences: []string{"last answer: warming up", "server starts"},
		},
		{
			name: "tcp never, behind the engine's port proxy", env: []string{"NO_LISTEN=1"}, gate: within(tcpGate(), 500*time.Millisecond), reason: notReady,
			texts: []string{"nothing listens on port 8080 in the container"},
		},
		{
			name: "exec never", env: []string{"READY_AFTER=1h"}, gate: within(execGate("/server", "check"), 500*time.Millisecond), reason: notReady,
			texts: []string{`command ["/server" "check"] exited with 1`}, evidences: []string{"answered 503"},
		},
		{
			name: "exec that hangs", gate: &agentv1.Gate{
				Probe: execGate("/server", "hang").GetProbe(), Timeout: durationpb.New(200 * time.Millisecond), Deadline: durationpb.New(500 * time.Millisecond),
			}, change: func(spec *agentv1.ContainerSpec) { spec.Env = append(spec.Env, "NO_LISTEN=1") }, reason: notReady, texts: []string{"did not end in time"},
		},
		{
			name: "exec of nothing", gate: within(execGate("/none"), 500*time.Millisecond), reason: notReady, texts: []string{`command ["/none"]`},
		},
		{
			name: "unhealthy", env: []string{"READY_AFTER=1h"}, change: healthcheck, gate: &agentv1.Gate{Probe: &agentv1.Gate_Health{}}, reason: notReady,
			texts: []string{"health is unhealthy"}, evidences: []string{"answered 503"},
		},
		{
			name: "exit", env: []string{"READY_AFTER=1h", "EXIT_AFTER=400ms", "EXIT_CODE=3"}, gate: healthz(), reason: exited,
			texts: []string{"exited with code 3", "after its start"}, evidences: []string{"server starts", "fatal: cannot reach the database"},
		},
		{
			name: "restarting", env: []string{"READY_AFTER=1h", "EXIT_AFTER=200ms", "EXIT_CODE=3"}, gate: healthz(), reason: exited,
			change: func(spec *agentv1.ContainerSpec) { spec.Restart = &agentv1.RestartPolicy{Name: "always"} }, texts: []string{"restarted by the engine"},
		},
		{name: "no gate", gate: &agentv1.Gate{}, reason: invalid, texts: []string{"has no gate"}},
		{name: "no health check", gate: &agentv1.Gate{Probe: &agentv1.Gate_Health{}}, reason: invalid, texts: []string{"no HEALTHCHECK"}},
		{
			name: "no network", gate: healthz(), reason: invalid, texts: []string{"8080 is not reachable"},
			change: func(spec *agentv1.ContainerSpec) { spec.Ports, spec.NetworkMode = nil, "none" },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, container.Policy{})
			spec := server(t, h, tt.env...)
			if tt.change != nil {
				tt.change(spec)
			}
			run(t, h, spec)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := h.AwaitReady(ctx, &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: tt.gate})
			if took := time.Since(began); took < tt.least || took > 30*time.Second {
				t.Errorf("took %s, want at least %s and no deadline of minutes", took, tt.least)
			}
			if tt.reason == 0 {
				if err != nil || got.GetProbes() == 0 {
					t.Errorf("got %v, %v; want ready", got, err)
				}
				return
			}
			f := wantFailure(t, err, tt.reason, true, append(tt.texts, spec.GetName())...)
			for _, text := range tt.evidences {
				if !strings.Contains(f.GetEvidence(), text) {
					t.Errorf("got evidence %q, want %q in it", f.GetEvidence(), text)
				}
			}
		})
	}
}

func TestAwaitReadyOfNothing(t *testing.T) {
	h := newHost(t, container.Policy{})
	_, err := h.AwaitReady(t.Context(), &agentv1.AwaitReadyRequest{Name: "none.such", Gate: healthz()})
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND, true, "none.such")
	spec := server(t, h)
	if _, err := h.Create(t.Context(), "run/step/1", spec); err != nil {
		t.Fatal(err)
	}
	_, err = h.AwaitReady(t.Context(), &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: healthz()})
	wantFailure(t, err, exited, true, "was not started")
}

func TestWatch(t *testing.T) {
	for _, tt := range []struct {
		name   string
		env    []string
		change func(*agentv1.ContainerSpec)
		gate   *agentv1.Gate
		during func(*testing.T, *host, *agentv1.ContainerSpec)
		reason agentv1.FailureReason
		texts  []string
	}{
		{name: "quiet", gate: healthz()},
		{name: "without a gate", env: []string{"NO_LISTEN=1"}},
		{name: "exit", env: []string{"EXIT_AFTER=1500ms", "EXIT_CODE=4"}, gate: healthz(), reason: exited, texts: []string{"exited with code 4"}},
		{
			name: "restart by the engine", env: []string{"EXIT_AFTER=1500ms", "EXIT_CODE=4"}, reason: exited, texts: []string{"restarted"},
			change: func(spec *agentv1.ContainerSpec) { spec.Restart = &agentv1.RestartPolicy{Name: "always"} },
		},
		{
			name: "restart by hand", gate: healthz(), reason: exited, // a look may fall between the stop and the start.
			during: func(t *testing.T, h *host, spec *agentv1.ContainerSpec) {
				if err := h.lab.docker.ContainerRestart(t.Context(), spec.GetName(), stopOptions(0)); err != nil {
					t.Error(err)
				}
			},
		},
		{name: "gate fails", env: []string{"UNREADY_AFTER=1s"}, gate: healthz(), reason: notReady, texts: []string{"3 times in a row", "answered 503"}},
		{name: "unhealthy", env: []string{"UNREADY_AFTER=1s"}, change: healthcheck, reason: notReady, texts: []string{"turned unhealthy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, container.Policy{})
			spec := server(t, h, tt.env...)
			if tt.change != nil {
				tt.change(spec)
			}
			run(t, h, spec)
			var g errgroup.Group
			if tt.during != nil {
				g.Go(func() error {
					pause(time.Second)
					tt.during(t, h, spec)
					return nil
				})
			}
			window := 2 * time.Second
			if tt.reason != 0 {
				window = 30 * time.Second
			}
			began := time.Now()
			_, err := h.Watch(t.Context(), &agentv1.WatchContainerRequest{Name: spec.GetName(), Window: durationpb.New(window), Gate: tt.gate})
			took := time.Since(began)
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if tt.reason != 0 {
				wantFailure(t, err, tt.reason, true, tt.texts...)
				if took > 20*time.Second {
					t.Errorf("failed after %s, want it at once", took)
				}
				return
			}
			if err != nil || took < window {
				t.Errorf("got %v after %s, want the whole window", err, took)
			}
		})
	}
}

func TestWatchOfAStoppedContainer(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	run(t, h, spec)
	if _, err := h.Stop(t.Context(), spec.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	_, err := h.Watch(t.Context(), &agentv1.WatchContainerRequest{Name: spec.GetName(), Window: durationpb.New(time.Hour)})
	wantFailure(t, err, exited, true, "exited with code")
}

// TestEngineThatIsAway shows that an engine which never answers is no failure of an operation, and is one of a question.
func TestEngineThatIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	engine, err := container.New(container.Options{DockerHost: "tcp://" + address, HostName: "h", SecretsDir: t.TempDir(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = engine.Start(ctx, "a.b.1.r1")
	if _, definite := rpcerr.Failure(err); definite || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), address) {
		t.Errorf("start: got %v, want the ended context and the engine's address, and no definite failure", err)
	}
	_, err = engine.List(t.Context(), &agentv1.ListContainersRequest{})
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ENGINE, false, address, "does not answer within")
}

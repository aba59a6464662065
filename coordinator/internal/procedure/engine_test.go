package procedure_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/procedure"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// agent is a fake host behind real gRPC: it remembers outcomes by operation id, as the ledger does, and counts effects.
type agent struct {
	agentv1.UnimplementedContainerServiceServer
	agentv1.UnimplementedOperationServiceServer

	mu        sync.Mutex
	effects   map[string]int    // by operation id
	secrets   map[string][]byte // by container
	fail      map[string]error  // by container name
	once      map[string]error  // as fail, for the first operation only
	states    map[string][]string
	inspected int
	lose      int // answers to lose after the effect
	cancelled []string
	hang      chan struct{} // AwaitReady blocks until it is closed
	probing   chan struct{} // has a token for each AwaitReady that began
}

func (a *agent) StartContainer(_ context.Context, req *agentv1.StartContainerRequest) (*agentv1.StartContainerResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.effects[req.GetOperation().GetId()] == 0 {
		a.effects[req.GetOperation().GetId()]++
	}
	if a.lose > 0 {
		a.lose--
		return nil, status.Error(codes.Unavailable, "the connection broke after the effect")
	}
	if err := a.once[req.GetName()]; err != nil {
		delete(a.once, req.GetName())
		return nil, err
	}
	if err := a.fail[req.GetName()]; err != nil {
		return nil, err
	}
	return &agentv1.StartContainerResponse{}, nil
}

func (a *agent) CreateContainer(_ context.Context, req *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, mount := range req.GetSpec().GetSecrets() {
		a.secrets[req.GetSpec().GetName()] = mount.GetSecret().GetValue()
	}
	return &agentv1.CreateContainerResponse{Id: "c0ffee"}, nil
}

func (a *agent) StopContainer(_ context.Context, req *agentv1.StopContainerRequest) (*agentv1.StopContainerResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.effects[req.GetOperation().GetId()]++
	return &agentv1.StopContainerResponse{}, nil
}

func (a *agent) AwaitReady(ctx context.Context, _ *agentv1.AwaitReadyRequest) (*agentv1.AwaitReadyResponse, error) {
	a.probing <- struct{}{}
	select {
	case <-a.hang:
		return &agentv1.AwaitReadyResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (a *agent) CancelOperation(_ context.Context, req *agentv1.CancelOperationRequest) (*agentv1.CancelOperationResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancelled = append(a.cancelled, req.GetOperationId())
	return &agentv1.CancelOperationResponse{}, nil
}

// bench is a state with a log of one member, an engine and one host.
type bench struct {
	t      *testing.T
	state  *state.State
	agent  *agent
	conn   *grpc.ClientConn
	engine *procedure.Engine

	mu      sync.Mutex
	index   uint64
	down    bool
	changed chan struct{}
}

func newBench(t *testing.T) *bench {
	b := &bench{
		t: t, state: state.New(), changed: make(chan struct{}),
		agent: &agent{effects: map[string]int{}, secrets: map[string][]byte{}, fail: map[string]error{}, hang: make(chan struct{}), probing: make(chan struct{}, 100)},
	}
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	agentv1.RegisterContainerServiceServer(server, b.agent)
	agentv1.RegisterOperationServiceServer(server, b.agent)
	go server.Serve(listener) //nolint:errcheck // Ends with Stop.
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///h1", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	b.conn = conn
	b.engine = procedure.New(procedure.Options{
		ID: "c1", State: b.state, Propose: b.propose, Conn: b.connect, HostsChanged: b.hostsChanged, Logger: slog.New(slog.DiscardHandler),
	})
	return b
}

func (b *bench) propose(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index++
	return b.state.Apply(b.index, command), nil
}

func (b *bench) connect(string) (grpc.ClientConnInterface, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, errors.New("not connected")
	}
	return b.conn, nil
}

func (b *bench) hostsChanged() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *bench) setDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
	close(b.changed)
	b.changed = make(chan struct{})
}

// lead runs the engine until the returned function is called.
func (b *bench) lead() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.engine.Lead(ctx, 1) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("lead: %v", err)
		}
	}
}

func (b *bench) start(steps ...*coordinatorv1.Step) string {
	b.t.Helper()
	plan := &coordinatorv1.Plan{Procedure: "test", Steps: steps, MaxDuration: durationpb.New(time.Minute)}
	result, err := b.propose(context.Background(), &raftv1.Command{Version: 1, Now: timestamppb.Now(), Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan}}})
	if err != nil || result.GetError() != nil {
		b.t.Fatalf("start: %v %v", err, result.GetError())
	}
	return result.GetRun().GetId()
}

// until waits for the state to satisfy a condition.
func (b *bench) until(what string, met func(v *state.View) bool) {
	b.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		changed := b.state.Changed()
		if met(b.state.View()) {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			b.t.Fatalf("never: %s", what)
		}
	}
}

func (b *bench) ends(run string, want coordinatorv1.RunState) {
	b.t.Helper()
	b.until("the run ends "+want.String(), func(v *state.View) bool { return v.Run(run).GetState() == want })
}

func step(t *testing.T, id, method string, effect accessv1.Effect, request proto.Message, after ...string) *coordinatorv1.Step {
	t.Helper()
	raw, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return &coordinatorv1.Step{
		Id: id, Title: id, Host: "h1", After: after, Timeout: durationpb.New(30 * time.Second),
		Action: &coordinatorv1.Action{Method: "muster.agent.v1.ContainerService/" + method, Request: raw, Effect: effect},
	}
}

func start(t *testing.T, name string, after ...string) *coordinatorv1.Step {
	s := step(t, name+"/start", "StartContainer", accessv1.Effect_EFFECT_IDEMPOTENT, &agentv1.StartContainerRequest{Name: name}, after...)
	stop := step(t, "x", "StopContainer", accessv1.Effect_EFFECT_IDEMPOTENT, &agentv1.StopContainerRequest{Name: name})
	s.Undo = []*coordinatorv1.Undo{{Title: "stop " + name, Action: stop.GetAction(), Timeout: durationpb.New(time.Minute)}}
	return s
}

func TestLostAnswersAreAskedForAgain(t *testing.T) {
	b := newBench(t)
	b.agent.lose = 3
	defer b.lead()()
	run := b.start(start(t, "a"), start(t, "b", "a/start"))
	b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	for id, n := range b.agent.effects {
		if n != 1 {
			t.Errorf("operation %s had %d effects", id, n)
		}
	}
	if len(b.agent.effects) != 2 {
		t.Errorf("effects %v, want one for each step", b.agent.effects)
	}
}

func TestFailureIsUndone(t *testing.T) {
	b := newBench(t)
	b.agent.fail["b"] = rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true, "port 80 is taken")
	defer b.lead()()
	run := b.start(start(t, "a"), start(t, "b", "a/start"))
	b.ends(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
	if b.agent.effects[run+"/undo/a/start/0/1"] != 1 || b.agent.effects[run+"/undo/b/start/0/1"] != 1 {
		t.Errorf("effects %v, want both starts undone once", b.agent.effects)
	}
	if got := b.state.View().Run(run).GetCause(); got != "b/start: port 80 is taken" {
		t.Errorf("cause %q", got)
	}
}

func TestNextLeaderAttaches(t *testing.T) {
	b := newBench(t)
	stop := b.lead()
	ready := step(t, "a/ready", "AwaitReady", accessv1.Effect_EFFECT_NONE, &agentv1.AwaitReadyRequest{Name: "a"}, "a/start")
	run := b.start(start(t, "a"), ready)
	b.until("the probe is open", func(v *state.View) bool {
		return v.Step(run, "a/ready").GetState() == coordinatorv1.StepState_STEP_STATE_RUNNING
	})
	stop()
	before := b.state.View().Meta().GetEpoch()
	defer b.lead()()
	close(b.agent.hang)
	b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	if after := b.state.View().Meta().GetEpoch(); after <= before {
		t.Errorf("epoch %d after %d: a takeover must raise it", after, before)
	}
	if got := b.state.View().Step(run, "a/ready").GetAttempt(); got != 1 {
		t.Errorf("attempt %d: a change of leader is no reason for another attempt", got)
	}
}

func TestCancelGivesProbesUp(t *testing.T) {
	b := newBench(t)
	defer b.lead()()
	ready := step(t, "a/ready", "AwaitReady", accessv1.Effect_EFFECT_NONE, &agentv1.AwaitReadyRequest{Name: "a"}, "a/start")
	run := b.start(start(t, "a"), ready)
	<-b.agent.probing
	_, _ = b.propose(context.Background(), &raftv1.Command{Version: 1, Now: timestamppb.Now(), Actor: "alice", Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: raftv1.RunControl_RUN_CONTROL_CANCEL}}})
	b.ends(run, coordinatorv1.RunState_RUN_STATE_CANCELLED)
	deadline := time.After(10 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		b.agent.mu.Lock()
		cancelled := len(b.agent.cancelled)
		b.agent.mu.Unlock()
		if cancelled > 0 {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the probe was not cancelled at its agent")
		}
	}
}

func TestSilentHostIsWaitedFor(t *testing.T) {
	b := newBench(t)
	b.setDown(true)
	defer b.lead()()
	run := b.start(start(t, "a"))
	b.until("the host is shown as silent", func(v *state.View) bool {
		return v.Step(run, "a/start").GetUnreachableSince() != nil && len(v.Blockers(run)) == 1
	})
	b.setDown(false)
	b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
}

func TestSecretsAreFilledInAtTheLastMoment(t *testing.T) {
	b := newBench(t)
	defer b.lead()()
	_, _ = b.propose(context.Background(), &raftv1.Command{Version: 1, Now: timestamppb.Now(), Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: "jwt", Value: []byte("s3cret")}}})
	spec := &agentv1.ContainerSpec{Name: "a", Secrets: []*agentv1.SecretMount{{Secret: &agentv1.SecretValue{Name: "jwt", Version: 1}, Target: "/run/secrets/jwt"}}}
	run := b.start(step(t, "a/create", "CreateContainer", accessv1.Effect_EFFECT_IDEMPOTENT, &agentv1.CreateContainerRequest{Spec: spec}))
	b.ends(run, coordinatorv1.RunState_RUN_STATE_SUCCEEDED)
	if got := string(b.agent.secrets["a"]); got != "s3cret" {
		t.Errorf("the agent got %q", got)
	}
	spec.Secrets[0].Secret.Version = 7
	run = b.start(step(t, "b/create", "CreateContainer", accessv1.Effect_EFFECT_IDEMPOTENT, &agentv1.CreateContainerRequest{Spec: spec}))
	b.ends(run, coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

func TestImpossibleActionFailsForGood(t *testing.T) {
	b := newBench(t)
	defer b.lead()()
	bad := step(t, "a", "Explode", accessv1.Effect_EFFECT_ONCE, &agentv1.StartContainerRequest{})
	b.ends(b.start(bad), coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
}

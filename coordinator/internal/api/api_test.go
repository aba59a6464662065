package api_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/api"
	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// world is a real cluster of one with its servers behind a real connection. No engine runs: the tests move runs themselves.
type world struct {
	t       *testing.T
	state   *state.State
	cluster *cluster.Cluster
	servers *api.Servers
	conn    *grpc.ClientConn
	epoch   uint64
	// identities makes credentials; no gate asks the registry for them.
	identities identitytest.Cluster
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, state: state.New(), identities: identitytest.New(t, "test")}
	logger := slog.New(slog.DiscardHandler)
	raft, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	options := cluster.Options{
		ID: "c1", Address: raft.Addr().String(), ClusterID: "test", DataDir: t.TempDir(), SealKey: make([]byte, 32), FSM: state.New(), Logger: logger,
		Profile: cluster.Timeouts{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, LeaderLease: 50 * time.Millisecond},
	}
	if err := cluster.Bootstrap(t.Context(), options, &raftv1.Command{Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
		ClusterId: "test", ClusterName: "test", Authority: w.identities.Authority,
		Identity: &raftv1.Identity{Id: "spiffe://coordinator.test.muster/c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1", Address: options.Address},
	}}}); err != nil {
		t.Fatal(err)
	}
	options.FSM, options.Raft = w.state, raft
	options.DialRaft = func(context.Context, string) (net.Conn, error) { return nil, errors.New("there is no other member") }
	options.DialPeer = func(context.Context, string) (grpc.ClientConnInterface, error) {
		return nil, errors.New("there is no other member")
	}
	if w.cluster, err = cluster.New(options); err != nil {
		t.Fatal(err)
	}
	w.servers = api.New(api.Options{ID: "c1", State: w.state, Cluster: w.cluster, Hosts: hosts.New(hosts.Options{}), Version: "test", Logger: logger})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.cluster.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	w.serve()
	w.epoch = w.propose(&raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: "c1", Term: 1}}}).GetEpoch()
	return w
}

func (w *world) serve() {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer()
	w.servers.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if w.conn, err = grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = w.conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
}

func (w *world) propose(command *raftv1.Command) *raftv1.Result {
	w.t.Helper()
	command.Actor = "alice"
	result, _, err := w.cluster.Propose(w.t.Context(), command)
	if err != nil || result.GetError() != nil {
		w.t.Fatalf("propose: %v %v", err, result.GetError())
	}
	return result
}

// start starts a run of one step, on a stack if one is named.
func (w *world) start(stack string) *coordinatorv1.Run {
	w.t.Helper()
	return w.propose(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		StackRevision: w.state.View().Stack(stack).GetRevision(),
		Plan: &coordinatorv1.Plan{
			Procedure: "test", Stack: stack, MaxDuration: durationpb.New(time.Hour), Hash: "h",
			Steps: []*coordinatorv1.Step{{
				Id: "s", Title: "do it", Host: "h1", Timeout: durationpb.New(time.Minute), MaxAttempts: 1,
				Action: &coordinatorv1.Action{Method: "test/do", Effect: accessv1.Effect_EFFECT_IDEMPOTENT},
			}},
		},
	}}}).GetRun()
}

// finish lets the step of a run end well, and the run with it.
func (w *world) finish(run string) {
	w.t.Helper()
	step := w.state.View().Step(run, "s")
	w.propose(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{
		Epoch: w.epoch, Outcomes: []*raftv1.Outcome{{RunId: run, StepId: "s", Attempt: step.GetAttempt()}},
	}}})
	if got := w.state.View().Run(run).GetState(); got != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
		w.t.Fatalf("run %s is %s", run, got)
	}
}

// host lets an agent join.
func (w *world) host(name string, labels map[string]string) {
	w.t.Helper()
	w.propose(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: name, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, Labels: labels, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
	}}}})
	w.propose(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: name, SecretHash: []byte("s"), Identity: &raftv1.Identity{
		Id: "spiffe://agent.test.muster/" + name, Role: accessv1.Role_ROLE_AGENT, Name: name,
	}}}})
}

// next receives a message in time.
func next[T any](t *testing.T, stream grpc.ServerStreamingClient[T]) *T {
	t.Helper()
	type answer struct {
		message *T
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		message, err := stream.Recv()
		answers <- answer{message, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			t.Fatalf("receive: %v", a.err)
		}
		return a.message
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		return nil
	}
}

// end expects a stream to end well.
func end[T any](t *testing.T, stream grpc.ServerStreamingClient[T]) {
	t.Helper()
	if message, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream goes on with %v, %v", message, err)
	}
}

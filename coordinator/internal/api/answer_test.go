package api_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// runsAs calls RunService as somebody.
func (w *world) runsAs(role accessv1.Role, name string) coordinatorv1.RunServiceClient {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	caller := grpcserver.Caller{ID: identity.ID{Cluster: "test", Role: role, Name: name}}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return next(grpcserver.WithCaller(ctx, caller), req)
	}))
	w.servers.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
	return coordinatorv1.NewRunServiceClient(conn)
}

// guarded starts a run that asks before its only action.
func (w *world) guarded() *coordinatorv1.Run {
	w.t.Helper()
	return w.propose(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: &coordinatorv1.Plan{
		Procedure: "maintenance", MaxDuration: durationpb.New(time.Hour), Hash: "0123456789abcdef", Title: "migrate", Locks: []string{"db/x"},
		Steps: []*coordinatorv1.Step{
			{Id: "ask", Title: "ask", Approval: &coordinatorv1.Approval{Prompt: "migrate now?"}},
			{
				Id: "s", Title: "do it", Host: "h1", After: []string{"ask"}, Timeout: durationpb.New(time.Minute),
				Action: &coordinatorv1.Action{Method: "test/do", Effect: accessv1.Effect_EFFECT_ONCE},
			},
		},
	}}}}).GetRun()
}

func TestDecideAndResolve(t *testing.T) {
	w := newWorld(t)
	run := w.guarded().GetId()
	bob, viewer := w.runsAs(accessv1.Role_ROLE_OPERATOR, "bob"), w.runsAs(accessv1.Role_ROLE_VIEWER, "eve")
	locks, err := bob.ListLocks(t.Context(), &coordinatorv1.ListLocksRequest{})
	if err != nil || len(locks.GetLocks()) != 1 || locks.GetLocks()[0].GetName() != "db/x" || locks.GetLocks()[0].GetRunId() != run || locks.GetLocks()[0].GetOwner() != "alice" {
		t.Errorf("locks %v, %v", locks, err)
	}
	decide := func(who coordinatorv1.RunServiceClient, id, hash string) error {
		_, err := who.DecideStep(t.Context(), &coordinatorv1.DecideStepRequest{RunId: run, PlanHash: hash, Approve: true, RequestId: id})
		return err
	}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"no request id", decide(bob, "", "0123456789ab"), "INVALID"},
		{"a viewer", decide(viewer, "1", "0123456789ab"), "NOT_ALLOWED"},
		{"another plan", decide(bob, "2", "ffffffffffff"), "PLAN_CHANGED"},
	} {
		if rpcerr.Reason(tt.err) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, tt.err, tt.want)
		}
	}
	for range 2 { // The second is the first again.
		if err := decide(bob, "3", "0123456789ab"); err != nil {
			t.Fatal(err)
		}
	}
	if err := decide(bob, "4", "0123456789ab"); rpcerr.Reason(err) != "STEP_NOT_ASKING" {
		t.Errorf("got %v", err)
	}
	w.propose(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: w.epoch, Outcomes: []*raftv1.Outcome{{
		RunId: run, StepId: "s", Attempt: 1, Lost: true, Failure: &agentv1.OperationFailure{Message: "the agent died"},
	}}}}})
	shown, err := bob.GetRun(t.Context(), &coordinatorv1.GetRunRequest{RunId: run})
	if err != nil || len(shown.GetBlockers()) != 1 {
		t.Errorf("run %v, %v", shown.GetBlockers(), err)
	}
	answer, err := bob.ResolveStep(t.Context(), &coordinatorv1.ResolveStepRequest{RunId: run, Resolution: coordinatorv1.Resolution_RESOLUTION_DONE, RequestId: "5"})
	if err != nil || answer.GetRun().GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("run %v, %v", answer.GetRun(), err)
	}
	listed, err := bob.ListRuns(t.Context(), &coordinatorv1.ListRunsRequest{Procedure: "maintenance"})
	if err != nil || len(listed.GetRuns()) != 1 {
		t.Errorf("runs %v, %v", listed, err)
	}
	if listed, err = bob.ListRuns(t.Context(), &coordinatorv1.ListRunsRequest{Procedure: "drain"}); err != nil || len(listed.GetRuns()) != 0 {
		t.Errorf("runs of another procedure %v, %v", listed, err)
	}
}

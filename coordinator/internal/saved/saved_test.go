package saved_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/saved"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// founded is the state of a cluster of that name, and a way to change it.
func founded(t *testing.T, id string) (*state.State, func(*raftv1.Command) *raftv1.Result) {
	t.Helper()
	s := state.New()
	apply := func(command *raftv1.Command) *raftv1.Result {
		t.Helper()
		command.Version, command.Now, command.Actor = state.CommandVersion, timestamppb.New(time.Unix(1000, 0)), "alice"
		result := s.Apply(s.Index()+1, command)
		if refusal := result.GetError(); refusal != nil {
			t.Fatal(refusal.GetMessage())
		}
		return result
	}
	apply(&raftv1.Command{Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
		ClusterId: id, ClusterName: id, Authority: identitytest.New(t, id).Authority,
		Identity: &raftv1.Identity{Id: "spiffe://coordinator." + id + ".muster/c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1", Address: "c1:1"},
	}}})
	return s, apply
}

func save(t *testing.T, s *state.State) []byte {
	t.Helper()
	var file bytes.Buffer
	if _, err := saved.Save(&file, s, saved.About{By: "c1", Version: "v1", Term: 3, At: time.Unix(2000, 0)}); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func token(id string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: id, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, ExpiresAt: timestamppb.New(time.Unix(9000, 0)),
	}}}}
}

func TestAFileOfAnotherClusterIsRefused(t *testing.T) {
	t.Parallel()
	one, _ := founded(t, "one")
	two, _ := founded(t, "two")
	if _, err := saved.Open(bytes.NewReader(save(t, one)), two); !errors.Is(err, saved.ErrInvalid) {
		t.Errorf("open in another cluster: %v", err)
	}
	// Not even one of the same id, if it has another key.
	other, _ := founded(t, "one")
	if _, err := saved.Open(bytes.NewReader(save(t, one)), other); !errors.Is(err, saved.ErrInvalid) {
		t.Errorf("open in a cluster with the same id and another key: %v", err)
	}
	if _, err := saved.Open(bytes.NewReader(save(t, one)), state.New()); err == nil {
		t.Error("a coordinator without a state opened it")
	}
}

func TestNoTokenComesBack(t *testing.T) {
	t.Parallel()
	s, apply := founded(t, "one")
	apply(token("t1"))
	file := save(t, s)
	apply(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "t1", SecretHash: []byte("s"), Identity: &raftv1.Identity{
		Id: "spiffe://agent.one.muster/h1", Role: accessv1.Role_ROLE_AGENT, Name: "h1",
	}}}})
	snapshot, err := saved.Open(bytes.NewReader(file), s)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := snapshot.Merge(s, 500, time.Unix(3000, 0))
	if err != nil {
		t.Fatal(err)
	}
	again := state.New()
	if err := again.Restore(bytes.NewReader(restored.Data)); err != nil {
		t.Fatal(err)
	}
	if used := again.View().Token("t1").GetUsedBy(); used == "" {
		t.Error("a token that was used can be used again after a restore")
	}
	if again.Index() != 500 || again.View().Meta().GetIndex() != 500 {
		t.Errorf("the state is at %d and says %d, want 500", again.Index(), again.View().Meta().GetIndex())
	}
}

func TestActiveRuns(t *testing.T) {
	t.Parallel()
	s, apply := founded(t, "one")
	run := apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: &coordinatorv1.Plan{
		Procedure: "test", MaxDuration: durationpb.New(time.Hour), Hash: "h", Locks: []string{"l"},
		Steps: []*coordinatorv1.Step{{
			Id: "s", Host: "h1", Timeout: durationpb.New(time.Minute), MaxAttempts: 1,
			Action: &coordinatorv1.Action{Method: "test/do", Effect: accessv1.Effect_EFFECT_IDEMPOTENT},
		}},
	}}}}).GetRun()
	snapshot, err := saved.Open(bytes.NewReader(save(t, s)), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Merge(s, 500, time.Unix(3000, 0)); !errors.Is(err, saved.ErrActiveRuns) {
		t.Errorf("merge while a run goes on: %v", err)
	}
	epoch := apply(&raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: "c1", Term: 1}}}).GetEpoch()
	apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: epoch, Outcomes: []*raftv1.Outcome{{RunId: run.GetId(), StepId: "s", Attempt: 1}}}}})
	restored, err := snapshot.Merge(s, 500, time.Unix(3000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if len(restored.Waiting) != 1 || restored.Waiting[0] != run.GetId() {
		t.Errorf("waiting are %v", restored.Waiting)
	}
	again := state.New()
	if err := again.Restore(bytes.NewReader(restored.Data)); err != nil {
		t.Fatal(err)
	}
	view := again.View()
	if got := view.Run(run.GetId()); got.GetState() != coordinatorv1.RunState_RUN_STATE_PAUSED || got.GetPausedAt() == nil || got.GetCause() == "" || view.Meta().GetEpoch() != epoch {
		t.Errorf("the run is %v, the epoch %d, want it paused with a cause, and %d", got, view.Meta().GetEpoch(), epoch)
	}
	if len(view.Locks()) != 1 {
		t.Error("the run that waits has lost its lock")
	}
}

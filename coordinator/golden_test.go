package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/saved"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// The golden files are what a coordinator of an earlier version has left on its disk. -update writes another set for the present format, which
// is done when a command or a record gets another form, and never changes a set that is there.
var update = flag.String("update-golden", "", "write the golden files of a format by this name, like v1")

const (
	goldenCluster  = "golden-1"
	goldenData     = "data"           // the data directory of a coordinator: a snapshot, and a log that begins before it
	goldenCommands = "commands.pb"    // every command with its index, in order
	goldenState    = "state.snapshot" // the state after the last one
	goldenSaved    = "saved.snapshot" // the same as a file that an operator has saved
)

func goldenKey() []byte { return bytes.Repeat([]byte{0x5a}, 32) }

// scribe is the state of a coordinator, and keeps every command that it is given, one by one.
type scribe struct {
	cluster.FSM
	log bytes.Buffer
	ops map[string]bool
}

// Apply keeps the command as it is in the log.
func (s *scribe) Apply(index uint64, command *raftv1.Command) *raftv1.Result {
	m := command.ProtoReflect()
	if s.ops != nil {
		s.ops[string(m.WhichOneof(m.Descriptor().Oneofs().ByName("op")).Name())] = true
	}
	for _, message := range []proto.Message{&raftv1.SnapshotHeader{Index: index}, command} {
		if _, err := protodelim.MarshalTo(&s.log, message); err != nil {
			panic(err)
		}
	}
	return s.FSM.Apply(index, command)
}

func noDial(context.Context, string) (net.Conn, error) { return nil, errors.New("alone") }
func noPeer(context.Context, string) (grpc.ClientConnInterface, error) {
	return nil, errors.New("alone")
}

// goldenOptions of the one coordinator whose data directory is golden.
func goldenOptions(t *testing.T, dir string, fsm cluster.FSM) cluster.Options {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Options{
		ID: "c1", Address: "c1.golden:7443", ClusterID: goldenCluster, DataDir: dir, SealKey: goldenKey(), FSM: fsm, Logger: slog.New(slog.DiscardHandler),
		Raft: l, DialRaft: noDial, DialPeer: noPeer,
		Profile: cluster.Timeouts{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, LeaderLease: 50 * time.Millisecond},
	}
}

// running runs a coordinator's part in the cluster until the returned function is called.
func running(t *testing.T, o cluster.Options) (*cluster.Cluster, func()) {
	t.Helper()
	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return c, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

func frozen(t *testing.T, s *state.State) []byte {
	t.Helper()
	w, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := w.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestGolden reads what earlier versions have written: their data directories and their commands lead to the very state that they led to then.
func TestGolden(t *testing.T) {
	if *update != "" {
		writeGolden(t, filepath.Join("testdata", "golden", *update))
	}
	sets, err := filepath.Glob(filepath.Join("testdata", "golden", "*"))
	if err != nil || len(sets) == 0 {
		t.Fatalf("there are no golden files: %v", err)
	}
	for _, set := range sets {
		t.Run(filepath.Base(set), func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join(set, goldenState))
			if err != nil {
				t.Fatal(err)
			}
			t.Run("log and snapshot", func(t *testing.T) {
				dir := t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(filepath.Join(set, goldenData))); err != nil {
					t.Fatal(err)
				}
				stretch(t, dir)
				s := state.New()
				c, stop := running(t, goldenOptions(t, dir, s))
				if err := c.Read(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := frozen(t, s); !bytes.Equal(got, want) {
					t.Errorf("the data directory holds a state of %d bytes, want the %d of then", len(got), len(want))
				}
				stop()
			})
			t.Run("commands", func(t *testing.T) {
				if got := frozen(t, replayed(t, filepath.Join(set, goldenCommands))); !bytes.Equal(got, want) {
					t.Errorf("the commands lead to a state of %d bytes, want the %d of then", len(got), len(want))
				}
			})
			t.Run("saved snapshot", func(t *testing.T) {
				s := state.New()
				if err := s.Restore(bytes.NewReader(want)); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(filepath.Join(set, goldenSaved))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				opened, err := saved.Open(f, s)
				if err != nil {
					t.Fatal(err)
				}
				if opened.Info.Index != s.Index() || opened.Info.Counts["stack"] != 1 {
					t.Errorf("the saved snapshot is %+v", opened.Info)
				}
			})
			t.Run("snapshot", func(t *testing.T) {
				s := state.New()
				if err := s.Restore(bytes.NewReader(want)); err != nil {
					t.Fatal(err)
				}
				if got := frozen(t, s); !bytes.Equal(got, want) {
					t.Error("a snapshot that was restored is written differently")
				}
			})
		})
	}
}

// replayed applies the commands of a file.
func replayed(t *testing.T, file string) *state.State {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, in := state.New(), bytes.NewReader(raw)
	for {
		at, command := &raftv1.SnapshotHeader{}, &raftv1.Command{}
		err := protodelim.UnmarshalFrom(in, at)
		if errors.Is(err, io.EOF) {
			return s
		}
		if err := errors.Join(err, protodelim.UnmarshalFrom(in, command)); err != nil {
			t.Fatal(err)
		}
		s.Apply(at.GetIndex(), command)
	}
}

// stretch gives the segments of the log the size that they had: the zeros after what is written are not in the repository.
func stretch(t *testing.T, dir string) {
	t.Helper()
	eachSegment(t, dir, func(file string) error { return os.Truncate(file, 64<<20) })
}

func eachSegment(t *testing.T, dir string, do func(file string) error) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "raft", "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	for _, file := range files {
		if err := do(file); err != nil {
			t.Fatal(err)
		}
	}
}

// writeGolden makes a set of golden files, with every command that there is.
func writeGolden(t *testing.T, set string) {
	t.Helper()
	if _, err := os.Stat(set); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is there: golden files do not change", set)
	}
	dir := t.TempDir()
	founded := &scribe{FSM: state.New(), ops: map[string]bool{}}
	o := goldenOptions(t, dir, founded)
	if err := errors.Join(o.Raft.Close(), cluster.Bootstrap(t.Context(), o, foundation(t))); err != nil {
		t.Fatal(err)
	}
	inner := state.New()
	grown := &scribe{FSM: inner, ops: founded.ops}
	c, stop := running(t, goldenOptions(t, dir, grown))
	w := &story{t: t, c: c, s: inner}
	w.first()
	if err := c.Snapshot(); err != nil {
		t.Fatal(err)
	}
	w.second()
	if err := c.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := frozen(t, inner)
	stop()
	ops := (&raftv1.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	for i := range ops.Len() {
		if name := string(ops.Get(i).Name()); !grown.ops[name] {
			t.Errorf("command %s is not in the golden files: add it to the story", name)
		}
	}
	if t.Failed() {
		return
	}
	eachSegment(t, dir, func(file string) error {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		end := (len(bytes.TrimRight(raw, "\x00"))/4096 + 1) * 4096 // what ends in zeros keeps them
		return os.Truncate(file, int64(end))
	})
	for _, file := range []string{"lock", "floor"} {
		if err := os.Remove(filepath.Join(dir, "raft", file)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(set, goldenData), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	// The second program has replayed the commands of the first: they are in its own list.
	var kept bytes.Buffer
	if _, err := saved.Save(&kept, inner, saved.About{By: "c1", Version: *update, Term: 2, At: time.Unix(1.8e9, 0)}); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{goldenCommands: grown.log.Bytes(), goldenState: want, goldenSaved: kept.Bytes()} {
		if err := os.WriteFile(filepath.Join(set, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func foundation(t *testing.T) *raftv1.Command {
	t.Helper()
	return &raftv1.Command{Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
		ClusterId: goldenCluster, ClusterName: "golden", Authority: identitytest.New(t, goldenCluster).Authority,
		Identity: &raftv1.Identity{Id: "spiffe://coordinator." + goldenCluster + ".muster/c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1", Address: "c1.golden:7443",
			Serial: []byte{1}},
		Token: &raftv1.Token{Id: "admin", SecretHash: []byte("s"), Role: accessv1.Role_ROLE_ADMIN, Name: "admin", ExpiresAt: timestamppb.New(time.Unix(4e9, 0))},
	}}}
}

// story is what happens to the cluster whose files are golden.
type story struct {
	t     *testing.T
	c     *cluster.Cluster
	s     *state.State
	epoch uint64
}

func (w *story) do(actor string, command *raftv1.Command) *raftv1.Result {
	w.t.Helper()
	command.Actor = actor
	result, _, err := w.c.Propose(w.t.Context(), command)
	if err != nil || result.GetError() != nil {
		w.t.Fatalf("%v: %v %v", command, err, result.GetError())
	}
	return result
}

func (w *story) join(name string) {
	w.t.Helper()
	w.do("alice", &raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: name, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, Labels: map[string]string{"zone": "a", "disk": "ssd"}, ExpiresAt: timestamppb.New(time.Unix(4e9, 0)),
	}}}})
	w.do("nobody", &raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: name, SecretHash: []byte("s"), Identity: &raftv1.Identity{
		Id: "spiffe://agent." + goldenCluster + ".muster/" + name, Role: accessv1.Role_ROLE_AGENT, Name: name, Serial: []byte(name),
	}}}})
	w.do("hosts", &raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: []*raftv1.HostUpdate{{
		Host: name, State: coordinatorv1.HostState_HOST_STATE_UP, Inventory: &agentv1.Inventory{AgentVersion: "v1"},
	}}}}})
}

func (w *story) start(plan *coordinatorv1.Plan, release *coordinatorv1.Release) string {
	w.t.Helper()
	return w.do("alice", &raftv1.Command{RequestId: "start-" + plan.GetHash(), Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: plan, Release: release, StackRevision: w.s.View().Stack(plan.GetStack()).GetRevision(), Reason: "golden",
	}}}).GetRun().GetId()
}

func (w *story) outcome(run, step string, o *raftv1.Outcome) {
	w.t.Helper()
	o.RunId, o.StepId, o.Attempt = run, step, w.s.View().Step(run, step).GetAttempt()
	w.do("engine", &raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: w.epoch, Outcomes: []*raftv1.Outcome{o}}}})
}

func step(id string, effect accessv1.Effect, after ...string) *coordinatorv1.Step {
	action := func(name string) *coordinatorv1.Action {
		return &coordinatorv1.Action{Method: "test/" + name, Effect: effect, Request: []byte(name)}
	}
	return &coordinatorv1.Step{
		Id: id, Title: id, Host: "h1", After: after, Action: action(id), Timeout: durationpb.New(time.Minute),
		Undo: []*coordinatorv1.Undo{{Title: "un-" + id, Action: &coordinatorv1.Action{Method: "test/un", Effect: accessv1.Effect_EFFECT_IDEMPOTENT}, Timeout: durationpb.New(time.Minute)}},
	}
}

func (w *story) release(number uint64) {
	w.t.Helper()
	plan := &coordinatorv1.Plan{
		Procedure: "rolling-update", Title: "apply shop", Stack: "shop", ActivateRelease: number, Locks: []string{"stack/shop"}, MaxDuration: durationpb.New(time.Hour),
		Hash: strings.Repeat("0", 31) + string(rune('0'+number)), Steps: []*coordinatorv1.Step{step("web.1/start", accessv1.Effect_EFFECT_IDEMPOTENT)},
	}
	run := w.start(plan, &coordinatorv1.Release{Stack: "shop", Number: number, Services: []*coordinatorv1.Service{{Name: "web"}}, SourceDigest: "d"})
	w.outcome(run, "web.1/start", &raftv1.Outcome{Result: []byte("done")})
}

// first happens before the snapshot.
func (w *story) first() {
	w.t.Helper()
	w.epoch = w.do("engine", &raftv1.Command{Op: &raftv1.Command_TakeOver{TakeOver: &raftv1.TakeOver{Coordinator: "c1", Term: 2}}}).GetEpoch()
	w.join("h1")
	w.join("h2")
	w.do("alice", &raftv1.Command{RequestId: "secret", Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: "password", Value: []byte("hunter2")}}})
	w.release(1)
	w.do("alice", &raftv1.Command{Op: &raftv1.Command_CordonHost{CordonHost: &raftv1.CordonHost{Host: "h2", Cordoned: true, Reason: "a new disk"}}})
	for _, name := range []string{"kept", "dropped"} {
		w.do("alice", &raftv1.Command{Op: &raftv1.Command_PutProcedure{PutProcedure: &raftv1.PutProcedure{Procedure: &coordinatorv1.StoredProcedure{
			Name: name, Title: name, Source: []byte("procedure: " + name),
		}}}})
	}
}

// second is only in the log.
func (w *story) second() {
	w.t.Helper()
	w.do("alice", &raftv1.Command{Op: &raftv1.Command_DropProcedure{DropProcedure: &raftv1.DropProcedure{Name: "dropped"}}})
	w.do("alice", &raftv1.Command{Op: &raftv1.Command_Evict{Evict: &raftv1.Evict{Identity: "spiffe://agent." + goldenCluster + ".muster/h2", Reason: "sold"}}})
	w.release(2)
	hash := strings.Repeat("a", 32)
	ask := &coordinatorv1.Step{Id: "ask", Title: "ask", After: []string{"prepare"}, Approval: &coordinatorv1.Approval{Prompt: "go?", Count: 1}}
	once := step("swap", accessv1.Effect_EFFECT_ONCE, "ask")
	last := step("last", accessv1.Effect_EFFECT_IDEMPOTENT, "swap")
	last.MaxAttempts, last.RetryDelay = 2, durationpb.New(time.Millisecond)
	run := w.start(&coordinatorv1.Plan{
		Procedure: "maintenance", Title: "maintenance", Locks: []string{"db/x"}, MaxDuration: durationpb.New(time.Hour), Hash: hash,
		Steps: []*coordinatorv1.Step{step("prepare", accessv1.Effect_EFFECT_IDEMPOTENT), ask, once, last},
	}, nil)
	w.outcome(run, "prepare", &raftv1.Outcome{})
	w.do("bob", &raftv1.Command{Op: &raftv1.Command_DecideStep{DecideStep: &raftv1.DecideStep{RunId: run, PlanHash: hash[:12], Approve: true, Role: accessv1.Role_ROLE_OPERATOR}}})
	w.outcome(run, "swap", &raftv1.Outcome{Lost: true, Failure: &agentv1.OperationFailure{
		Reason: agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, Message: "the agent died while it acted",
	}})
	w.do("bob", &raftv1.Command{Op: &raftv1.Command_ResolveStep{ResolveStep: &raftv1.ResolveStep{
		RunId: run, Resolution: coordinatorv1.Resolution_RESOLUTION_DONE, Reason: "I looked",
	}}})
	w.do("engine", &raftv1.Command{Op: &raftv1.Command_Tick{Tick: &raftv1.Tick{
		Epoch: w.epoch, RunIds: []string{run}, Unreachable: []*raftv1.StepRef{{RunId: run, StepId: "last"}},
	}}})
	w.outcome(run, "last", &raftv1.Outcome{Failure: &agentv1.OperationFailure{Message: "not yet"}})
	for _, control := range []raftv1.RunControl{raftv1.RunControl_RUN_CONTROL_PAUSE, raftv1.RunControl_RUN_CONTROL_RESUME, raftv1.RunControl_RUN_CONTROL_CANCEL} {
		w.do("alice", &raftv1.Command{Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: control, Reason: "golden"}}})
	}
	if undone := w.s.View().Steps(run); !slices.ContainsFunc(undone, func(s *coordinatorv1.StepStatus) bool { return strings.HasPrefix(s.GetStepId(), "undo/") }) {
		w.t.Fatalf("the run that was cancelled has nothing to undo: %v", undone)
	}
}

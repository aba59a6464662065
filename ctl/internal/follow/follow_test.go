package follow_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/client"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/ctl/internal/follow"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

type watchStream = grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]

func noon() time.Time { return time.Date(2025, 1, 2, 12, 0, 0, 0, time.UTC) }

// run returns an answer that tells the run's state.
func run(index uint64, s coordinatorv1.RunState) *coordinatorv1.WatchRunResponse {
	return &coordinatorv1.WatchRunResponse{Index: index, Run: &coordinatorv1.Run{Id: "r-1", State: s, Revision: index}}
}

// step returns an answer that tells a step's state.
func step(index uint64, id, host string, s coordinatorv1.StepState) *coordinatorv1.WatchRunResponse {
	return &coordinatorv1.WatchRunResponse{Index: index, Steps: []*coordinatorv1.StepStatus{{
		RunId: "r-1", StepId: id, Host: host, State: s, Revision: index, StartedAt: timestamppb.New(noon().Add(time.Duration(index) * time.Second)),
	}}}
}

const (
	running   = coordinatorv1.RunState_RUN_STATE_RUNNING
	succeeded = coordinatorv1.RunState_RUN_STATE_SUCCEEDED
	going     = coordinatorv1.StepState_STEP_STATE_RUNNING
	done      = coordinatorv1.StepState_STEP_STATE_DONE
)

// history is a whole run.
func history() []*coordinatorv1.WatchRunResponse {
	return []*coordinatorv1.WatchRunResponse{
		run(1, running), step(2, "web.1/pull", "h1", going), step(3, "web.1/pull", "h1", done), step(4, "web.1/start", "h1", going),
		step(5, "web.1/start", "h1", done), run(6, succeeded),
	}
}

// after sends what of the history comes after the client's index, up to a number of answers.
func after(q *coordinatorv1.WatchRunRequest, s watchStream, most int) error {
	for _, a := range history() {
		if a.GetIndex() <= q.GetFromIndex() {
			continue
		}
		if most--; most < 0 {
			return nil
		}
		if err := s.Send(a); err != nil {
			return err
		}
	}
	return nil
}

func options(t *testing.T, c *coordinatortest.Cluster, view follow.View) follow.Options {
	t.Helper()
	creds, err := identity.LoadCredentials(c.Credentials(t, accessv1.Role_ROLE_VIEWER, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.New(client.Options{Addresses: c.Addresses(), TLS: mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return follow.Options{Runs: coordinatorv1.NewRunServiceClient(conn), Client: conn, View: view}
}

const wholeRun = `2025-01-02T12:00:00Z - run/r-1 running
2025-01-02T12:00:02Z h1 web.1/pull running
2025-01-02T12:00:03Z h1 web.1/pull done
2025-01-02T12:00:04Z h1 web.1/start running
2025-01-02T12:00:05Z h1 web.1/start done
2025-01-02T12:00:00Z - run/r-1 succeeded
`

// TestBrokenStreams breaks the stream in every way between two answers. Each event must show exactly once.
func TestBrokenStreams(t *testing.T) {
	cut := map[string]func(n *coordinatortest.Node) error{
		"the stream just ends": func(*coordinatortest.Node) error { return nil },
		"it is shutting down":  func(*coordinatortest.Node) error { return status.Error(codes.Unavailable, "shutting down") },
		"it has lost the leader": func(*coordinatortest.Node) error {
			return rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "no leader")
		},
		"an unexpected error": func(*coordinatortest.Node) error { return status.Error(codes.Internal, "oops") },
	}
	for name, breaks := range cut {
		t.Run(name, func(t *testing.T) {
			c := coordinatortest.New(t, 2)
			c.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
				if err := after(q, s, 3); err != nil {
					return err
				}
				return breaks(c.Nodes[0])
			})
			c.Nodes[1].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error { return after(q, s, 99) })
			var out, notes bytes.Buffer
			state := follow.NewState("r-1")
			if err := follow.Run(t.Context(), options(t, c, follow.NewPlain(&out, &notes, noon)), state); err != nil {
				t.Fatal(err)
			}
			if out.String() != wholeRun {
				t.Errorf("events:\n%s\nwant:\n%s", out.String(), wholeRun)
			}
			want := "connection to " + c.Nodes[0].Address + " was lost, following run/r-1 on " + c.Nodes[1].Address + "\n"
			if notes.String() != want {
				t.Errorf("notes %q, want %q", notes.String(), want)
			}
			if q := c.Nodes[1].Calls("WatchRun")[0].(*coordinatorv1.WatchRunRequest); q.GetFromIndex() != 3 {
				t.Errorf("resumed at index %d, want 3", q.GetFromIndex())
			}
			if state.Run.GetState() != succeeded || state.Index != 6 || len(state.Steps) != 2 {
				t.Errorf("state %+v", state)
			}
		})
	}
}

// TestKilledCoordinator cuts the connection itself.
func TestKilledCoordinator(t *testing.T) {
	c := coordinatortest.New(t, 2)
	c.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		if err := after(q, s, 3); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	})
	c.Nodes[1].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error { return after(q, s, 99) })
	var out, notes bytes.Buffer
	view := &atThree{View: follow.NewPlain(&out, &notes, noon), do: c.Nodes[0].Stop}
	if err := follow.Run(t.Context(), options(t, c, view), follow.NewState("r-1")); err != nil {
		t.Fatal(err)
	}
	if out.String() != wholeRun || strings.Count(notes.String(), "\n") != 1 {
		t.Errorf("notes %q, events:\n%s", notes.String(), out.String())
	}
}

// atThree does something when index 3 has been shown.
type atThree struct {
	follow.View

	do func()
}

func (v *atThree) Update(s *follow.State, a *coordinatorv1.WatchRunResponse) {
	v.View.Update(s, a)
	if a.GetIndex() == 3 {
		v.do()
	}
}

// TestCompacted starts anew where the coordinator does not keep what came after the index; what was shown is not shown again.
func TestCompacted(t *testing.T) {
	c := coordinatortest.New(t, 2)
	c.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error { return after(q, s, 3) })
	c.Nodes[1].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		if q.GetFromIndex() > 0 {
			return rpcerr.New(codes.OutOfRange, coordinatorv1.ErrorReason_ERROR_REASON_COMPACTED, "too old")
		}
		return after(q, s, 99)
	})
	var out, notes bytes.Buffer
	if err := follow.Run(t.Context(), options(t, c, follow.NewPlain(&out, &notes, noon)), follow.NewState("r-1")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "web.1/start done"); got != 1 || !strings.HasSuffix(out.String(), "succeeded\n") {
		t.Errorf("events:\n%s", out.String())
	}
}

// TestACoordinatorThatIsBehind does not know a run that another has just started.
func TestACoordinatorThatIsBehind(t *testing.T) {
	c := coordinatortest.New(t, 1)
	c.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		if len(c.Nodes[0].Calls("WatchRun")) < 3 {
			return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, "there is no run r-1")
		}
		return after(q, s, 99)
	})
	var out, notes bytes.Buffer
	o := options(t, c, follow.NewPlain(&out, &notes, noon))
	if err := follow.Run(t.Context(), o, follow.NewState("r-1")); rpcerr.Reason(err) != "RUN_NOT_FOUND" {
		t.Errorf("a run that nobody started: %v", err)
	}
	o.Known = true
	if err := follow.Run(t.Context(), o, follow.NewState("r-1")); err != nil || out.String() != wholeRun {
		t.Errorf("a run that was started: %v\n%s", err, out.String())
	}
}

func TestPatienceEnds(t *testing.T) {
	c := coordinatortest.New(t, 2)
	c.Nodes[0].Stop()
	c.Nodes[1].Stop()
	o := options(t, c, follow.NewQuiet(&bytes.Buffer{}))
	o.Patience = 300 * time.Millisecond
	if err := follow.Run(t.Context(), o, follow.NewState("r-1")); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v", err)
	}
}

// TestInterrupted detaches, and goes on where it was: nothing is shown twice or lost.
func TestInterrupted(t *testing.T) {
	c := coordinatortest.New(t, 1)
	reached := make(chan struct{}, 1)
	c.Nodes[0].OnWatch(func(q *coordinatorv1.WatchRunRequest, s watchStream) error {
		if q.GetFromIndex() > 0 {
			return after(q, s, 99)
		}
		if err := after(q, s, 3); err != nil {
			return err
		}
		reached <- struct{}{}
		<-s.Context().Done()
		return s.Context().Err()
	})
	var out, notes bytes.Buffer
	interrupts := make(chan os.Signal, 1)
	o := options(t, c, &atThree{View: follow.NewPlain(&out, &notes, noon), do: func() { interrupts <- syscall.SIGINT }})
	o.Interrupts = interrupts
	state := follow.NewState("r-1")
	if err := follow.Run(t.Context(), o, state); !errors.Is(err, follow.ErrDetached) {
		t.Fatalf("error %v, want %v", err, follow.ErrDetached)
	}
	<-reached
	if state.Index != 3 || state.Settled() {
		t.Errorf("state %+v", state)
	}
	if err := follow.Run(t.Context(), o, state); err != nil || out.String() != wholeRun {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestTheCallersDeadline(t *testing.T) {
	c := coordinatortest.New(t, 1)
	c.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		<-s.Context().Done()
		return s.Context().Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := follow.Run(ctx, options(t, c, follow.NewQuiet(&bytes.Buffer{})), follow.NewState("r-1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// TestNeedsHuman ends the following, although such a run is not at its end.
func TestNeedsHuman(t *testing.T) {
	c := coordinatortest.New(t, 1)
	c.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		if err := s.Send(run(1, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN)); err != nil {
			return err
		}
		<-s.Context().Done()
		return nil
	})
	if err := follow.Run(t.Context(), options(t, c, follow.NewQuiet(&bytes.Buffer{})), follow.NewState("r-1")); err != nil {
		t.Error(err)
	}
}

func TestPlainTellsOfFailuresAndBlockers(t *testing.T) {
	var out bytes.Buffer
	view := follow.NewPlain(&out, &out, noon)
	state := follow.NewState("r-1")
	blocker := &coordinatorv1.Blocker{Summary: "host h2 does not answer", Since: timestamppb.New(noon().Add(-14 * time.Second)), Unblocks: "start its agent",
		Next: "the run is rolled back", NextAt: timestamppb.New(noon().Add(time.Minute))}
	for _, a := range []*coordinatorv1.WatchRunResponse{
		{Index: 1, Steps: []*coordinatorv1.StepStatus{{StepId: "a/ready", Host: "h1", State: coordinatorv1.StepState_STEP_STATE_FAILED, Attempt: 2, Revision: 1,
			FinishedAt: timestamppb.New(noon()), Failure: &agentv1.OperationFailure{Reason: agentv1.FailureReason_FAILURE_REASON_NOT_READY, Message: "HTTP 500\nfrom\x1b[2J /healthz"}},
			{StepId: "b/pull", Host: "h2", State: coordinatorv1.StepState_STEP_STATE_PENDING, Ordinal: 1, Revision: 1}}},
		{Index: 2, Blockers: []*coordinatorv1.Blocker{blocker}},
		{Index: 3, Blockers: []*coordinatorv1.Blocker{blocker}},
		{Index: 4},
		{Index: 5, Run: &coordinatorv1.Run{State: coordinatorv1.RunState_RUN_STATE_ROLLING_BACK, Cause: "a failed"}},
	} {
		state.Apply(a)
		view.Update(state, a)
	}
	want := `2025-01-02T12:00:00Z h1 a/ready failed HTTP 500 from\u001b[2J /healthz (NOT_READY)
2025-01-02T12:00:00Z - run/r-1 blocked: host h2 does not answer since 2025-01-02T11:59:46Z; to unblock: start its agent; next: the run is rolled back at 2025-01-02T12:01:00Z
2025-01-02T12:00:00Z - run/r-1 rolling-back a failed
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

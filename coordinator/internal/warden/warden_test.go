package warden_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/coordinator/internal/warden"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// willing is a host's agent that agrees to whatever is planned.
type willing struct{}

// Invoke answers a call.
func (willing) Invoke(_ context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	switch r := request.(type) {
	case *agentv1.ResolveImageRequest:
		proto.Merge(response.(proto.Message), &agentv1.ResolveImageResponse{Pinned: r.GetImage(), Present: true})
	case *agentv1.ListContainersRequest, *agentv1.CheckContainersRequest:
	default:
		return status.Errorf(codes.Unimplemented, "the test's agent has no %s", method)
	}
	return nil
}

// NewStream is not needed by planners.
func (willing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

// fleet is a state with hosts and one stack, and a warden that leads. It lives in a bubble of simulated time.
type fleet struct {
	t     *testing.T
	state *state.State

	mu    sync.Mutex
	index uint64
	// refuse is how many proposals of the warden are lost.
	refuse   int
	proposed int
}

func (f *fleet) apply(c *raftv1.Command) *raftv1.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	c.Version, c.Now = state.CommandVersion, timestamppb.Now()
	return f.state.Apply(f.index, c)
}

func (f *fleet) must(c *raftv1.Command) *raftv1.Result {
	f.t.Helper()
	result := f.apply(c)
	if result.GetError() != nil {
		f.t.Fatal(result.GetError().GetMessage())
	}
	return result
}

func (f *fleet) set(host string, to coordinatorv1.HostState) {
	f.t.Helper()
	f.must(&raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: []*raftv1.HostUpdate{{
		Host: host, State: to, Inventory: &agentv1.Inventory{Address: "10.0.0." + host[1:], NanoCpus: 4e9, MemoryBytes: 4 << 30},
	}}}}})
}

const (
	up   = coordinatorv1.HostState_HOST_STATE_UP
	down = coordinatorv1.HostState_HOST_STATE_DOWN
)

// newFleet has three hosts and a stack with two services, of which each has an instance on h1 and h2.
func newFleet(t *testing.T, policies ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, state: state.New()}
	for _, host := range []string{"h1", "h2", "h3"} {
		f.must(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
			Id: host, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
		}}}})
		f.must(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: host, SecretHash: []byte("s"), Identity: &raftv1.Identity{
			Id: "spiffe://agent.test.muster/" + host, Role: accessv1.Role_ROLE_AGENT, Name: host,
		}}}})
		f.set(host, up)
	}
	release := &coordinatorv1.Release{Stack: "shop", Number: 1}
	for i, policy := range policies {
		name := []string{"api", "web"}[i]
		release.Services = append(release.Services, &coordinatorv1.Service{
			Name: name, Replicas: 2, Image: name, Template: &agentv1.ContainerSpec{Image: "registry.test/" + name + "@sha256:" + strings.Repeat("0", 64)},
			Gate: &agentv1.Gate{Probe: &agentv1.Gate_Running{Running: &agentv1.RunningProbe{}}}, Update: &coordinatorv1.UpdatePolicy{Parallelism: 1, Order: "start-first"},
			OnHostLost: policy, ReplaceAfter: durationpb.New(time.Duration(i+1) * time.Minute),
		})
		for slot := range uint32(2) {
			release.Assignments = append(release.Assignments, &coordinatorv1.Assignment{
				Service: name, Slot: slot + 1, Host: fmt.Sprintf("h%d", slot+1), Release: 1, Container: stack.ContainerName("shop", name, slot+1, 1),
			})
		}
	}
	f.must(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: &coordinatorv1.Plan{Procedure: "test", Stack: "shop", ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)}, Release: release,
	}}})
	ctx, cancel := context.WithCancel(t.Context())
	w := warden.New(warden.Options{
		ID: "c1", State: f.state, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Propose: f.propose,
		Planner: &runbook.Planner{Conn: func(_ context.Context, host string) (grpc.ClientConnInterface, error) {
			if f.state.View().Host(host).GetState() != up {
				return nil, errors.New("no connection")
			}
			return willing{}, nil
		}},
	})
	done := make(chan error, 1)
	go func() { done <- w.Lead(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fleet) propose(_ context.Context, c *raftv1.Command) (*raftv1.Result, error) {
	f.mu.Lock()
	f.proposed++
	lost := f.proposed <= f.refuse
	f.mu.Unlock()
	if lost {
		return nil, errors.New("no leader")
	}
	return f.apply(c), nil
}

// pass lets time pass, and everything that happens in it.
func (f *fleet) pass(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// active is the procedure of the run that changes the stack now; empty for none.
func (f *fleet) active() string {
	return f.state.View().Run(f.state.View().Stack("shop").GetActiveRun()).GetProcedure()
}

// finish carries out all steps of the active run.
func (f *fleet) finish() {
	f.t.Helper()
	for range 1000 {
		open := f.state.View().OpenSteps()
		if len(open) == 0 {
			return
		}
		for _, step := range open {
			if step.GetHost() == "h2" && f.state.View().Host("h2").GetState() == down {
				f.t.Fatalf("step %s is for a host that is down", step.GetStepId())
			}
			f.must(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{
				Outcomes: []*raftv1.Outcome{{RunId: step.GetRunId(), StepId: step.GetStepId(), Attempt: step.GetAttempt()}},
			}}})
		}
	}
	f.t.Fatal("the run never ends")
}

func TestHostIsReplacedInTimeAndTidiedWhenItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, stack.OnHostLostReplace, stack.OnHostLostReplace)
		f.set("h2", down)
		f.pass(2*time.Minute - time.Second) // The longest of what the services say counts.
		if got := f.active(); got != "" {
			t.Fatalf("%s was started too early", got)
		}
		f.pass(2 * time.Second)
		if got := f.active(); got != runbook.DrainProcedure {
			t.Fatalf("active is %q, want the replacing", got)
		}
		if by := f.state.View().Run(f.state.View().Stack("shop").GetActiveRun()); by.GetCreatedBy() != "warden/c1" || !strings.Contains(by.GetReason(), "on_host_lost is replace") {
			t.Errorf("run by %s because %s", by.GetCreatedBy(), by.GetReason())
		}
		f.finish()
		synctest.Wait()
		shop := f.state.View().Stack("shop")
		if shop.GetCurrentRelease() != 2 || len(shop.GetAbandoned()) != 2 || f.active() != "" {
			t.Fatalf("stack %v", shop)
		}
		if f.state.View().Host("h2").GetCordoned() {
			t.Error("the host was cordoned by itself: nobody would open it")
		}
		f.pass(time.Hour)
		if got := f.active(); got != "" {
			t.Fatalf("%s was started for a host without instances", got)
		}
		f.set("h2", up)
		f.pass(2 * time.Second)
		if got := f.active(); got != "" {
			t.Fatalf("%s was started for a host that has just come back", got)
		}
		f.pass(2 * time.Second)
		if got := f.active(); got != runbook.TidyProcedure {
			t.Fatalf("active is %q, want the tidying", got)
		}
		f.finish()
		f.pass(time.Hour)
		if shop := f.state.View().Stack("shop"); len(shop.GetAbandoned()) > 0 || shop.GetCurrentRelease() != 2 || f.active() != "" {
			t.Errorf("stack %v", shop)
		}
	})
}

func TestHostThatIsBackInTimeIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, stack.OnHostLostReplace)
		f.set("h2", down)
		f.pass(50 * time.Second)
		f.set("h2", up)
		f.pass(50 * time.Second)
		f.set("h2", down)
		f.pass(50 * time.Second)
		if n := len(f.state.View().Runs()); n != 1 {
			t.Errorf("%d runs, want the first one alone", n)
		}
	})
}

func TestOneServiceThatAsksHoldsTheStack(t *testing.T) {
	for _, other := range []string{"", stack.OnHostLostAsk} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, stack.OnHostLostReplace, other)
			f.set("h2", down)
			f.pass(time.Hour)
			if got := f.active(); got != "" {
				t.Errorf("%s was started, and web says %q", got, other)
			}
		})
	}
}

func TestFailedProposalIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, stack.OnHostLostReplace)
		f.refuse = 3
		f.set("h2", down)
		f.pass(time.Minute + time.Second)
		if f.proposed != 1 || f.active() != "" {
			t.Fatalf("%d proposals, active %q", f.proposed, f.active())
		}
		f.pass(10 * time.Minute)
		if f.proposed != 4 || f.active() != runbook.DrainProcedure {
			t.Errorf("%d proposals, active %q", f.proposed, f.active())
		}
	})
}

// TestWorkForNothingIsBounded: a host that cannot be replaced is not planned for all the time.
func TestWorkForNothingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, stack.OnHostLostReplace)
		f.refuse = 1 << 30
		f.set("h2", down)
		f.pass(time.Hour)
		if f.proposed < 10 || f.proposed > 25 {
			t.Errorf("%d proposals within an hour", f.proposed)
		}
	})
}

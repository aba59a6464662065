package runbook_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// scale plans, and fails the test if that cannot be done.
func (s *site) scale(service string, n uint32) *runbook.Proposal {
	s.t.Helper()
	proposal, err := s.planner().Scale(s.t.Context(), s.state.View(), "shop", service, n)
	if err != nil {
		s.t.Fatal(err)
	}
	s.know(proposal.Plan)
	return proposal
}

// drain plans the drain of the stack, and fails the test if that cannot be done.
func (s *site) drain(host string, lost bool) *runbook.Proposal {
	s.t.Helper()
	proposals, err := s.drainer(lost).Drain(s.t.Context(), s.state.View(), runbook.DrainRequest{Host: host, Lost: lost, Deadline: time.Minute})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(proposals) != 1 {
		s.t.Fatalf("%d proposals, want 1", len(proposals))
	}
	s.know(proposals[0].Plan)
	return proposals[0]
}

// drainer reaches no host that is down.
func (s *site) drainer(lost bool) *runbook.Planner {
	p := s.planner()
	reach := p.Conn
	p.Conn = func(ctx context.Context, host string) (grpc.ClientConnInterface, error) {
		if lost && s.state.View().Host(host).GetState() == down {
			return nil, errors.New("no connection")
		}
		return reach(ctx, host)
	}
	return p
}

// rewrite puts another form of the release in place.
func (s *site) rewrite(change func(*coordinatorv1.Release)) {
	s.t.Helper()
	r := proto.CloneOf(s.release)
	change(r)
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: &coordinatorv1.Plan{Procedure: "test", Stack: r.GetStack(), ActivateRelease: r.GetNumber(), MaxDuration: durationpb.New(time.Hour)}, Release: r,
		StackRevision: s.state.View().Stack(r.GetStack()).GetRevision(),
	}}})
	s.release = r
}

const down = coordinatorv1.HostState_HOST_STATE_DOWN

func mall() []service {
	return []service{
		{name: "api", replicas: 3, order: "start-first", parallelism: 1, routed: true, version: 1},
		{name: "db", replicas: 1, order: "start-first", parallelism: 1, version: 1},
		{name: "edge", replicas: 2, order: "stop-first", parallelism: 1, dependsOn: "api", routed: true, version: 1},
		{name: "web", replicas: 6, order: "start-first", parallelism: 2, dependsOn: "api", routed: true, version: 1},
	}
}

func TestScaleKeepsTheFloorInEveryOrder(t *testing.T) {
	for _, n := range []uint32{9, 7, 4, 1, 0} {
		for seed := range uint64(12) {
			s := newSite(t, mall()...)
			s.floor = map[string]int{"api": 3, "edge": 2, "web": int(min(n, 6))}
			proposal := s.scale("web", n)
			for _, step := range proposal.Plan.GetSteps() {
				if !strings.HasPrefix(step.GetId(), "web.") && !strings.HasPrefix(step.GetId(), "pull.") {
					t.Fatalf("web to %d: the plan has step %s", n, step.GetId())
				}
			}
			if got := s.run(seed, proposal.Plan, nil); got != succeeded {
				t.Fatalf("web to %d, seed %d: %s", n, seed, got)
			}
			if diff := s.is(proposal.Release); diff != "" {
				t.Fatalf("web to %d, seed %d: %s", n, seed, diff)
			}
		}
	}
}

func TestAnyFailureOfScaleIsTakenBack(t *testing.T) {
	for _, n := range []uint32{9, 4} {
		for i, step := range newSite(t, mall()...).scale("web", n).Plan.GetSteps() {
			s := newSite(t, mall()...)
			s.floor = map[string]int{"api": 3, "edge": 2, "web": int(min(n, 6))}
			got := s.run(uint64(i), s.scale("web", n).Plan, func(id string) bool { return id == step.GetId() })
			if step.GetCleanUp() {
				continue
			}
			if got != rolledBack {
				t.Fatalf("web to %d, failing %s: %s", n, step.GetId(), got)
			}
			if diff := s.is(s.release); diff != "" {
				t.Fatalf("web to %d, failing %s: %s", n, step.GetId(), diff)
			}
		}
	}
}

// TestScaleDownGoesInWaves: no more slots than the update's parallelism are on their way out at a time.
func TestScaleDownGoesInWaves(t *testing.T) {
	plan, free := newSite(t, mall()...).scale("web", 1).Plan, 0
	for _, step := range plan.GetSteps() {
		if strings.Contains(step.GetId(), "/unroute@") && len(step.GetAfter()) == 0 {
			free++
		}
	}
	if got := len(stepsOf(plan, "/unroute")); got != 5 || free != 2 {
		t.Errorf("%d slots go, want 5; %d of them at once, want 2", got, free)
	}
}

func TestScaleToWhatThereIsDoesNothing(t *testing.T) {
	s := newSite(t, mall()...)
	if p := s.scale("web", 6); !p.Empty() || p.Plan.GetHash() == "" {
		t.Errorf("plan %v", p.Plan)
	}
}

func TestScaleThatIsRefused(t *testing.T) {
	for _, test := range []struct {
		name    string
		service string
		n       uint32
		change  func(*coordinatorv1.Service)
		hosts   func(*site)
		want    string
	}{
		{name: "no such service", service: "wep", n: 2, want: "no service"},
		{name: "global", service: "web", n: 2, change: func(s *coordinatorv1.Service) { s.Placement = &coordinatorv1.Placement{Global: true} }, want: "is global"},
		{name: "writes alone", service: "web", n: 2, change: func(s *coordinatorv1.Service) { s.StopFirst = "one instance writes to volume data" }, want: "writes to volume data"},
		{name: "data would be forgotten", service: "web", n: 0, change: func(s *coordinatorv1.Service) { s.Pinned = "volume data" }, want: "service stop shop/web"},
		{name: "too many", service: "web", n: 10001, want: "at most 10000"},
		{name: "no memory", service: "web", n: 8, change: func(s *coordinatorv1.Service) {
			s.Template.Resources = &agentv1.Resources{MemoryReservationBytes: 20 << 30}
		}, want: "of 64 GiB memory free"},
		{name: "no GPU", service: "web", n: 8, change: func(s *coordinatorv1.Service) {
			s.Template.Resources = &agentv1.Resources{Gpus: []*agentv1.GpuRequest{{Count: 1}}}
		}, want: "0 of 0 GPUs free"},
		{name: "cordoned", service: "web", n: 7, hosts: func(s *site) { s.cordon("h1"); s.cordon("h2") }, want: "h1 is cordoned"},
		{name: "host down", service: "web", n: 7, hosts: func(s *site) { s.set("h2", down) }, want: "musterctl host drain h2 --lost"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, mall()...)
			if test.change != nil {
				s.rewrite(func(r *coordinatorv1.Release) { test.change(serviceOf(r, "web")) })
			}
			if test.hosts != nil {
				test.hosts(s)
			}
			_, err := s.planner().Scale(t.Context(), s.state.View(), "shop", test.service, test.n)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}

func (s *site) cordon(host string) {
	s.apply(&raftv1.Command{Op: &raftv1.Command_CordonHost{CordonHost: &raftv1.CordonHost{Host: host, Cordoned: true, Reason: "disk"}}})
}

func TestDrainKeepsTheFloorInEveryOrder(t *testing.T) {
	for seed := range uint64(20) {
		s := newSite(t, mall()...)
		s.join("h3")
		s.floor = map[string]int{"api": 3, "edge": 2, "web": 6}
		proposal := s.drain("h2", false)
		moved := 0
		for _, a := range s.release.GetAssignments() {
			if a.GetHost() == "h2" {
				moved++
			}
		}
		if got := len(stepsOf(proposal.Plan, "/create")); got != moved {
			t.Fatalf("%d instances are created, and %d leave", got, moved)
		}
		for _, a := range proposal.Release.GetAssignments() {
			if a.GetHost() == "h2" {
				t.Fatalf("%s stays", a.GetContainer())
			}
		}
		if p := proposal.Plan; p.GetOnDeadline() != coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE || p.GetMaxDuration().AsDuration() != time.Minute {
			t.Fatalf("after %s: %s", p.GetMaxDuration().AsDuration(), p.GetOnDeadline())
		}
		if got := s.run(seed, proposal.Plan, nil); got != succeeded {
			t.Fatalf("seed %d: %s", seed, got)
		}
		if diff := s.is(proposal.Release); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

func TestAnyFailureOfADrainIsTakenBack(t *testing.T) {
	build := func() (*site, *coordinatorv1.Plan) {
		s := newSite(t, mall()...)
		s.join("h3")
		s.floor = map[string]int{"api": 3, "edge": 2, "web": 6}
		return s, s.drain("h2", false).Plan
	}
	_, plan := build()
	for i, step := range plan.GetSteps() {
		s, p := build()
		got := s.run(uint64(i), p, func(id string) bool { return id == step.GetId() })
		if step.GetCleanUp() {
			continue
		}
		if got != rolledBack {
			t.Fatalf("failing %s: %s", step.GetId(), got)
		}
		if diff := s.is(s.release); diff != "" {
			t.Fatalf("failing %s: %s", step.GetId(), diff)
		}
	}
}

func TestDrainStopsFirstOnlyWhatCannotBeTwice(t *testing.T) {
	for _, test := range []struct {
		name      string
		replicas  int
		why       string
		stopFirst bool
	}{
		{"host port", 1, "host port 80 can be bound once per host", false},
		{"writes alone", 1, "one instance writes to volume data", true},
		{"asked for, alone", 1, "", true},
		{"asked for, two", 2, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, service{name: "web", replicas: test.replicas, order: "stop-first", parallelism: 1, routed: true, version: 1})
			s.rewrite(func(r *coordinatorv1.Release) { serviceOf(r, "web").StopFirst = test.why })
			s.join("h3")
			proposal := s.drain("h1", false)
			said := false
			for _, note := range proposal.Plan.GetNotes() {
				said = said || strings.Contains(note, "stop-first")
			}
			if got := len(stepsOf(proposal.Plan, "/unroute")) > 0; got != test.stopFirst || said != test.stopFirst {
				t.Errorf("stop-first %t, said %t, want %t: %v", got, said, test.stopFirst, proposal.Plan.GetNotes())
			}
			if got := s.run(1, proposal.Plan, nil); got != succeeded {
				t.Fatal(got)
			}
			if diff := s.is(proposal.Release); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDrainListsEveryInstanceThatCannotLeave(t *testing.T) {
	s := newSite(t, mall()...)
	s.rewrite(func(r *coordinatorv1.Release) {
		serviceOf(r, "web").Placement = &coordinatorv1.Placement{Constraints: []string{"node.hostname==h2"}}
		serviceOf(r, "edge").Pinned = "volume cache"
		for _, a := range r.GetAssignments() {
			if a.GetService() == "edge" || a.GetService() == "web" {
				a.Host = "h2"
			}
		}
	})
	_, err := s.planner().Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2"})
	if rpcerr.Reason(err) != "CANNOT_DRAIN" {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"because of 8 of", "shop.web.1: ", "shop.web.6: ", "h2 is being drained", "shop.edge.1: ", "shop.edge.2: ", "volume cache"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestDrainThatIsRefused(t *testing.T) {
	for _, test := range []struct {
		host string
		is   coordinatorv1.HostState
		lost bool
		want string
	}{
		{"h9", 0, false, "there is no host"},
		{"h2", down, false, "musterctl host drain h2 --lost"},
		{"h2", coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN, false, "engine of host h2"},
		{"h2", coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN, true, "answers, so it is not lost"},
		{"h2", coordinatorv1.HostState_HOST_STATE_UP, true, "answers, so it is not lost"},
	} {
		s := newSite(t, mall()...)
		if test.is != 0 {
			s.set(test.host, test.is)
		}
		_, err := s.planner().Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: test.host, Lost: test.lost})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, lost %t: error %v, want one that says %q", test.host, test.lost, err, test.want)
		}
	}
}

// loseHost takes a host and its containers away from the model.
func (s *site) loseHost(host string) {
	s.set(host, down)
	for _, a := range s.release.GetAssignments() {
		if a.GetHost() == host {
			delete(s.running, a.GetContainer())
			delete(s.at, a.GetContainer()) // The proxy still leads to it, which is what the plan must end.
		}
	}
}

func TestLostHostIsReplacedWithoutBeingAsked(t *testing.T) {
	for seed := range uint64(10) {
		s := newSite(t, mall()...)
		s.join("h3")
		s.loseHost("h2")
		s.floor = map[string]int{"api": 2, "edge": 1, "web": 3}
		proposal := s.drain("h2", true)
		abandoned := map[string]bool{}
		for _, a := range proposal.Plan.GetAbandons() {
			abandoned[a.GetContainer()] = a.GetHost() == "h2"
		}
		for _, a := range s.release.GetAssignments() {
			if abandoned[a.GetContainer()] != (a.GetHost() == "h2") {
				t.Fatalf("%s on %s: abandoned %t", a.GetContainer(), a.GetHost(), abandoned[a.GetContainer()])
			}
		}
		for _, step := range proposal.Plan.GetSteps() {
			if step.GetHost() == "h2" {
				t.Fatalf("step %s is for the lost host", step.GetId())
			}
		}
		if got := s.run(seed, proposal.Plan, nil); got != succeeded {
			t.Fatalf("seed %d: %s", seed, got)
		}
		if diff := s.is(proposal.Release); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// TestSecondLostHostDoesNotStandInTheWay loses two of three: each is given up by itself.
func TestSecondLostHostDoesNotStandInTheWay(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 6, order: "start-first", parallelism: 2, routed: true, version: 1})
	s.join("h3")
	s.rewrite(func(r *coordinatorv1.Release) {
		for i, a := range r.GetAssignments() {
			a.Host = []string{"h1", "h2", "h3"}[i%3]
		}
	})
	s.loseHost("h2")
	s.loseHost("h3")
	for _, a := range s.drain("h2", true).Release.GetAssignments() {
		if a.GetHost() == "h2" || a.GetHost() == "h3" && a.GetRelease() != 1 {
			t.Errorf("%s is on %s", a.GetContainer(), a.GetHost())
		}
	}
}

// TestLostHostWithDataHoldsOnlyWhatBelongsToIt: what cannot be started elsewhere does not keep the rest from it.
func TestLostHostWithDataHoldsOnlyWhatBelongsToIt(t *testing.T) {
	s := newSite(t, mall()...)
	s.rewrite(func(r *coordinatorv1.Release) {
		serviceOf(r, "db").Pinned = "volume data"
		for _, a := range r.GetAssignments() {
			if a.GetService() == "db" {
				a.Host = "h2"
			}
		}
	})
	s.join("h3")
	s.set("h2", down)
	proposal := s.drain("h2", true)
	for _, a := range proposal.Release.GetAssignments() {
		if (a.GetHost() == "h2") != (a.GetService() == "db") {
			t.Errorf("%s is on %s", a.GetContainer(), a.GetHost())
		}
	}
	for _, a := range proposal.Plan.GetAbandons() {
		if strings.HasPrefix(a.GetContainer(), "shop.db.") {
			t.Errorf("%s is given up, and the release has it", a.GetContainer())
		}
	}
	if len(stepsOf(proposal.Plan, "db.1/start")) > 0 || !strings.Contains(strings.Join(proposal.Warnings, "\n"), "shop.db.1 stays without an instance until host h2 is back") {
		t.Errorf("warnings %v", proposal.Warnings)
	}
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan:    &coordinatorv1.Plan{Procedure: "drain", Stack: "shop", ActivateRelease: proposal.Release.GetNumber(), MaxDuration: durationpb.New(time.Hour)},
		Release: proposal.Release, StackRevision: proposal.StackRevision,
	}}})
	_, err := s.drainer(true).Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2", Lost: true})
	if rpcerr.Reason(err) != "CANNOT_DRAIN" || !strings.Contains(err.Error(), "because of 1 of") || !strings.Contains(err.Error(), "volume data") {
		t.Errorf("once only the data is left: %v", err)
	}
}

func TestGlobalServiceEndsOnADrainedHost(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, order: "start-first", parallelism: 1, routed: true, version: 1})
	s.rewrite(func(r *coordinatorv1.Release) {
		serviceOf(r, "web").Replicas, serviceOf(r, "web").Placement = 0, &coordinatorv1.Placement{Global: true}
	})
	s.floor = map[string]int{"web": 1}
	proposal := s.drain("h2", false)
	if len(proposal.Release.GetAssignments()) != 1 || !strings.Contains(strings.Join(proposal.Plan.GetNotes(), "\n"), "web is global") {
		t.Errorf("assigned %v, notes %v", proposal.Release.GetAssignments(), proposal.Plan.GetNotes())
	}
	if got := s.run(1, proposal.Plan, nil); got != succeeded {
		t.Fatal(got)
	}
	if diff := s.is(proposal.Release); diff != "" {
		t.Error(diff)
	}
}

func TestDrainOfSeveralStacksCountsThemTogether(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, order: "start-first", parallelism: 1, version: 1})
	other := release(1, nil, service{name: "web", replicas: 2, order: "start-first", parallelism: 1, version: 1})
	other.Stack = "zoo"
	other.Assignments[1].Container, other.Assignments[1].Ports = "zoo.web.2.r1", nil
	other.Assignments[0].Container, other.Assignments[0].Ports = "zoo.web.1.r1", nil
	resources := &agentv1.Resources{MemoryReservationBytes: 20 << 30}
	s.rewrite(func(r *coordinatorv1.Release) { serviceOf(r, "web").Template.Resources = resources })
	serviceOf(other, "web").Template.Resources = resources
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: &coordinatorv1.Plan{Procedure: "test", Stack: "zoo", ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)}, Release: other,
	}}})
	// h1 has 64 GiB: 40 are taken, so that one more of 20 fits, and not two.
	_, err := s.planner().Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2"})
	if rpcerr.Reason(err) != "CANNOT_DRAIN" || !strings.Contains(err.Error(), "zoo.web.2: ") || strings.Contains(err.Error(), "shop.web.2: ") {
		t.Errorf("error %v", err)
	}
	proposals, err := s.planner().Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2", Stack: "zoo"})
	if err != nil || len(proposals) != 1 {
		t.Errorf("%d proposals, %v", len(proposals), err)
	}
}

func TestTidyRemovesWhatWasGivenUp(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 4, order: "start-first", parallelism: 2, routed: true, version: 1})
	s.set("h2", down)
	proposal := s.drain("h2", true)
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		// Only what the plan leaves behind is wanted here: its steps are other tests' business.
		Plan: &coordinatorv1.Plan{
			Procedure: "drain", Stack: "shop", ActivateRelease: 2, MaxDuration: durationpb.New(time.Hour), Abandons: proposal.Plan.GetAbandons(),
		},
		Release: proposal.Release, StackRevision: proposal.StackRevision,
	}}})
	if got := len(s.state.View().Stack("shop").GetAbandoned()); got != 2 {
		t.Fatalf("%d containers are abandoned, want 2", got)
	}
	if p, err := runbook.Tidy(s.state.View(), "shop"); p != nil || err != nil {
		t.Fatalf("host h2 is down, and %v, %v is proposed", p, err)
	}
	s.set("h2", coordinatorv1.HostState_HOST_STATE_UP)
	tidy, err := runbook.Tidy(s.state.View(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for name, is := range map[string]bool{"shop.web.2.r1": true, "shop.web.4.r1": true, "shop.web.1.r1": false} {
		if got := state.Definition(tidy.Plan, "reclaim/"+name) != nil; got != is {
			t.Errorf("%s is removed: %t", name, got)
		}
	}
	result := s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: tidy.Plan, StackRevision: tidy.StackRevision}}})
	for _, step := range s.state.View().OpenSteps() {
		s.apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{
			Outcomes: []*raftv1.Outcome{{RunId: step.GetRunId(), StepId: step.GetStepId(), Attempt: step.GetAttempt()}},
		}}})
	}
	view := s.state.View()
	if got := view.Run(result.GetRun().GetId()).GetState(); got != succeeded || len(view.Stack("shop").GetAbandoned()) > 0 || view.Stack("shop").GetCurrentRelease() != 2 {
		t.Errorf("run %s, stack %v", got, view.Stack("shop"))
	}
}

// TestTidyOfAProxyLeadsItToWhatRuns: the proxy of a host that was away still leads to what ran before.
func TestTidyOfAProxyLeadsItToWhatRuns(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, order: "start-first", parallelism: 2, routed: true, version: 1})
	next := release(2, nil, service{name: "web", replicas: 2, order: "start-first", parallelism: 2, routed: true, version: 1})
	for _, a := range next.GetAssignments() {
		a.Host = "h2"
	}
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan: &coordinatorv1.Plan{
			Procedure: "drain", Stack: "shop", ActivateRelease: 2, MaxDuration: durationpb.New(time.Hour),
			Abandons: []*coordinatorv1.Abandoned{{Host: "h1", Container: "shop.web.1.r1"}},
		},
		Release: next, StackRevision: s.state.View().Stack("shop").GetRevision(),
	}}})
	tidy, err := runbook.Tidy(s.state.View(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, s.release, next)
	f.put(s.release)
	for _, a := range next.GetAssignments() {
		f.running[a.GetContainer()], f.ready[a.GetContainer()] = true, true
	}
	delete(f.running, "shop.web.2.r1") // It was removed by the release's own run.
	delete(f.at, "shop.web.2.r1")
	if got := f.run(1, tidy.Plan, nil); got != succeeded {
		t.Fatal(got)
	}
	if diff := f.is(next); diff != "" {
		t.Error(diff)
	}
}

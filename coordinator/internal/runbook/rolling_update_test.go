package runbook_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// service describes one service of a test's release.
type service struct {
	name        string
	replicas    int
	order       string
	parallelism uint32
	dependsOn   string
	routed      bool
	version     int
}

// release makes a release of services, two hosts, one port for each instance.
func release(number uint64, before *coordinatorv1.Release, services ...service) *coordinatorv1.Release {
	r := &coordinatorv1.Release{Stack: "shop", Number: number}
	former := map[string]*coordinatorv1.Assignment{}
	for _, a := range before.GetAssignments() {
		former[state.GroupOf(a)] = a
	}
	for _, s := range services {
		def := &coordinatorv1.Service{
			Name: s.name, Replicas: uint32(s.replicas), Image: "app", Template: &agentv1.ContainerSpec{Image: fmt.Sprintf("app@sha256:%064d", s.version)},
			Gate:   &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 8080}}},
			Update: &coordinatorv1.UpdatePolicy{Parallelism: s.parallelism, Order: s.order, Monitor: durationpb.New(time.Second)},
		}
		if s.dependsOn != "" {
			def.DependsOn = []*coordinatorv1.Dependency{{Service: s.dependsOn, Condition: "service_healthy"}}
		}
		if s.routed {
			def.Route = &coordinatorv1.ServiceRoute{Port: 8080}
		}
		r.Services = append(r.Services, def)
		for slot := range s.replicas {
			a := &coordinatorv1.Assignment{Service: s.name, Slot: uint32(slot + 1), Host: fmt.Sprintf("h%d", slot%2+1), Release: number, HostAddress: "10.0.0.1"}
			if old := former[state.GroupOf(a)]; old != nil && !stack.Replace(serviceOf(before, s.name), def) {
				r.Assignments = append(r.Assignments, old)
				continue
			}
			a.Container = stack.ContainerName("shop", s.name, a.GetSlot(), number)
			a.Ports = []*agentv1.PortBinding{{HostPort: uint32(20000 + 1000*int(number) + 100*len(r.Services) + slot), ContainerPort: 8080, Protocol: "tcp"}}
			r.Assignments = append(r.Assignments, a)
		}
	}
	return r
}

func serviceOf(r *coordinatorv1.Release, name string) *coordinatorv1.Service {
	for _, s := range r.GetServices() {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

func plan(t *testing.T, before, after *coordinatorv1.Release) *coordinatorv1.Plan {
	t.Helper()
	specs := map[string]*agentv1.ContainerSpec{}
	for _, a := range after.GetAssignments() {
		if a.GetRelease() == after.GetNumber() {
			specs[a.GetContainer()] = stack.Spec("shop", serviceOf(after, a.GetService()), a, nil)
		}
	}
	p, err := runbook.RollingUpdate(runbook.Rollout{Title: "test", Before: before, After: after, Specs: specs, Proxies: []string{"h1"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fleet is a model of hosts: what the steps do to containers and to the proxy.
type fleet struct {
	t        *testing.T
	running  map[string]bool // created containers, and whether they run
	ready    map[string]bool
	upstream map[string]bool   // host:port
	at       map[string]string // host:port of a container
	broken   int               // containers of this release never get ready
	signals  map[string]int    // sent, by container and signal
	floor    map[string]int    // routed instances that must serve at any time, by service
}

func newFleet(t *testing.T, releases ...*coordinatorv1.Release) *fleet {
	f := &fleet{t: t, running: map[string]bool{}, ready: map[string]bool{}, upstream: map[string]bool{}, at: map[string]string{}, floor: map[string]int{}, signals: map[string]int{}}
	for _, r := range releases {
		for _, a := range r.GetAssignments() {
			f.at[a.GetContainer()] = fmt.Sprintf("%s:%d", a.GetHostAddress(), a.GetPorts()[0].GetHostPort())
		}
	}
	return f
}

// put makes a release run.
func (f *fleet) put(r *coordinatorv1.Release) {
	for _, a := range r.GetAssignments() {
		f.running[a.GetContainer()], f.ready[a.GetContainer()] = true, true
		if serviceOf(r, a.GetService()).GetRoute() != nil {
			f.upstream[f.at[a.GetContainer()]] = true
		}
	}
}

// do performs an action and returns how it failed.
func (f *fleet) do(action *coordinatorv1.Action) string {
	method := action.GetMethod()[strings.IndexByte(action.GetMethod(), '/')+1:]
	read := func(m proto.Message) {
		if err := proto.Unmarshal(action.GetRequest(), m); err != nil {
			f.t.Fatal(err)
		}
	}
	switch method {
	case "PullImage", "DrainContainer", "WatchContainer":
	case "CreateContainer":
		var req agentv1.CreateContainerRequest
		read(&req)
		if _, exists := f.running[req.GetSpec().GetName()]; exists {
			f.t.Fatalf("%s is created twice", req.GetSpec().GetName())
		}
		f.running[req.GetSpec().GetName()] = false
	case "StartContainer":
		var req agentv1.StartContainerRequest
		read(&req)
		if _, exists := f.running[req.GetName()]; !exists {
			f.t.Fatalf("%s is started and does not exist", req.GetName())
		}
		f.running[req.GetName()] = true
	case "AwaitReady":
		var req agentv1.AwaitReadyRequest
		read(&req)
		if f.broken > 0 && strings.HasSuffix(req.GetName(), fmt.Sprintf(".r%d", f.broken)) {
			return "never ready"
		}
		f.ready[req.GetName()] = true
	case "UpdateRoute":
		var req agentv1.UpdateRouteRequest
		read(&req)
		for _, u := range req.GetAdd() {
			f.upstream[u] = true
		}
		for _, u := range req.GetRemove() {
			delete(f.upstream, u)
		}
	case "StopContainer":
		var req agentv1.StopContainerRequest
		read(&req)
		if _, exists := f.running[req.GetName()]; exists {
			f.running[req.GetName()] = false
		}
		f.ready[req.GetName()] = false
	case "SignalContainer":
		var req agentv1.SignalContainerRequest
		read(&req)
		if !f.running[req.GetName()] {
			f.t.Fatalf("%s gets a signal and does not run", req.GetName())
		}
		f.signals[req.GetName()+" "+req.GetSignal()]++
	case "RemoveContainer":
		var req agentv1.RemoveContainerRequest
		read(&req)
		delete(f.running, req.GetName())
	default:
		f.t.Fatalf("the plan has a step %s", method)
	}
	f.check(method)
	return ""
}

// check holds what must be true at every moment: the proxy leads to nothing that does not serve, and to enough that does.
func (f *fleet) check(after string) {
	serving := map[string]int{}
	for container, address := range f.at {
		if !f.upstream[address] {
			continue
		}
		if !f.running[container] || !f.ready[container] {
			f.t.Fatalf("after %s the proxy leads to %s, which does not serve", after, container)
		}
		serving[strings.Split(container, ".")[1]]++
	}
	for service, floor := range f.floor {
		if serving[service] < floor {
			f.t.Fatalf("after %s only %d instances of %s serve, the floor is %d", after, serving[service], service, floor)
		}
	}
}

// is says how the fleet differs from a release that runs alone.
func (f *fleet) is(r *coordinatorv1.Release) string {
	want := newFleet(f.t, r)
	want.put(r)
	if fmt.Sprint(f.running) != fmt.Sprint(want.running) {
		return fmt.Sprintf("containers are %v, want %v", f.running, want.running)
	}
	if fmt.Sprint(f.upstream) != fmt.Sprint(want.upstream) {
		return fmt.Sprintf("upstreams are %v, want %v", f.upstream, want.upstream)
	}
	return ""
}

// run runs a plan through the state machine in a random order of outcomes, failing steps as `fails` says.
func (f *fleet) run(seed uint64, p *coordinatorv1.Plan, fails func(step string) bool) coordinatorv1.RunState {
	f.t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	s, index, now := state.New(), uint64(0), time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	apply := func(c *raftv1.Command) *raftv1.Result {
		index++
		now = now.Add(time.Second)
		c.Version, c.Now = state.CommandVersion, timestamppb.New(now)
		return s.Apply(index, c)
	}
	p.Stack, p.ActivateRelease = "", 0
	result := apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: p}}})
	if result.GetError() != nil {
		f.t.Fatalf("start: %s", result.GetError().GetMessage())
	}
	id := result.GetRun().GetId()
	for range 10000 {
		run := s.View().Run(id)
		if state.Terminal(run.GetState()) || run.GetState() == coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN {
			return run.GetState()
		}
		open := s.View().OpenSteps()
		if len(open) == 0 && run.GetState() == coordinatorv1.RunState_RUN_STATE_PAUSED {
			return run.GetState()
		}
		if len(open) == 0 {
			apply(&raftv1.Command{Op: &raftv1.Command_Tick{Tick: &raftv1.Tick{RunIds: []string{id}}}})
			continue
		}
		step := open[rng.IntN(len(open))]
		outcome := &raftv1.Outcome{RunId: id, StepId: step.GetStepId(), Attempt: step.GetAttempt()}
		var failure string
		if fails != nil && fails(step.GetStepId()) {
			failure = "made to fail"
		} else {
			failure = f.do(state.Definition(p, step.GetStepId()).GetAction())
		}
		if failure != "" {
			outcome.Failure = &agentv1.OperationFailure{Message: failure, Permanent: true}
		}
		apply(&raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Outcomes: []*raftv1.Outcome{outcome}}}})
	}
	f.t.Fatal("the run never ends")
	return 0
}

func shop(version int) []service {
	return []service{
		{name: "api", replicas: 3, order: "start-first", parallelism: 1, dependsOn: "db", routed: true, version: version},
		{name: "db", replicas: 1, order: "stop-first", parallelism: 1, version: version},
		{name: "edge", replicas: 2, order: "stop-first", parallelism: 1, dependsOn: "api", routed: true, version: version},
		{name: "web", replicas: 6, order: "start-first", parallelism: 2, dependsOn: "api", routed: true, version: version},
	}
}

func TestUpdateKeepsTheFloorInEveryOrder(t *testing.T) {
	before := release(1, nil, shop(1)...)
	after := release(2, before, shop(2)...)
	for seed := range uint64(60) {
		f := newFleet(t, before, after)
		f.put(before)
		f.floor = map[string]int{"api": 3, "web": 6, "edge": 1}
		if got := f.run(seed, plan(t, before, after), nil); got != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
			t.Fatalf("seed %d: %s", seed, got)
		}
		if diff := f.is(after); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// TestAnyFailureRollsBackWithoutBreakingTheFloor fails each step of the plan in turn.
func TestAnyFailureRollsBackWithoutBreakingTheFloor(t *testing.T) {
	before := release(1, nil, shop(1)...)
	after := release(2, before, shop(2)...)
	for i, step := range plan(t, before, after).GetSteps() {
		f := newFleet(t, before, after)
		f.put(before)
		f.floor = map[string]int{"api": 3, "web": 6, "edge": 1}
		got := f.run(uint64(i), plan(t, before, after), func(id string) bool { return id == step.GetId() })
		want, end := coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, before
		if step.GetCleanUp() {
			want, end = coordinatorv1.RunState_RUN_STATE_SUCCEEDED, after
		}
		if got != want {
			t.Fatalf("failing %s: %s, want %s", step.GetId(), got, want)
		}
		if diff := f.is(end); diff != "" && !step.GetCleanUp() {
			t.Fatalf("failing %s: %s", step.GetId(), diff)
		}
	}
}

func TestFirstReleaseNeverReadyLeavesNothing(t *testing.T) {
	after := release(1, nil, shop(1)...)
	f := newFleet(t, after)
	f.broken = 1
	if got := f.run(1, plan(t, nil, after), nil); got != coordinatorv1.RunState_RUN_STATE_ROLLED_BACK {
		t.Fatal(got)
	}
	if len(f.running) > 0 || len(f.upstream) > 0 {
		t.Errorf("left over: %v %v", f.running, f.upstream)
	}
}

func TestScaleAndRemove(t *testing.T) {
	before := release(1, nil, shop(1)...)
	wanted := shop(1)
	wanted[0].replicas, wanted[3].replicas = 5, 2
	after := release(2, before, append(wanted[:2], wanted[3])...)
	for seed := range uint64(20) {
		f := newFleet(t, before, after)
		f.put(before)
		f.floor = map[string]int{"api": 3, "web": 2}
		p := plan(t, before, after)
		if seed == 0 {
			for _, step := range p.GetSteps() {
				if strings.HasPrefix(step.GetId(), "db.") || strings.HasPrefix(step.GetId(), "web.1/") {
					t.Errorf("the plan touches %s, which does not change", step.GetId())
				}
			}
		}
		if got := f.run(seed, p, nil); got != coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
			t.Fatal(got)
		}
		if diff := f.is(after); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestDependenciesComeFirst(t *testing.T) {
	after := release(1, nil, shop(1)...)
	p := plan(t, nil, after)
	var started []string
	f := newFleet(t, after)
	f.run(3, p, func(id string) bool {
		if strings.HasSuffix(id, "/start") {
			started = append(started, id)
		}
		return false
	})
	at := func(id string) int { return slices.Index(started, id) }
	if at("db.1/start") != 0 || at("web.1/start") < at("api.3/start") || at("edge.1/start") < at("api.3/start") {
		t.Errorf("started in the order %v", started)
	}
}

func TestPlanIsTheSameEachTime(t *testing.T) {
	before := release(1, nil, shop(1)...)
	after := release(2, before, shop(2)...)
	first := plan(t, before, after)
	for range 5 {
		if again := plan(t, before, after); again.GetHash() != first.GetHash() || again.GetHash() == "" {
			t.Fatalf("hash %s, then %s", first.GetHash(), again.GetHash())
		}
	}
}

func TestCycleIsRefused(t *testing.T) {
	after := release(1, nil, service{name: "a", replicas: 1, dependsOn: "b", version: 1}, service{name: "b", replicas: 1, dependsOn: "a", version: 1})
	if _, err := runbook.RollingUpdate(runbook.Rollout{After: after}); err == nil || !strings.Contains(err.Error(), "depends on itself") {
		t.Errorf("error %v", err)
	}
}

// TestPlanStaysSmall bounds what a plan takes in the raft log: what a coordinator agrees on in one step is limited to 1 MiB.
func TestPlanStaysSmall(t *testing.T) {
	const instances, limit = 100, 4 << 10
	before := release(1, nil, service{name: "web", replicas: instances, order: "start-first", parallelism: 5, routed: true, version: 1})
	after := release(2, before, service{name: "web", replicas: instances, order: "start-first", parallelism: 5, routed: true, version: 2})
	if got := proto.Size(plan(t, before, after)) / instances; got > limit {
		t.Errorf("an instance takes %d bytes of the plan, at most %d are wanted", got, limit)
	} else {
		t.Logf("an instance takes %d bytes of the plan", got)
	}
}

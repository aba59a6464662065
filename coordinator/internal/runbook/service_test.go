package runbook_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func TestRestartKeepsTheFloorAndTheContainersInEveryOrder(t *testing.T) {
	for _, test := range []struct {
		parallelism uint32
		replicas    int
		slots       []uint32
		floor       int
	}{
		{2, 6, nil, 4}, {1, 3, nil, 2}, {0, 4, nil, 1}, {9, 3, nil, 1}, {2, 6, []uint32{1, 2, 5}, 4}, {1, 1, nil, 0},
	} {
		for seed := range uint64(15) {
			s := newSite(t, service{name: "web", replicas: test.replicas, order: "start-first", parallelism: test.parallelism, routed: true, version: 1})
			s.floor = map[string]int{"web": test.floor}
			p := s.operate(request(restart, test.slots...))
			want := test.replicas
			if test.slots != nil {
				want = len(test.slots)
			}
			if got := len(stepsOf(p, "/start")); got != want || len(stepsOf(p, "/stop")) != want || len(stepsOf(p, "/create")) > 0 || p.GetActivateRelease() != 0 {
				t.Fatalf("%v: %d are started, want %d and nothing created", test, got, want)
			}
			if got := s.run(seed, p, nil); got != succeeded {
				t.Fatalf("%v, seed %d: %s", test, seed, got)
			}
			if diff := s.is(s.release); diff != "" {
				t.Fatalf("%v, seed %d: %s", test, seed, diff)
			}
		}
	}
}

// TestAnyFailureOfAVerbIsTakenBack fails each step in turn: what served before serves after, and the floor holds.
func TestAnyFailureOfAVerbIsTakenBack(t *testing.T) {
	web := []service{{name: "web", replicas: 5, order: "start-first", parallelism: 2, routed: true, version: 1}, {name: "db", replicas: 2, order: "stop-first", parallelism: 1, version: 1}}
	for _, test := range []struct {
		verb    coordinatorv1.ServiceVerb
		service string
		want    coordinatorv1.RunState
		floor   int
	}{
		{restart, "web", rolledBack, 3}, {restart, "db", rolledBack, 0}, {recreate, "web", rolledBack, 5}, {reload, "web", rolledBack, 5}, {stop, "web", paused, 0}, {stop, "db", paused, 0},
	} {
		plan := func(s *site) *coordinatorv1.Plan {
			req := request(test.verb)
			req.Service = test.service
			return s.operate(req)
		}
		for i, step := range plan(newSite(t, web...)).GetSteps() {
			s := newSite(t, web...)
			s.floor = map[string]int{"web": test.floor}
			p := plan(s)
			s.know(p)
			got := s.run(uint64(i), p, func(id string) bool { return id == step.GetId() })
			switch {
			case step.GetCleanUp():
				continue
			case got != test.want:
				t.Fatalf("%s %s, failing %s: %s, want %s", test.verb, test.service, step.GetId(), got, test.want)
			case test.want == rolledBack:
				if diff := s.is(s.release); diff != "" {
					t.Fatalf("%s %s, failing %s: %s", test.verb, test.service, step.GetId(), diff)
				}
			default:
				s.serves(t, step)
			}
		}
	}
}

func TestRestartWaitsForTheWaveBefore(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 4, parallelism: 2, routed: true, version: 1})
	req := request(restart)
	req.Delay = durationpb.New(time.Minute)
	p := s.operate(req)
	for _, id := range stepsOf(p, "/unroute") {
		step := state.Definition(p, id)
		late := strings.HasPrefix(id, "web.3/") || strings.HasPrefix(id, "web.4/")
		if (step.GetDelay().AsDuration() == time.Minute) != late || (len(step.GetAfter()) > 0) != late {
			t.Errorf("%s comes after %v with a delay of %s", id, step.GetAfter(), step.GetDelay().AsDuration())
		}
	}
	if got := p.GetMaxDuration().AsDuration(); got < 62*time.Minute {
		t.Errorf("the run has %s", got)
	}
	if change := p.GetChanges()[0]; change.GetParallelism() != 2 || change.GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE || change.GetInstancesAfter() != 4 {
		t.Errorf("the change is %v", change)
	}
	if p.GetProcedure() != "restart" || !slices.Equal(p.GetLocks(), []string{"stack/shop"}) || p.GetTitle() != "restart shop/web" {
		t.Errorf("the plan is %s %v %q", p.GetProcedure(), p.GetLocks(), p.GetTitle())
	}
}

func TestRestartSaysWhatIsAway(t *testing.T) {
	for _, test := range []struct {
		replicas    int
		parallelism uint32
		note        string
	}{
		{1, 1, "does not serve while that is restarted"}, {3, 0, "all 3 instances at a time would leave none to serve: 2 at a time are restarted"}, {3, 1, ""},
	} {
		s := newSite(t, service{name: "web", replicas: test.replicas, parallelism: test.parallelism, routed: true, version: 1})
		notes := strings.Join(s.operate(request(restart)).GetNotes(), "\n")
		if !strings.Contains(notes, test.note) || test.note == "" && notes != "" {
			t.Errorf("%d instances, %d at a time: notes %q, want %q", test.replicas, test.parallelism, notes, test.note)
		}
	}
}

// TestToleratedFailureIsBroughtBackBeforeTheNextWave: the floor holds for failures that the budget allows, too.
func TestToleratedFailureIsBroughtBackBeforeTheNextWave(t *testing.T) {
	for seed := range uint64(30) {
		s := newSite(t, service{name: "web", replicas: 6, parallelism: 2, routed: true, version: 1})
		s.floor = map[string]int{"web": 4}
		p := s.operate(request(restart))
		p.Budgets[0].MaxFailureRatio = 0.5
		failed := []string{"web.1/ready", "web.2/route@h1", "web.4/start"}
		if got := s.run(seed, p, func(id string) bool { return slices.Contains(failed, id) }); got != succeeded {
			t.Fatalf("seed %d: %s", seed, got)
		}
		if diff := s.is(s.release); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

func TestStopAndStart(t *testing.T) {
	for seed := range uint64(20) {
		s := newSite(t, service{name: "web", replicas: 4, parallelism: 1, routed: true, version: 1})
		if p := s.operate(request(begin)); len(p.GetSteps()) > 0 || p.GetChanges()[0].GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_NONE {
			t.Fatalf("starting what runs takes %d steps: %v", len(p.GetSteps()), p.GetChanges())
		}
		p := s.operate(request(stop))
		if got := s.run(seed, p, nil); got != succeeded {
			t.Fatal(got)
		}
		for container, running := range s.running {
			if running || len(s.upstream) > 0 {
				t.Fatalf("%s runs: %t, the proxy leads to %v", container, running, s.upstream)
			}
		}
		if len(s.running) != 4 {
			t.Fatalf("containers are %v, want them stopped and there", s.running)
		}
		if p := s.operate(request(stop)); len(p.GetSteps()) > 0 {
			t.Fatalf("stopping what is stopped takes %v", p.GetSteps())
		}
		if got := s.run(seed, s.operate(request(begin, 2)), nil); got != succeeded || len(s.upstream) != 1 {
			t.Fatalf("starting one: %s, the proxy leads to %v", got, s.upstream)
		}
		if seed%2 == 0 { // A restart starts what is stopped.
			p = s.operate(request(restart))
		} else {
			p = s.operate(request(begin))
		}
		if got := s.run(seed, p, nil); got != succeeded {
			t.Fatal(got)
		}
		if diff := s.is(s.release); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestFailedStartStopsWhatItStarted(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 3, parallelism: 1, routed: true, version: 1})
	s.run(1, s.operate(request(stop)), nil)
	if got := s.run(1, s.operate(request(begin)), func(id string) bool { return id == "web.2/ready" }); got != rolledBack {
		t.Fatal(got)
	}
	for container, running := range s.running {
		if running || len(s.upstream) > 0 {
			t.Errorf("%s runs: %t, the proxy leads to %v", container, running, s.upstream)
		}
	}
}

// TestApplyAfterStop: a stopped instance is there. An apply starts it again, or replaces it where its service changes.
func TestApplyAfterStop(t *testing.T) {
	web := service{name: "web", replicas: 3, order: "start-first", parallelism: 1, routed: true, version: 1}
	for _, changed := range []bool{false, true} {
		s := newSite(t, web)
		s.run(1, s.operate(request(stop, 1, 2)), nil)
		model := &stack.Model{Name: "shop", Services: []*coordinatorv1.Service{proto.CloneOf(s.release.GetServices()[0])}}
		if changed {
			model.Services[0].Template.Env = []string{"A=b"}
		}
		proposal, err := s.planner().Apply(t.Context(), s.state.View(), model, false)
		if err != nil {
			t.Fatal(err)
		}
		s.know(proposal.Plan)
		if got := s.run(1, proposal.Plan, nil); got != succeeded {
			t.Fatal(got)
		}
		if diff := s.is(proposal.Release); diff != "" {
			t.Errorf("changed %t: %s", changed, diff)
		}
		if created := len(stepsOf(proposal.Plan, "/create")); changed != (created == 3) || !changed && created > 0 {
			t.Errorf("changed %t: %d are created", changed, created)
		}
		if notes := strings.Join(proposal.Plan.GetNotes(), "\n"); !changed && !strings.Contains(notes, "shop.web.1.r1 is stopped: it is started again") {
			t.Errorf("notes are %q", notes)
		}
	}
}

func TestRecreateReplacesWhatWasNamedOnly(t *testing.T) {
	services := []service{{name: "api", replicas: 2, routed: true, version: 1}, {name: "web", replicas: 4, order: "start-first", parallelism: 2, routed: true, version: 1}}
	for seed := range uint64(30) {
		s := newSite(t, services...)
		s.floor = map[string]int{"web": 4, "api": 1}
		s.running["shop.api.1.r1"] = false // Somebody else's trouble.
		delete(s.upstream, s.at["shop.api.1.r1"])
		proposal, err := s.planner().Operate(t.Context(), s.state.View(), request(recreate, 1, 3))
		if err != nil {
			t.Fatal(err)
		}
		p := proposal.Plan
		if got := stepsOf(p, "/create"); !slices.Equal(got, []string{"web.1/create", "web.3/create"}) {
			t.Fatalf("created are %v", got)
		}
		for _, step := range p.GetSteps() {
			if strings.HasPrefix(step.GetGroup(), "api.") || strings.Contains(step.GetId(), "leftover") {
				t.Fatalf("the plan touches %s", step.GetId())
			}
		}
		s.know(p)
		if got := s.run(seed, p, nil); got != succeeded {
			t.Fatal(got)
		}
		s.running["shop.api.1.r1"], s.upstream[s.at["shop.api.1.r1"]] = true, true
		if diff := s.is(proposal.Release); diff != "" {
			t.Fatal(diff)
		}
		if p.GetProcedure() != "recreate" || proposal.Release.GetNumber() != 2 || proposal.Empty() || p.GetChanges()[1].GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE {
			t.Fatalf("the plan is %s of release %d, changes %v", p.GetProcedure(), proposal.Release.GetNumber(), p.GetChanges())
		}
	}
}

// TestOtherChangesLeaveWhatRests: only what puts a whole stack in place starts what somebody has stopped.
func TestOtherChangesLeaveWhatRests(t *testing.T) {
	for name, plan := range map[string]func(s *site) (*runbook.Proposal, error){
		"scale": func(s *site) (*runbook.Proposal, error) {
			return s.planner().Scale(s.t.Context(), s.state.View(), "shop", "web", 5)
		},
		"recreate": func(s *site) (*runbook.Proposal, error) {
			return s.planner().Operate(s.t.Context(), s.state.View(), request(recreate, 3))
		},
		"drain": func(s *site) (*runbook.Proposal, error) {
			all, err := s.planner().Drain(s.t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2"})
			if err != nil {
				return nil, err
			}
			return all[0], nil
		},
	} {
		s := newSite(t, service{name: "api", replicas: 1, order: "start-first", parallelism: 1, version: 1}, service{name: "web", replicas: 4, order: "start-first", parallelism: 1, routed: true, version: 1})
		stopAPI := request(stop)
		stopAPI.Service = "api"
		s.run(1, s.operate(stopAPI), nil)
		s.run(1, s.operate(request(stop, 1)), nil)
		proposal, err := plan(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.know(proposal.Plan)
		if got := s.run(1, proposal.Plan, nil); got != succeeded {
			t.Fatalf("%s: %s", name, got)
		}
		for _, container := range []string{"shop.api.1.r1", "shop.web.1.r1"} {
			if running, there := s.running[container]; running || !there {
				t.Errorf("%s: %s is there: %t, and runs: %t", name, container, there, running)
			}
		}
	}
}

// TestDrainMovesWhatRests: an instance that leaves its host runs where it goes, which the plan says.
func TestDrainMovesWhatRests(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, order: "start-first", parallelism: 1, routed: true, version: 1})
	s.run(1, s.operate(request(stop, 2)), nil)
	all, err := s.planner().Drain(t.Context(), s.state.View(), runbook.DrainRequest{Host: "h2"})
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if notes := strings.Join(all[0].Plan.GetNotes(), "\n"); !strings.Contains(notes, "shop.web.2.r1 is stopped: where its instance goes, it runs") {
		t.Errorf("notes %q", notes)
	}
	s.know(all[0].Plan)
	if got := s.run(1, all[0].Plan, nil); got != succeeded {
		t.Fatal(got)
	}
	if diff := s.is(all[0].Release); diff != "" {
		t.Error(diff)
	}
	for _, step := range all[0].Plan.GetSteps() {
		s := newSite(t, service{name: "web", replicas: 2, order: "start-first", parallelism: 1, routed: true, version: 1})
		s.run(1, s.operate(request(stop, 2)), nil)
		before := maps.Clone(s.running)
		if step.GetCleanUp() {
			continue
		}
		s.know(all[0].Plan)
		if got := s.run(1, proto.CloneOf(all[0].Plan), func(id string) bool { return id == step.GetId() }); got != rolledBack || !maps.Equal(s.running, before) {
			t.Errorf("failing %s: %s, containers are %v, were %v", step.GetId(), got, s.running, before)
		}
	}
}

func TestReloadGoesInWavesThatAreWatched(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 4, parallelism: 2, routed: true, version: 1})
	s.floor = map[string]int{"web": 4}
	p := s.operate(request(reload))
	if after := state.Definition(p, "web.3/signal").GetAfter(); !slices.Equal(after, []string{"web.1/watch"}) {
		t.Errorf("the second wave comes after %v", after)
	}
	if step := state.Definition(p, "web.1/signal"); step.GetIfUnknown() != coordinatorv1.IfUnknown_IF_UNKNOWN_REPEAT || step.GetAction().GetEffect() != accessv1.Effect_EFFECT_ONCE {
		t.Errorf("the signal is %v", step)
	}
	if got := s.run(1, p, nil); got != succeeded || len(s.signals) != 4 || s.signals["shop.web.4.r1 SIGHUP"] != 1 {
		t.Errorf("%s, signals %v", got, s.signals)
	}
	clear(s.signals)
	if got := s.run(1, s.operate(request(reload)), func(id string) bool { return id == "web.1/watch" }); got != rolledBack {
		t.Error(got)
	}
	if s.signals["shop.web.3.r1 SIGHUP"] > 0 {
		t.Errorf("the second wave got a signal after the first had failed: %v", s.signals)
	}
}

func TestReloadSignal(t *testing.T) {
	for _, test := range []struct{ own, asked, want string }{{"", "", "SIGHUP"}, {"SIGUSR2", "", "SIGUSR2"}, {"SIGUSR2", "usr1", "SIGUSR1"}} {
		s := newSite(t, service{name: "web", replicas: 1, parallelism: 1, version: 1})
		s.release.Services[0].ReloadSignal = test.own
		s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
			Plan:    &coordinatorv1.Plan{Stack: "shop", ActivateRelease: 2, MaxDuration: durationpb.New(time.Hour)},
			Release: &coordinatorv1.Release{Stack: "shop", Number: 2, Services: s.release.GetServices(), Assignments: s.release.GetAssignments()}, StackRevision: s.state.View().Stack("shop").GetRevision(),
		}}})
		req := request(reload)
		req.Signal = test.asked
		s.run(1, s.operate(req), nil)
		if s.signals["shop.web.1.r1 "+test.want] != 1 {
			t.Errorf("%v: signals %v", test, s.signals)
		}
	}
}

func TestSignalIsSentToWhatRuns(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 3, parallelism: 1, routed: true, version: 1})
	s.run(1, s.operate(request(stop, 2)), nil)
	req := request(send)
	req.Signal = "usr1"
	p := s.operate(req)
	if got := s.run(1, p, nil); got != succeeded || len(s.signals) != 2 || s.signals["shop.web.2.r1 SIGUSR1"] != 0 {
		t.Errorf("%s, signals %v", got, s.signals)
	}
	for _, step := range p.GetSteps() {
		if step.GetIfUnknown() != coordinatorv1.IfUnknown_IF_UNKNOWN_ASK || len(step.GetUndo()) > 0 {
			t.Errorf("the step is %v", step)
		}
	}
	req.Slots = []uint32{2}
	if _, err := s.planner().Operate(t.Context(), s.state.View(), req); rpcerr.Reason(err) != "INVALID" || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("a signal to a stopped instance: %v", err)
	}
}

func TestStopOfWhatEndedByItself(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, parallelism: 1, routed: true, version: 1})
	s.running["shop.web.1.r1"], s.ended["shop.web.1.r1"] = false, true
	s.ready["shop.web.1.r1"] = false
	p := s.operate(request(stop, 1))
	if undo := state.Definition(p, "web.1/stop").GetUndo(); len(undo) > 0 {
		t.Errorf("what did not run would be started to take the stop back: %v", undo)
	}
	if s.operate(request(begin, 1)).GetSteps()[0].GetId() != "web.1/start" {
		t.Error("it is not started")
	}
	delete(s.running, "shop.web.2.r1")
	for _, verb := range []coordinatorv1.ServiceVerb{begin, restart} {
		if _, err := s.planner().Operate(t.Context(), s.state.View(), request(verb)); err == nil || !strings.Contains(err.Error(), "`musterctl service recreate shop/web` makes a new one") {
			t.Errorf("%s of a container that is gone: %v", verb, err)
		}
	}
}

func TestOperationsThatAreRefused(t *testing.T) {
	minute := durationpb.New(time.Minute)
	for _, test := range []struct {
		name   string
		edit   func(*coordinatorv1.OperateServiceRequest)
		reason string
		code   codes.Code
		text   string
	}{
		{"no verb", func(r *coordinatorv1.OperateServiceRequest) { r.Verb = 0 }, "INVALID", codes.InvalidArgument, "there are RESTART"},
		{"unknown verb", func(r *coordinatorv1.OperateServiceRequest) { r.Verb = 99 }, "INVALID", codes.InvalidArgument, "verb 99"},
		{"unknown stack", func(r *coordinatorv1.OperateServiceRequest) { r.Stack = "shpo" }, "STACK_NOT_FOUND", codes.NotFound, "did you mean shop?"},
		{"unknown service", func(r *coordinatorv1.OperateServiceRequest) { r.Service = "wbe" }, "SERVICE_NOT_FOUND", codes.NotFound, "did you mean web?"},
		{"unknown slot", func(r *coordinatorv1.OperateServiceRequest) { r.Slots = []uint32{1, 9} }, "INVALID", codes.InvalidArgument, "no instance 9: it has 1, 2"},
		{"slot 0", func(r *coordinatorv1.OperateServiceRequest) { r.Slots = []uint32{0} }, "INVALID", codes.InvalidArgument, "no instance 0"},
		{"signal of a restart", func(r *coordinatorv1.OperateServiceRequest) { r.Signal = "SIGHUP" }, "INVALID", codes.InvalidArgument, "sends none"},
		{"no signal", func(r *coordinatorv1.OperateServiceRequest) { r.Verb = send }, "INVALID", codes.InvalidArgument, "name one"},
		{"unknown signal", func(r *coordinatorv1.OperateServiceRequest) { r.Verb, r.Signal = send, "SIGUP" }, "INVALID", codes.InvalidArgument, "did you mean SIGHUP?"},
		{"a kill", func(r *coordinatorv1.OperateServiceRequest) { r.Verb, r.Signal = send, "kill" }, "INVALID", codes.InvalidArgument, "`musterctl service stop`"},
		{"negative delay", func(r *coordinatorv1.OperateServiceRequest) { r.Delay = durationpb.New(-1) }, "INVALID", codes.InvalidArgument, "between 0 and 24h"},
		{"long delay", func(r *coordinatorv1.OperateServiceRequest) { r.Delay = durationpb.New(25 * time.Hour) }, "INVALID", codes.InvalidArgument, "between 0 and 24h"},
		{"delay of a stop", func(r *coordinatorv1.OperateServiceRequest) { r.Verb, r.Delay = stop, minute }, "INVALID", codes.InvalidArgument, "knows no waves"},
	} {
		s := newSite(t, service{name: "web", replicas: 2, parallelism: 1, routed: true, version: 1})
		req := request(restart)
		test.edit(req)
		_, err := s.planner().Operate(t.Context(), s.state.View(), req)
		if rpcerr.Reason(err) != test.reason || status.Code(err) != test.code || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %s with %q", test.name, err, test.reason, test.text)
		}
	}
}

func TestHostThatIsDownStopsAVerbBeforeItStarts(t *testing.T) {
	for _, verb := range []coordinatorv1.ServiceVerb{restart, recreate, stop, begin, reload, send} {
		s := newSite(t, service{name: "web", replicas: 4, parallelism: 1, routed: true, version: 1})
		s.set("h2", coordinatorv1.HostState_HOST_STATE_DOWN)
		req := request(verb)
		if verb == send {
			req.Signal = "HUP"
		}
		_, err := s.planner().Operate(t.Context(), s.state.View(), req)
		if rpcerr.Reason(err) != "HOST_DOWN" || !strings.Contains(err.Error(), "host h2 (down) has instance 2, 4") || !strings.Contains(err.Error(), "--slot") {
			t.Errorf("%s: %v", verb, err)
		}
		if verb == recreate { // A new release is for all of the stack.
			continue
		}
		req.Slots = []uint32{1, 3}
		if _, err := s.planner().Operate(t.Context(), s.state.View(), req); err != nil {
			t.Errorf("%s of the other instances: %v", verb, err)
		}
	}
}

func TestStackThatARunChangesIsLeftAlone(t *testing.T) {
	s := newSite(t, service{name: "web", replicas: 2, parallelism: 1, routed: true, version: 1})
	p := s.operate(request(restart))
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: p, StackRevision: s.state.View().Stack("shop").GetRevision()}}})
	if _, err := s.planner().Operate(t.Context(), s.state.View(), request(stop)); rpcerr.Reason(err) != "LOCK_HELD" || !strings.Contains(err.Error(), "restart shop/web") {
		t.Errorf("error %v", err)
	}
}

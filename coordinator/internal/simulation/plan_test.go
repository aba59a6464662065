package simulation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const containers = "muster.agent.v1.ContainerService/"

func action(verb string, request proto.Message) *coordinatorv1.Action {
	return &coordinatorv1.Action{Method: containers + verb, Request: marshal(request), Effect: effectOf(containers + verb)}
}

// planner makes random plans: chains of create, start, await and stop in groups with budgets, and once-only and clean-up steps between them.
type planner struct {
	rng   *rand.Rand
	hosts []*host
	made  int
}

func (p *planner) pick(d ...time.Duration) *durationpb.Duration {
	return durationpb.New(d[p.rng.IntN(len(d))])
}

// plan has the shape of a rolling update: groups in waves, each group after one or two of those before it.
func (p *planner) plan() *coordinatorv1.Plan {
	p.made++
	plan := &coordinatorv1.Plan{
		OnDeadline: coordinatorv1.FailureAction(1 + p.rng.IntN(2)), Procedure: "simulated", Title: fmt.Sprintf("plan %d", p.made), MaxDuration: p.pick(30*time.Second, 3*time.Minute, time.Hour),
		Locks: p.locks(),
	}
	var ends []string
	groups := 1 + p.rng.IntN(4)
	for g := range groups {
		var after []string
		if len(ends) > 0 && p.rng.IntN(4) > 0 {
			after = append(after, ends[p.rng.IntN(len(ends))])
		}
		if p.rng.IntN(6) == 0 {
			after = []string{p.approval(plan, g, after)}
		}
		ends = append(ends, p.group(plan, g, after))
	}
	p.budgets(plan, groups)
	if p.rng.IntN(3) == 0 {
		plan.Steps = append(plan.Steps, p.signal("signal", "", ends[len(ends)-1:], fmt.Sprintf("p%d-0", p.made)))
	}
	for g := range p.rng.IntN(groups + 1) {
		clean := p.step(fmt.Sprintf("clean/%d", g), "", ends, action("RemoveContainer", &agentv1.RemoveContainerRequest{Name: fmt.Sprintf("old%d-%d", p.made, g)}))
		clean.CleanUp = true
		plan.Steps = append(plan.Steps, clean)
	}
	if err := runbook.Seal(plan); err != nil {
		panic("simulation: seal a plan: " + err.Error())
	}
	return plan
}

func (p *planner) locks() []string {
	all := []string{"stack/a", "stack/b", "stack/c"}
	p.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	taken := all[:p.rng.IntN(3)]
	slices.Sort(taken)
	return taken
}

func (p *planner) budgets(plan *coordinatorv1.Plan, groups int) {
	budget := &coordinatorv1.FailureBudget{
		Name: "all", MaxFailureRatio: []float64{0, 0, 0.34, 0.5}[p.rng.IntN(4)], FailureAction: coordinatorv1.FailureAction(1 + p.rng.IntN(3)),
	}
	if p.rng.IntN(4) == 0 {
		budget.MaxFailed = proto.Uint32(uint32(p.rng.IntN(2)))
	}
	for g := range groups {
		budget.Groups = append(budget.Groups, fmt.Sprintf("g%d", g))
	}
	plan.Budgets = append(plan.Budgets, budget)
}

// group adds the steps of one group and returns the last one's id.
func (p *planner) group(plan *coordinatorv1.Plan, g int, after []string) string {
	group, name := fmt.Sprintf("g%d", g), fmt.Sprintf("p%d-%d", p.made, g)
	host := p.hosts[p.rng.IntN(len(p.hosts))].name
	add := func(s *coordinatorv1.Step, undo ...*coordinatorv1.Undo) {
		s.Host, s.Undo = host, undo
		plan.Steps = append(plan.Steps, s)
		after = []string{s.GetId()}
	}
	undo := func(verb string, request proto.Message) *coordinatorv1.Undo {
		return &coordinatorv1.Undo{Title: "undo " + verb, Action: action(verb, request), Timeout: durationpb.New(30 * time.Second)}
	}
	add(p.step(group+"/create", group, after, action("CreateContainer", &agentv1.CreateContainerRequest{Spec: &agentv1.ContainerSpec{Name: name}})),
		undo("RemoveContainer", &agentv1.RemoveContainerRequest{Name: name}))
	start := p.step(group+"/start", group, after, action("StartContainer", &agentv1.StartContainerRequest{Name: name}))
	if p.rng.IntN(3) == 0 {
		start.Delay = p.pick(time.Second, 7*time.Second, 20*time.Second)
	}
	if p.rng.IntN(3) == 0 {
		start.DoneIf = runs(name)
	}
	if p.rng.IntN(3) == 0 {
		start.Verify, start.VerifyFor = runs(name), p.pick(0, 2*time.Second)
	}
	add(start, undo("StopContainer", &agentv1.StopContainerRequest{Name: name}))
	if p.rng.IntN(3) == 0 {
		add(p.signal(group+"/signal", group, after, name))
	}
	add(p.step(group+"/ready", group, after, action("AwaitReady", &agentv1.AwaitReadyRequest{Name: name})))
	if p.rng.IntN(2) == 0 {
		old := fmt.Sprintf("old%d-%d", p.made, g)
		add(p.step(group+"/stop", group, after, action("StopContainer", &agentv1.StopContainerRequest{Name: old})),
			undo("StartContainer", &agentv1.StartContainerRequest{Name: old}), undo("AwaitReady", &agentv1.AwaitReadyRequest{Name: old}))
	}
	return after[0]
}

// signal is a step that must happen once: what its lost outcome means differs.
func (p *planner) signal(id, group string, after []string, name string) *coordinatorv1.Step {
	s := p.step(id, group, after, action("SignalContainer", &agentv1.SignalContainerRequest{Name: name, Signal: "SIGHUP"}))
	if s.IfUnknown = coordinatorv1.IfUnknown(p.rng.IntN(5)); s.GetIfUnknown() == coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE {
		s.DoneIf = runs("never-" + name)
	}
	return s
}

// runs is the question whether a container does.
func runs(name string) *coordinatorv1.Check {
	return &coordinatorv1.Check{Probe: action("InspectContainer", &agentv1.InspectContainerRequest{Name: name}), Expression: `result.state == "running"`}
}

// approval adds a step that asks people.
func (p *planner) approval(plan *coordinatorv1.Plan, g int, after []string) string {
	s := &coordinatorv1.Step{
		Id: fmt.Sprintf("ask%d", g), Title: "ask", After: slices.Clone(after),
		Approval: &coordinatorv1.Approval{
			Prompt: "go on?", Count: uint32(1 + p.rng.IntN(2)), Expires: p.pick(15*time.Second, time.Minute, 10*time.Minute),
			OnExpiry: coordinatorv1.FailureAction(1 + p.rng.IntN(2)),
		},
	}
	plan.Steps = append(plan.Steps, s)
	return s.GetId()
}

func (p *planner) step(id, group string, after []string, a *coordinatorv1.Action) *coordinatorv1.Step {
	s := &coordinatorv1.Step{
		Id: id, Title: id, Group: group, After: slices.Clone(after), Host: p.hosts[p.rng.IntN(len(p.hosts))].name, Action: a,
		Timeout: p.pick(5*time.Second, 20*time.Second, 20*time.Second), MaxAttempts: uint32(p.rng.IntN(4)),
	}
	if s.GetMaxAttempts() > 1 {
		s.RetryDelay, s.RetryBackoff = p.pick(0, time.Second, 5*time.Second), float64(p.rng.IntN(3))
	}
	return s
}

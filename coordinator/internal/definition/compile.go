package definition

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	// maxSteps bounds a plan.
	maxSteps = 2000
	// maxFileSteps bounds the steps of one file, and maxElements those of one for_each: each is looked at, and its hosts are asked.
	maxFileSteps = 200
	maxElements  = 100
	// askTime is what an action without effect may take beyond the time that it was given.
	askTime = time.Minute
	// longestDelay is where the engine stops multiplying the delay between attempts.
	longestDelay = 5 * time.Minute
	// startStep is the id of the question before the first step.
	startStep = "approve_start"
)

// Fleet is what procedures are resolved against.
type Fleet struct {
	// View of the state.
	View *state.View
	// Planner asks the hosts, and plans what is built in.
	Planner *runbook.Planner
}

// Compile makes the plan of a procedure: its inputs checked, its targets resolved, its actions turned into those of the agents. It changes nothing.
func Compile(ctx context.Context, d *Document, given map[string]string, fleet Fleet) (*runbook.Proposal, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	inputs, err := d.values(given)
	if err != nil {
		return nil, err
	}
	c := &compiler{
		document: d, view: fleet.View, inputs: inputs, ends: map[string]point{},
		operate: func(req *coordinatorv1.OperateServiceRequest) (*runbook.Proposal, error) {
			return fleet.Planner.Operate(ctx, fleet.View, req)
		},
		resolve: func(host, image string) (*agentv1.ResolveImageResponse, error) {
			return resolve(ctx, fleet.Planner, host, image)
		},
		plan: &coordinatorv1.Plan{Procedure: d.Procedure.GetName(), Title: d.Procedure.GetTitle(), MaxDuration: d.Procedure.GetMaxDuration(), OnDeadline: d.Procedure.GetOnDeadline()},
	}
	for _, part := range []func() error{c.guard, c.steps, c.cleanUp, c.settle} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	if err := runbook.Seal(c.plan); err != nil {
		return nil, err
	}
	proposal := &runbook.Proposal{Plan: c.plan, Warnings: c.warnings}
	proposal.StackRevision = fleet.View.Stack(c.plan.GetStack()).GetRevision()
	return proposal, nil
}

// point is a place in the plan: what comes next is after these steps, and so much later.
type point struct {
	steps []string
	delay time.Duration
}

func (p point) and(other point) point {
	return point{steps: union(p.steps, other.steps), delay: max(p.delay, other.delay)}
}

func union(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

// compiler is a procedure on its way to be a plan.
type compiler struct {
	document *Document
	view     *state.View
	// operate plans a verb of a service; resolve asks a host for the digest of an image.
	operate  func(req *coordinatorv1.OperateServiceRequest) (*runbook.Proposal, error)
	resolve  func(host, image string) (*agentv1.ResolveImageResponse, error)
	inputs   *references
	plan     *coordinatorv1.Plan
	ends     map[string]point // of the procedure's steps
	frontier point            // after all steps so far
	stacks   []string
	jobs     []job
	warnings []string
}

// reader reads nodes within a scope. The error is of a target that could not be resolved.
func (c *compiler) reader(scope *references) (*decoder, *error) {
	failed := new(error)
	return &decoder{
		document: c.document, scope: scope,
		rescope: func(on string) *references {
			s, err := c.asked(on, scope.each)
			if err != nil && *failed == nil {
				*failed = err
			}
			if s == nil {
				return scope
			}
			return scope.with(scope.each, s.parts())
		},
	}, failed
}

// guard plans what stands before the first step.
func (c *compiler) guard() error {
	guard := &coordinatorv1.Guard{}
	if err := c.decode("guard", c.inputs, guard.ProtoReflect()); err != nil {
		return err
	}
	for _, lock := range guard.GetLocks() {
		if !lockForm.MatchString(lock) {
			return invalid("lock %q: write it like stack/NAME or db/NAME", lock)
		}
	}
	c.plan.Locks = union(guard.GetLocks())
	for i, condition := range guard.GetPreconditions() {
		if err := c.precondition(i, condition); err != nil {
			return err
		}
	}
	if question := guard.GetApproveStart(); question != nil {
		c.frontier = c.add(&coordinatorv1.Step{Id: startStep, Title: question.GetPrompt(), Approval: approval(question)}, c.frontier)
	}
	return nil
}

// precondition plans a question that must be answered with yes before anything else.
func (c *compiler) precondition(i int, condition *coordinatorv1.Condition) error {
	id := "precondition." + strconv.Itoa(i+1)
	s, err := c.asked(condition.GetOn(), nil)
	if err != nil {
		return err
	}
	if err := holds(condition.GetUse(), condition.GetExpression()); err != nil {
		return err
	}
	action, request, err := c.request(condition.GetUse(), condition.GetWith(), s)
	if err != nil {
		return err
	}
	step := &coordinatorv1.Step{
		Id: id, Title: condition.GetUse() + " " + s.id + ": " + condition.GetExpression(), Host: s.host, Action: action, Timeout: durationpb.New(timeOf(request)),
		Verify: &coordinatorv1.Check{Expression: condition.GetExpression()},
	}
	c.frontier = c.frontier.and(c.add(step, point{}))
	return nil
}

func approval(q *coordinatorv1.Question) *coordinatorv1.Approval {
	return &coordinatorv1.Approval{
		Prompt: q.GetPrompt(), Roles: q.GetRoles(), Count: q.GetCount(), AllowInitiator: q.GetAllowInitiator(),
		Expires: durationpb.New(expiry(q)), OnExpiry: q.GetOnExpiry(),
	}
}

// add appends a step at a point and returns the point after it.
func (c *compiler) add(step *coordinatorv1.Step, at point) point {
	step.After = union(step.GetAfter(), at.steps)
	if at.delay > 0 {
		step.Delay = durationpb.New(max(at.delay, step.GetDelay().AsDuration()))
	}
	c.plan.Steps = append(c.plan.Steps, step)
	return point{steps: []string{step.GetId()}}
}

// steps plans the procedure's steps in their order.
func (c *compiler) steps() error {
	begin := c.frontier
	for i, lenient := range c.document.Procedure.GetSteps() {
		at := c.frontier
		if len(lenient.GetNeeds()) > 0 {
			at = begin
			for j, need := range lenient.GetNeeds() {
				if j == 0 {
					at = point{}
				}
				at = at.and(c.ends[need])
			}
		}
		end, err := c.step(fmt.Sprintf("steps[%d]", i), lenient, at)
		if err != nil {
			return fmt.Errorf("step %s: %w", lenient.GetId(), err)
		}
		c.ends[lenient.GetId()] = end
		if len(lenient.GetNeeds()) > 0 {
			end = c.frontier.and(end)
		}
		c.frontier = end
		if len(c.plan.GetSteps()) > maxSteps {
			return invalid("the plan has more than %d steps: take fewer targets, or split the procedure", maxSteps)
		}
	}
	return nil
}

// step plans one step of the procedure, for each of its elements in turn.
func (c *compiler) step(path string, lenient *coordinatorv1.ProcedureStep, at point) (point, error) {
	id := lenient.GetId()
	switch {
	case lenient.GetWait() != nil:
		return point{steps: at.steps, delay: at.delay + lenient.GetWait().AsDuration()}, nil
	case lenient.GetApprove() != nil:
		step := &coordinatorv1.ProcedureStep{}
		if err := c.decode(path, c.inputs, step.ProtoReflect()); err != nil {
			return at, err
		}
		return c.add(&coordinatorv1.Step{Id: id, Title: orElse(step.GetTitle(), step.GetApprove().GetPrompt()), Approval: approval(step.GetApprove())}, at), nil
	case len(lenient.GetForEach()) == 0:
		return c.element(path, id, lenient, nil, at)
	}
	items, err := c.elements(path)
	if err != nil {
		return at, err
	}
	for i, item := range items {
		suffix := item
		if !stepWord.MatchString(item) || slices.Contains(items[:i], item) {
			suffix = strconv.Itoa(i + 1)
		}
		each := &value{kind: coordinatorv1.InputType_INPUT_TYPE_STRING, text: item}
		if at, err = c.element(path, id+"."+suffix, lenient, each, at); err != nil {
			return at, err
		}
	}
	return at, nil
}

var stepWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$`)

// elements returns what a step is repeated for.
func (c *compiler) elements(path string) ([]string, error) {
	step := &coordinatorv1.ProcedureStep{}
	reader, failed := c.reader(c.inputs)
	reader.note = func(*yaml.Node, string, string, ...any) {}
	field := step.ProtoReflect().Descriptor().Fields().ByName("for_each")
	reader.list(c.document.nodes[path+".for_each"], step.ProtoReflect().Mutable(field).List(), field, path+".for_each", place{references: true})
	if *failed != nil {
		return nil, *failed
	}
	if n := len(step.GetForEach()); n > maxElements {
		return nil, invalid("for_each has %d elements, more than %d", n, maxElements)
	}
	if len(step.GetForEach()) == 0 {
		return nil, invalid("for_each has nothing to repeat for: give the input a value")
	}
	return step.GetForEach(), nil
}

// element plans a step for one element: on all its targets at once, or in waves.
func (c *compiler) element(path, id string, lenient *coordinatorv1.ProcedureStep, each *value, at point) (point, error) {
	action := lookUp(lenient.GetUse())
	sites, err := c.sites(lenient.GetOn(), each)
	if err != nil {
		return at, err
	}
	switch {
	case action.composite():
		return c.service(path, id, action, sites[0], each, at)
	case action.on == onService:
		return c.job(path, id, sites[0], each, at)
	}
	waves, failures, err := waves(lenient.GetRollout(), len(sites))
	if err != nil {
		return at, err
	}
	budget := &coordinatorv1.FailureBudget{Name: id, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, MaxFailed: &failures}
	for i, size := range waves {
		if i > 0 {
			at.delay = max(at.delay, lenient.GetRollout().GetPause().AsDuration())
		}
		var ends point
		for _, s := range sites[:size] {
			step, err := c.plain(path, id+"/"+s.id, s, each)
			if err != nil {
				return at, err
			}
			if failures > 0 {
				step.Group = step.GetId()
				budget.Groups = append(budget.Groups, step.GetGroup())
			}
			ends = ends.and(c.add(step, at))
		}
		sites, at = sites[size:], ends
	}
	if len(budget.GetGroups()) > 0 {
		c.plan.Budgets = append(c.plan.Budgets, budget)
	}
	return at, nil
}

// waves returns the sizes of the waves, and how many targets may fail.
func waves(rollout *coordinatorv1.RolloutPolicy, targets int) ([]int, uint32, error) {
	sizes, failures := rollout.GetWaves(), 0
	if len(sizes) == 0 {
		sizes = []string{"100%"}
	}
	var waves []int
	for left, i := targets, 0; left > 0; i++ {
		size, err := percent(sizes[min(i, len(sizes)-1)], targets, 1)
		if err != nil {
			return nil, 0, invalid("waves: %s", err)
		}
		waves = append(waves, min(size, left))
		left -= min(size, left)
	}
	if text := rollout.GetMaxFailed(); text != "" {
		var err error
		if failures, err = percent(text, targets, 0); err != nil {
			return nil, 0, invalid("max_failed: %s", err)
		}
	}
	return waves, uint32(failures), nil
}

// settle completes the plan: the stack that it stands for, the locks that it needs, and whether its time suffices.
func (c *compiler) settle() error {
	stacks := union(c.stacks)
	for _, name := range stacks {
		if !slices.Contains(c.plan.GetLocks(), "stack/"+name) {
			return invalid("the procedure touches stack %s without its lock: take stack/%s into guard.locks", name, name)
		}
	}
	if len(stacks) == 1 {
		c.plan.Stack = stacks[0]
	}
	if longest := longest(c.plan); longest > c.plan.GetMaxDuration().AsDuration() {
		c.warnings = append(c.warnings, fmt.Sprintf("if everything takes as long as it may, the run takes %s, more than max_duration, %s",
			longest.Round(time.Second), c.plan.GetMaxDuration().AsDuration()))
	}
	return nil
}

// longest is the time that a plan takes if everything takes as long as it may.
func longest(plan *coordinatorv1.Plan) time.Duration {
	ends, longest := map[string]time.Duration{}, time.Duration(0)
	for _, step := range plan.GetSteps() {
		var begin time.Duration
		for _, id := range step.GetAfter() {
			begin = max(begin, ends[id])
		}
		end := begin + step.GetDelay().AsDuration() + step.GetVerifyFor().AsDuration() + step.GetApproval().GetExpires().AsDuration() +
			attempts(step.GetMaxAttempts(), step.GetTimeout().AsDuration(), step.GetRetryDelay().AsDuration(), step.GetRetryBackoff())
		ends[step.GetId()] = end
		longest = max(longest, end)
	}
	return longest
}

// attempts is what so many attempts take at most, with the delays between them.
func attempts(n uint32, each, delay time.Duration, backoff float64) time.Duration {
	total := each
	for range min(max(1, n)-1, 1000) {
		total += delay + each
		delay = min(time.Duration(float64(delay)*max(1, backoff)), max(delay, longestDelay))
	}
	return total
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

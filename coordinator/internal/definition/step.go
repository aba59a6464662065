package definition

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/expression"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	agentPackage = "muster.agent.v1."
	defaultGate  = 5 * time.Minute
)

// resolved reads a step with everything that it refers to.
func (c *compiler) resolved(path string, s *site, each *value) (*coordinatorv1.ProcedureStep, error) {
	step := &coordinatorv1.ProcedureStep{}
	return step, c.decode(path, c.inputs.with(each, s.parts()), step.ProtoReflect())
}

// plain plans a step that is one method of one agent.
func (c *compiler) plain(path, id string, s *site, each *value) (*coordinatorv1.Step, error) {
	def, err := c.resolved(path, s, each)
	if err != nil {
		return nil, err
	}
	action, request, err := c.request(def.GetUse(), def.GetWith(), s)
	if err != nil {
		return nil, err
	}
	step := &coordinatorv1.Step{Id: id, Title: orElse(def.GetTitle(), def.GetUse()+" "+s.id), Host: s.host, Action: action}
	return step, c.finish(step, def, request, s, each)
}

// finish gives a step its times, its checks and the way back.
func (c *compiler) finish(step *coordinatorv1.Step, def *coordinatorv1.ProcedureStep, request proto.Message, s *site, each *value) error {
	if step.Timeout = def.GetTimeout(); step.Timeout == nil {
		step.Timeout = durationpb.New(timeOf(request) + def.GetVerifyFor().AsDuration())
	}
	if retry := def.GetRetry(); retry != nil {
		step.MaxAttempts, step.RetryDelay, step.RetryBackoff = retry.GetAttempts(), retry.GetDelay(), retry.GetBackoff()
	}
	step.VerifyFor, step.IfUnknown = def.GetVerifyFor(), def.GetIfUnknown()
	var err error
	if step.DoneIf, err = c.check(def.GetDoneIf(), def.GetUse(), s, each); err != nil {
		return err
	}
	if step.Verify, err = c.check(def.GetVerify(), def.GetUse(), s, each); err != nil {
		return err
	}
	// The action itself is asked before, and asked again: the linter has made sure that it has no effect then.
	if check := step.GetDoneIf(); check != nil && check.GetProbe() == nil {
		check.Host, check.Probe = step.GetHost(), step.GetAction()
	}
	if check := step.GetVerify(); check != nil && check.GetProbe() == nil && step.GetVerifyFor() != nil {
		check.Host, check.Probe = step.GetHost(), step.GetAction()
	}
	for i, undo := range def.GetUndo() {
		back, err := c.undo(step.GetId(), i, undo, s)
		if err != nil {
			return err
		}
		step.Undo = append(step.Undo, back...)
	}
	if def.GetIrreversible() {
		c.plan.Notes = append(c.plan.Notes, "step "+step.GetId()+" cannot be taken back")
	}
	return nil
}

// undo plans one action that takes a step back. A job's container goes after it.
func (c *compiler) undo(id string, i int, undo *coordinatorv1.ProcedureUndo, s *site) ([]*coordinatorv1.Undo, error) {
	title := orElse(undo.GetTitle(), undo.GetUse()+" "+s.id)
	if undo.GetUse() == "job.run" {
		request, err := c.jobRequest(undo.GetWith(), s, fmt.Sprintf("%s-undo%d", id, i+1))
		if err != nil {
			return nil, err
		}
		name := request.GetSpec().GetName()
		return []*coordinatorv1.Undo{
			{Title: "make room for " + name, Action: clearJob(name), Timeout: durationpb.New(time.Minute)},
			{Title: title, Action: makeAction(lookUp("job.run"), request), Timeout: undo.GetTimeout()},
			removeJob(name),
		}, nil
	}
	action, _, err := c.request(undo.GetUse(), undo.GetWith(), s)
	if err != nil {
		return nil, err
	}
	return []*coordinatorv1.Undo{{Title: title, Action: action, Timeout: undo.GetTimeout()}}, nil
}

// check plans a question to an agent, about the answer to an action of its own or to the step's.
func (c *compiler) check(condition *coordinatorv1.Condition, use string, s *site, each *value) (*coordinatorv1.Check, error) {
	if condition == nil {
		return nil, nil
	}
	if err := holds(orElse(condition.GetUse(), use), condition.GetExpression()); err != nil {
		return nil, err
	}
	check := &coordinatorv1.Check{Expression: condition.GetExpression()}
	if condition.GetUse() == "" {
		return check, nil
	}
	at := s
	if condition.GetOn() != "" {
		var err error
		if at, err = c.asked(condition.GetOn(), each); err != nil {
			return nil, err
		}
	}
	var err error
	check.Host = at.host
	check.Probe, _, err = c.request(condition.GetUse(), condition.GetWith(), at)
	return check, err
}

// holds makes sure that an expression can be evaluated with the values that it has now: a long input makes it longer than it may be.
func holds(use, text string) error {
	if _, err := expression.Compile(lookUp(use).rpc().Output(), text); err != nil {
		return invalid("%s", err)
	}
	return nil
}

// request makes an agent's request of arguments, and fills what the author does not give.
func (c *compiler) request(use string, with *anypb.Any, s *site) (*coordinatorv1.Action, proto.Message, error) {
	action := lookUp(use)
	request := action.arguments()
	if with != nil {
		if err := with.UnmarshalTo(request); err != nil {
			return nil, nil, invalid("arguments of %s: %s", use, err)
		}
	}
	m := request.ProtoReflect()
	for _, name := range action.given {
		if v, ok := c.fill(name, s, request); ok {
			m.Set(m.Descriptor().Fields().ByName(name), v)
		}
	}
	if maintenance, ok := request.(*agentv1.SetMaintenanceRequest); ok {
		c.stacks = append(c.stacks, stacksOfRoutes(maintenance.GetRoutes())...)
	}
	return makeAction(action, request), request, nil
}

// fill is what the compiler knows of a place, by the names of the requests' fields.
func (c *compiler) fill(name protoreflect.Name, s *site, request proto.Message) (protoreflect.Value, bool) {
	switch name {
	case "name":
		return protoreflect.ValueOfString(s.assignment.GetContainer()), true
	case "image":
		return protoreflect.ValueOfString(s.service.GetTemplate().GetImage()), true
	case "gate":
		gate := s.service.GetGate()
		if _, watched := request.(*agentv1.WatchContainerRequest); watched && !repeatable(gate) {
			return protoreflect.Value{}, false
		}
		return protoreflect.ValueOfMessage(gate.ProtoReflect()), gate != nil
	case "ports":
		if drain, ok := request.(*agentv1.DrainContainerRequest); ok {
			if drain.GetLimit() == nil {
				drain.Limit = s.service.GetDrainLimit()
			}
			if port := s.service.GetRoute().GetPort(); port > 0 {
				drain.Ports = []uint32{port}
			}
		}
	}
	return protoreflect.Value{}, false
}

// repeatable says that a gate's probe can be asked while a container is watched.
func repeatable(gate *agentv1.Gate) bool {
	switch gate.GetProbe().(type) {
	case *agentv1.Gate_Http, *agentv1.Gate_Tcp, *agentv1.Gate_Grpc:
		return true
	}
	return false
}

// timeOf is what an action without a timeout of its own may take: what its arguments give it, and a while.
func timeOf(request proto.Message) time.Duration {
	switch r := request.(type) {
	case *agentv1.AwaitReadyRequest:
		if d := r.GetGate().GetDeadline().AsDuration(); d > 0 {
			return d + askTime
		}
		return defaultGate + askTime
	case *agentv1.WatchContainerRequest:
		return r.GetWindow().AsDuration() + askTime
	case *agentv1.DrainContainerRequest:
		return r.GetLimit().AsDuration() + askTime
	}
	return askTime
}

func makeAction(a *action, request proto.Message) *coordinatorv1.Action {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		panic("definition: marshal a request of " + a.name + ": " + err.Error())
	}
	return &coordinatorv1.Action{Method: agentPackage + a.method, Request: raw, Effect: a.rule().GetEffect()}
}

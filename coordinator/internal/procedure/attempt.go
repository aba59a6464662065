package procedure

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/expression"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	checkTimeout = 30 * time.Second
	checkPause   = 250 * time.Millisecond
)

// attempt is one attempt of a step under way: what it asks before, its action, and what must hold after.
//
// It keeps nothing: a successor asks again. Before the action is sent for the first time `done_if` may spare it; whether it was sent before is what
// the agent's ledger tells, never a guess. The values that checks give are committed with the outcome.
type attempt struct {
	*leadership
	step   *coordinatorv1.StepStatus
	def    *coordinatorv1.Step
	call   *call
	fence  uint64
	doneIf *expression.Program
	verify *expression.Program
}

func (a *attempt) outcome(failure *agentv1.OperationFailure) *raftv1.Outcome {
	return &raftv1.Outcome{RunId: a.step.GetRunId(), StepId: a.step.GetStepId(), Attempt: a.step.GetAttempt(), Failure: failure}
}

// compile checks the conditions of the step against the answers that they look at.
func (a *attempt) compile(run *coordinatorv1.Run) error {
	a.fence = run.GetFence()
	var err error
	if a.doneIf, err = a.program(a.def.GetDoneIf()); err != nil {
		return fmt.Errorf("done_if of step %s: %w", a.step.GetStepId(), err)
	}
	if a.verify, err = a.program(a.def.GetVerify()); err != nil {
		return fmt.Errorf("verify of step %s: %w", a.step.GetStepId(), err)
	}
	return nil
}

func (a *attempt) program(check *coordinatorv1.Check) (*expression.Program, error) {
	if check == nil {
		return nil, nil
	}
	answer := a.call.response.Descriptor()
	if check.GetProbe() != nil {
		c, err := a.checkCall(check)
		if err != nil {
			return nil, err
		}
		if !state.Effectless(check.GetProbe()) {
			return nil, fmt.Errorf("%s has an effect: a check must have none", check.GetProbe().GetMethod())
		}
		answer = c.response.Descriptor()
	}
	return expression.Compile(answer, check.GetExpression())
}

// checkCall makes the request of a check. Each has an id of its own: the ledger would answer a repeated one with what it saw the first time.
func (a *attempt) checkCall(check *coordinatorv1.Check) (*call, error) {
	host := check.GetHost()
	if host == "" {
		host = a.def.GetHost()
	}
	id := state.OperationID(a.step) + "/check-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	return a.callOf(check.GetProbe(), host, id, a.fence, durationpb.New(checkTimeout))
}

// perform returns the outcome of the attempt.
func (a *attempt) perform(ctx context.Context) (*raftv1.Outcome, error) {
	if a.doneIf != nil {
		done, failure, err := a.doneBefore(ctx)
		if err != nil {
			return nil, err
		}
		if failure != nil {
			return a.outcome(failure), nil
		}
		if done {
			outcome := a.outcome(nil)
			outcome.Spared = true
			return outcome, nil
		}
	}
	response, err := a.ask(ctx, a.call, a.step)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return a.failed(ctx, definite(err, a.call.operation.GetId()))
	}
	if a.verify != nil {
		if failure, err := a.verified(ctx, response); failure != nil || err != nil {
			return a.outcome(failure), err
		}
	}
	outcome := a.outcome(nil)
	if raw, err := proto.Marshal(response); err == nil && len(raw) <= resultLimit {
		outcome.Result = raw
	}
	return outcome, nil
}

// doneBefore says whether what the step is for is there without this attempt. An operation that has reached its agent is attached to instead.
func (a *attempt) doneBefore(ctx context.Context) (bool, *agentv1.OperationFailure, error) {
	sent, err := a.sent(ctx)
	if ctx.Err() != nil {
		return false, nil, ctx.Err()
	}
	if err != nil {
		return false, definite(err, a.call.operation.GetId()), nil
	}
	if sent {
		return false, nil, nil
	}
	done, err := a.holds(ctx, a.def.GetDoneIf(), a.doneIf)
	if ctx.Err() != nil {
		return false, nil, ctx.Err()
	}
	if err != nil {
		return false, a.failure(agentv1.FailureReason_FAILURE_REASON_UNSPECIFIED, "cannot tell whether it is done already: "+err.Error()), nil
	}
	return done, nil, nil
}

// sent says whether the agent's ledger knows the operation. The question carries the epoch: what a former engine still has under way is refused
// from here on, so that its effect is never taken for something that was there before.
func (a *attempt) sent(ctx context.Context) (bool, error) {
	id := a.call.operation.GetId()
	list := &call{
		host: a.call.host, method: agentv1.OperationService_ListOperations_FullMethodName, operation: a.call.operation,
		request: &agentv1.ListOperationsRequest{Prefix: id, Limit: 1000, Epoch: a.epoch}, response: (&agentv1.ListOperationsResponse{}).ProtoReflect().Type(),
	}
	response, err := a.ask(ctx, list, a.step)
	if err != nil {
		return false, err
	}
	for _, entry := range response.(*agentv1.ListOperationsResponse).GetOperations() {
		if entry.GetOperationId() == id {
			return true, nil
		}
	}
	return false, nil
}

// holds asks a check once. An error says that nobody can tell.
func (a *attempt) holds(ctx context.Context, check *coordinatorv1.Check, program *expression.Program) (bool, error) {
	c, err := a.checkCall(check)
	if err != nil {
		return false, err
	}
	response, err := a.ask(ctx, c, a.step)
	if err != nil {
		return false, err
	}
	return program.Eval(response)
}

func (a *attempt) failure(reason agentv1.FailureReason, message string) *agentv1.OperationFailure {
	return &agentv1.OperationFailure{OperationId: a.call.operation.GetId(), Reason: reason, Message: message}
}

// verified looks whether what must hold after the action does, for as long as the step allows.
func (a *attempt) verified(ctx context.Context, response proto.Message) (*agentv1.OperationFailure, error) {
	until := time.Now().Add(a.def.GetVerifyFor().AsDuration())
	check := a.def.GetVerify()
	for {
		var holds bool
		var err error
		if check.GetProbe() == nil {
			holds, err = a.verify.Eval(response)
		} else {
			holds, err = a.holds(ctx, check, a.verify)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if holds {
			return nil, nil
		}
		if check.GetProbe() == nil || !time.Now().Before(until) {
			message := "done, but not verified: " + check.GetExpression()
			if err != nil {
				message += ": " + err.Error()
			}
			return a.failure(agentv1.FailureReason_FAILURE_REASON_NOT_VERIFIED, message), nil
		}
		timer := time.NewTimer(checkPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// failed makes the outcome of a failure. The lost outcome of a once-only action means what the step says that it means.
func (a *attempt) failed(ctx context.Context, failure *agentv1.OperationFailure) (*raftv1.Outcome, error) {
	if failure.GetReason() != agentv1.FailureReason_FAILURE_REASON_INTERRUPTED {
		return a.outcome(failure), nil
	}
	lost := a.outcome(failure)
	lost.Lost = true
	switch a.def.GetIfUnknown() {
	case coordinatorv1.IfUnknown_IF_UNKNOWN_REPEAT:
		failure.Permanent = false
		return a.outcome(failure), nil
	case coordinatorv1.IfUnknown_IF_UNKNOWN_STOP:
		failure.Permanent = true
		return a.outcome(failure), nil
	case coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE:
		done, err := a.holds(ctx, a.def.GetDoneIf(), a.doneIf)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			failure.Message += "; and its probe cannot tell: " + err.Error()
			return lost, nil
		}
		if done {
			return a.outcome(nil), nil
		}
		failure.Permanent = false
		return a.outcome(failure), nil
	default:
		return lost, nil
	}
}

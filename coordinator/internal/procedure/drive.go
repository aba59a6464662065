package procedure

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	resultLimit = 4096
	// startWithin is the time in which an agent must start an operation that reached it.
	startWithin = time.Minute
)

// drive carries out one attempt of a step and commits its outcome. It ends without one when the operation is not open any more, or the
// leadership is over.
func (l *leadership) drive(ctx context.Context, run *coordinatorv1.Run, step *coordinatorv1.StepStatus, def *coordinatorv1.Step) error {
	a := &attempt{leadership: l, step: step, def: def}
	var err error
	if a.call, err = l.newCall(run, step, def); err == nil {
		err = a.compile(run)
	}
	if err != nil {
		// The plan asks for something that no agent can do: another attempt would not help.
		return l.commit(ctx, a.outcome(&agentv1.OperationFailure{
			OperationId: state.OperationID(step), Reason: agentv1.FailureReason_FAILURE_REASON_INVALID, Message: err.Error(), Permanent: true,
		}))
	}
	outcome, err := a.perform(ctx)
	if ctx.Err() != nil {
		l.giveUp(ctx, a.call, step, def)
		return nil
	}
	if err != nil {
		return err
	}
	return l.commit(ctx, outcome)
}

// commit records an outcome. Its context ends as soon as the outcome is applied, which may be before the call returns: that is no error.
func (l *leadership) commit(ctx context.Context, outcome *raftv1.Outcome) error {
	command := &raftv1.Command{Op: &raftv1.Command_RecordOutcomes{RecordOutcomes: &raftv1.RecordOutcomes{Epoch: l.epoch, Outcomes: []*raftv1.Outcome{outcome}}}}
	if _, err := l.propose(ctx, command); err != nil && ctx.Err() == nil {
		return fmt.Errorf("record the outcome of %s of run %s: %w", outcome.GetStepId(), outcome.GetRunId(), err)
	}
	return nil
}

// call is one operation, ready to be sent.
type call struct {
	host      string
	method    string
	operation *agentv1.Operation
	request   proto.Message
	response  protoreflect.MessageType
}

// newCall makes the request of a step: its planned arguments, the operation, and the secrets that it names.
func (l *leadership) newCall(run *coordinatorv1.Run, step *coordinatorv1.StepStatus, def *coordinatorv1.Step) (*call, error) {
	if def == nil {
		return nil, fmt.Errorf("the plan of run %s has no step %q", step.GetRunId(), step.GetStepId())
	}
	return l.callOf(def.GetAction(), def.GetHost(), state.OperationID(step), run.GetFence(), def.GetTimeout())
}

// callOf makes the request of an action.
func (l *leadership) callOf(action *coordinatorv1.Action, host, id string, fence uint64, timeout *durationpb.Duration) (*call, error) {
	service, method, ok := strings.Cut(action.GetMethod(), "/")
	if !ok {
		return nil, fmt.Errorf("%q is no method: it must be package.Service/Method", action.GetMethod())
	}
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("service %q is not known", service)
	}
	descriptor, ok := found.(protoreflect.ServiceDescriptor)
	if !ok || descriptor.Methods().ByName(protoreflect.Name(method)) == nil {
		return nil, fmt.Errorf("%q has no method %q", service, method)
	}
	rpc := descriptor.Methods().ByName(protoreflect.Name(method))
	in, err := protoregistry.GlobalTypes.FindMessageByName(rpc.Input().FullName())
	if err != nil {
		return nil, fmt.Errorf("message %q is not known", rpc.Input().FullName())
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(rpc.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("message %q is not known", rpc.Output().FullName())
	}
	request := in.New()
	if err := proto.Unmarshal(action.GetRequest(), request.Interface()); err != nil {
		return nil, fmt.Errorf("the request of %s is not readable: %w", action.GetMethod(), err)
	}
	field := request.Descriptor().Fields().ByName("operation")
	if field == nil {
		return nil, fmt.Errorf("%s takes no operation: it cannot be a step", action.GetMethod())
	}
	digest := sha256.Sum256(append([]byte(action.GetMethod()+"\x00"), action.GetRequest()...))
	operation := &agentv1.Operation{
		Id: id, Epoch: l.epoch, Fence: fence, Ttl: durationpb.New(startWithin), Timeout: timeout, Digest: hex.EncodeToString(digest[:]),
	}
	request.Set(field, protoreflect.ValueOfMessage(operation.ProtoReflect()))
	if err := fillSecrets(request, l.options.State.View()); err != nil {
		return nil, err
	}
	return &call{host: host, method: "/" + action.GetMethod(), operation: operation, request: request.Interface(), response: out}, nil
}

// fillSecrets puts the values of the secret store into every SecretValue of a request.
func fillSecrets(message protoreflect.Message, view *state.View) error {
	if secret, ok := message.Interface().(*agentv1.SecretValue); ok {
		stored := view.Secret(secret.GetName(), secret.GetVersion())
		if stored == nil {
			return fmt.Errorf("secret %q has no version %d: store it with `musterctl secret set %s`", secret.GetName(), secret.GetVersion(), secret.GetName())
		}
		secret.Value = stored.GetValue()
		return nil
	}
	var failed error
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				if failed = fillSecrets(value.List().Get(i).Message(), view); failed != nil {
					return false
				}
			}
		default:
			failed = fillSecrets(value.Message(), view)
		}
		return failed == nil
	})
	return failed
}

// ask sends the request until the answer is an outcome: the agent attaches a repeated operation to the running one, or returns what it
// recorded. A host that does not answer is waited for; its operation is never given to another.
func (l *leadership) ask(ctx context.Context, c *call, step *coordinatorv1.StepStatus) (proto.Message, error) {
	ref := &raftv1.StepRef{RunId: step.GetRunId(), StepId: step.GetStepId()}
	reported := step.GetUnreachableSince() != nil
	silent, backoff := time.Now(), retryFirst
	for {
		hosts := l.options.HostsChanged()
		conn, err := l.options.Conn(c.host)
		if err == nil {
			if reported {
				l.report(ctx, report{ref: ref})
				reported = false
			}
			var response proto.Message
			if response, err = invoke(ctx, conn, c); err == nil || isOutcome(err) {
				return response, err
			}
			silent = time.Now() // A call that was under way for long says nothing about how long the host has been silent.
			l.log.Debug("operation has no outcome yet", "operation_id", c.operation.GetId(), "host", c.host, "err", err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !reported && time.Since(silent) > unreachableAfter {
			l.report(ctx, report{ref: ref, unreachable: true})
			reported = true
		}
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
			backoff = min(2*backoff, retryMost)
		case <-hosts:
			backoff = retryFirst
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (l *leadership) report(ctx context.Context, r report) {
	select {
	case l.reports <- r:
	case <-ctx.Done():
	}
}

func invoke(ctx context.Context, conn grpc.ClientConnInterface, c *call) (proto.Message, error) {
	response := c.response.New().Interface()
	if err := conn.Invoke(ctx, c.method, c.request, response); err != nil {
		return nil, err
	}
	return response, nil
}

// isOutcome says that an agent's error is the end of the operation: it recorded a failure, or will never take the request.
func isOutcome(err error) bool {
	if _, failed := rpcerr.Failure(err); failed {
		return true
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return false
}

// definite turns an outcome's error into its failure.
func definite(err error, operation string) *agentv1.OperationFailure {
	if failure, ok := rpcerr.Failure(err); ok {
		return failure
	}
	message := rpcerr.Message(err)
	if status.Code(err) == codes.Unimplemented {
		message = "the host's agent is too old for this step: " + message
	}
	return &agentv1.OperationFailure{OperationId: operation, Reason: agentv1.FailureReason_FAILURE_REASON_INVALID, Message: message, Permanent: true}
}

// giveUp cancels an operation without effect at its agent when its step is not wanted any more. An agent that does not hear it ends the
// operation by its timeout.
func (l *leadership) giveUp(ctx context.Context, c *call, step *coordinatorv1.StepStatus, def *coordinatorv1.Step) {
	current := l.options.State.View().Step(step.GetRunId(), step.GetStepId())
	if current == nil || current.GetState() != coordinatorv1.StepState_STEP_STATE_SKIPPED || !state.Effectless(def.GetAction()) {
		return
	}
	conn, err := l.options.Conn(c.host)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, err = agentv1.NewOperationServiceClient(conn).CancelOperation(ctx, &agentv1.CancelOperationRequest{OperationId: c.operation.GetId(), Epoch: l.epoch})
	if err != nil && !errors.Is(err, context.Canceled) {
		l.log.Debug("operation was not cancelled", "operation_id", c.operation.GetId(), "host", c.host, "err", err)
	}
}

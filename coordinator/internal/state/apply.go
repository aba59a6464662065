package state

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// CommandVersion is the version of the commands that this program writes and reads.
	CommandVersion = 1

	requestsKept = 100000
	requestAge   = 24 * time.Hour
)

// refusal is a command that cannot be applied: nothing changes, and everybody who replays the log refuses it likewise.
type refusal struct {
	reason  coordinatorv1.ErrorReason
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(reason coordinatorv1.ErrorReason, format string, args ...any) error {
	return &refusal{reason: reason, message: fmt.Sprintf(format, args...)}
}

// Apply applies the command at a raft index. A command that it does not know stops the program: skipping it would let this replica diverge.
func (s *State) Apply(index uint64, command *raftv1.Command) *raftv1.Result {
	return s.ApplyBatch([]uint64{index}, []*raftv1.Command{command})[0]
}

// remember advances the index and the clock without any other change.
func (s *State) remember(index uint64, meta *raftv1.Meta) {
	txn := s.db.Txn(true)
	c := &change{txn: txn, index: index}
	c.put(tableMeta, "meta", meta)
	txn.Commit()
	s.publish(index, nil)
}

func refused(err error) *raftv1.Result {
	r, ok := err.(*refusal) //nolint:errorlint // Refusals are made in this package and never wrapped.
	if !ok {
		r = &refusal{reason: coordinatorv1.ErrorReason_ERROR_REASON_UNSPECIFIED, message: err.Error()}
	}
	return &raftv1.Result{Error: &raftv1.CommandError{Reason: int32(r.reason), Message: r.message}}
}

// guarded turns a panic in a known command into its refusal. The entry is committed: without this, every restart would panic at it again.
// It is as deterministic as the panic was.
func (c *change) guarded(command *raftv1.Command) (result *raftv1.Result, err error) {
	if !known(command) {
		panic(fmt.Sprintf("state: command %d is of a kind that this program does not know (%T): run a version of it that does", c.index, command.GetOp()))
	}
	defer func() {
		if cause := recover(); cause != nil {
			result, err = nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "the command cannot be applied: %v", cause)
		}
	}()
	return c.dispatch(command)
}

// known says that this program has a case for a command.
func known(command *raftv1.Command) bool {
	op := command.ProtoReflect().WhichOneof(command.ProtoReflect().Descriptor().Oneofs().ByName("op"))
	return op != nil
}

func (c *change) dispatch(command *raftv1.Command) (*raftv1.Result, error) {
	switch op := command.GetOp().(type) {
	case *raftv1.Command_Bootstrap:
		return c.bootstrap(op.Bootstrap)
	case *raftv1.Command_PutToken:
		return c.putToken(op.PutToken)
	case *raftv1.Command_Join:
		return c.join(op.Join)
	case *raftv1.Command_UpdateHosts:
		return c.updateHosts(op.UpdateHosts)
	case *raftv1.Command_TakeOver:
		return c.takeOver(op.TakeOver)
	case *raftv1.Command_StartRun:
		return c.startRun(op.StartRun)
	case *raftv1.Command_RecordOutcomes:
		return c.recordOutcomes(op.RecordOutcomes)
	case *raftv1.Command_Tick:
		return c.tick(op.Tick)
	case *raftv1.Command_ControlRun:
		return c.controlRun(op.ControlRun)
	case *raftv1.Command_PutSecret:
		return c.putSecret(op.PutSecret)
	case *raftv1.Command_DecideStep:
		return c.decideStep(op.DecideStep)
	case *raftv1.Command_ResolveStep:
		return c.resolveStep(op.ResolveStep)
	case *raftv1.Command_CordonHost:
		return c.cordonHost(op.CordonHost)
	case *raftv1.Command_PutProcedure:
		return c.putProcedure(op.PutProcedure)
	case *raftv1.Command_DropProcedure:
		return c.dropProcedure(op.DropProcedure)
	case *raftv1.Command_Evict:
		return c.evict(op.Evict)
	default:
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "command %T has no meaning here", op)
	}
}

// commandDigest identifies what a command asks for, whenever it is asked.
func commandDigest(command *raftv1.Command) []byte {
	if command.GetRequestId() == "" {
		return nil
	}
	// Only the outermost message is copied: a secret or a plan is large, and is only read.
	timeless := &raftv1.Command{}
	from, to := command.ProtoReflect(), timeless.ProtoReflect()
	from.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		to.Set(field, value)
		return true
	})
	to.SetUnknown(from.GetUnknown())
	timeless.Now = nil
	if start := timeless.GetStartRun(); start != nil {
		// The same request may be planned again on another coordinator; what identifies it is the plan.
		timeless.Op = &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
			Plan: &coordinatorv1.Plan{Hash: start.GetPlan().GetHash(), Stack: start.GetPlan().GetStack()}, Reason: start.GetReason(),
		}}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(timeless)
	if err != nil {
		panic("state: marshal a command: " + err.Error())
	}
	sum := sha256.Sum256(raw)
	return sum[:]
}

// replay returns the first result of a request that was seen before; nil for a new one.
func replay(seen *raftv1.Request, id string, digest []byte) *raftv1.Result {
	if seen == nil {
		return nil
	}
	if !bytes.Equal(seen.GetDigest(), digest) {
		return refused(refuse(coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED,
			"request id %q was used for another request: use a new one", id))
	}
	result := &raftv1.Result{}
	if err := proto.Unmarshal(seen.GetResult(), result); err != nil {
		panic("state: the result of a request is not readable: " + err.Error())
	}
	result.Replayed = true
	return result
}

// rememberRequest keeps the result of a request for a day, of at most requestsKept requests.
func (c *change) rememberRequest(id string, digest []byte, result *raftv1.Result) {
	if id == "" {
		return
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(result)
	if err != nil {
		panic("state: marshal a result: " + err.Error())
	}
	c.batch.addRequest(&raftv1.Request{Id: id, Digest: digest, Result: raw, At: c.stamp(), Index: c.index}, c.now)
}

// Request that was seen, by its id; nil if there is none.
func (v *View) Request(id string) *raftv1.Request {
	return first[*raftv1.Request](v, tableRequest, indexID, id)
}

func later(t *timestamppb.Timestamp, d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(t.AsTime().Add(d))
}

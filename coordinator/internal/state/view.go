package state

import (
	"time"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// View is a consistent view of the state. The messages that it returns are shared: callers never change them.
type View struct {
	txn   *memdb.Txn
	index uint64
}

// Index of the last command that the view contains.
func (v *View) Index() uint64 { return v.index }

func first[T any](v *View, table, index string, key any) T {
	var none T
	raw, err := v.txn.First(table, index, key)
	if err != nil {
		panic("state: look up " + table + ": " + err.Error())
	}
	if raw == nil {
		return none
	}
	return raw.(T)
}

func all[T any](v *View, table, index string, key any) []T {
	it, err := v.txn.Get(table, index, key)
	if err != nil {
		panic("state: list " + table + ": " + err.Error())
	}
	var found []T
	for raw := it.Next(); raw != nil; raw = it.Next() {
		found = append(found, raw.(T))
	}
	return found
}

// Meta of the cluster; never nil.
func (v *View) Meta() *raftv1.Meta {
	if meta := first[*raftv1.Meta](v, tableMeta, indexID, "meta"); meta != nil {
		return meta
	}
	return &raftv1.Meta{}
}

// Identity of the registry by its SPIFFE id; nil if there is none.
func (v *View) Identity(id string) *raftv1.Identity {
	return first[*raftv1.Identity](v, tableIdentity, indexID, id)
}

// Identities of the registry in order of their ids.
func (v *View) Identities() []*raftv1.Identity {
	return all[*raftv1.Identity](v, tableIdentity, indexID+"_prefix", "")
}

// Token by its id; nil if there is none.
func (v *View) Token(id string) *raftv1.Token {
	return first[*raftv1.Token](v, tableToken, indexID, id)
}

// Host by its name; nil if there is none.
func (v *View) Host(name string) *coordinatorv1.Host {
	return first[*coordinatorv1.Host](v, tableHost, indexID, name)
}

// Hosts in order of their names.
func (v *View) Hosts() []*coordinatorv1.Host {
	return all[*coordinatorv1.Host](v, tableHost, indexID+"_prefix", "")
}

// Stack by its name; nil if there is none.
func (v *View) Stack(name string) *coordinatorv1.Stack {
	return first[*coordinatorv1.Stack](v, tableStack, indexID, name)
}

// Stacks in order of their names.
func (v *View) Stacks() []*coordinatorv1.Stack {
	return all[*coordinatorv1.Stack](v, tableStack, indexID+"_prefix", "")
}

// Release of a stack by its number; nil if there is none.
func (v *View) Release(stack string, n uint64) *coordinatorv1.Release {
	return first[*coordinatorv1.Release](v, tableRelease, indexID, numbered(stack, n))
}

// CurrentRelease of a stack; nil before its first one succeeded.
func (v *View) CurrentRelease(stack string) *coordinatorv1.Release {
	s := v.Stack(stack)
	if s.GetCurrentRelease() == 0 {
		return nil
	}
	return v.Release(stack, s.GetCurrentRelease())
}

// Releases of a stack, oldest first.
func (v *View) Releases(stack string) []*coordinatorv1.Release {
	return all[*coordinatorv1.Release](v, tableRelease, indexID+"_prefix", stack+"\x00")
}

// Run by its id; nil if there is none.
func (v *View) Run(id string) *coordinatorv1.Run {
	return first[*coordinatorv1.Run](v, tableRun, indexID, id)
}

// Runs of all procedures, oldest first.
func (v *View) Runs() []*coordinatorv1.Run {
	return all[*coordinatorv1.Run](v, tableRun, indexOrder+"_prefix", "")
}

// ActiveRuns that have not ended, oldest first.
func (v *View) ActiveRuns() []*coordinatorv1.Run {
	return all[*coordinatorv1.Run](v, tableRun, indexActive+"_prefix", "")
}

// Plan of a run; nil if there is none.
func (v *View) Plan(run string) *coordinatorv1.Plan {
	return first[*raftv1.PlanRecord](v, tablePlan, indexID, run).GetPlan()
}

// Step of a run; nil if there is none.
func (v *View) Step(run, step string) *coordinatorv1.StepStatus {
	return first[*coordinatorv1.StepStatus](v, tableStep, indexID, stepKey(run, step))
}

// Steps of a run in order.
func (v *View) Steps(run string) []*coordinatorv1.StepStatus {
	return all[*coordinatorv1.StepStatus](v, tableStep, indexOrder+"_prefix", run+"\x00")
}

// OpenSteps of all runs: those with an operation whose outcome is not committed.
func (v *View) OpenSteps() []*coordinatorv1.StepStatus {
	return all[*coordinatorv1.StepStatus](v, tableStep, indexActive+"_prefix", "")
}

// Lock by its name; nil if nobody holds it.
func (v *View) Lock(name string) *raftv1.Lock {
	return first[*raftv1.Lock](v, tableLock, indexID, name)
}

// Locks that are held, in order of their names.
func (v *View) Locks() []*raftv1.Lock {
	return all[*raftv1.Lock](v, tableLock, indexID+"_prefix", "")
}

// Procedure that users wrote, by its name; nil if there is none.
func (v *View) Procedure(name string) *coordinatorv1.StoredProcedure {
	return first[*coordinatorv1.StoredProcedure](v, tableProcedure, indexID, name)
}

// Procedures that users wrote, in order of their names.
func (v *View) Procedures() []*coordinatorv1.StoredProcedure {
	return all[*coordinatorv1.StoredProcedure](v, tableProcedure, indexID+"_prefix", "")
}

// Secret by name and version, 0 for the newest; nil if there is none.
func (v *View) Secret(name string, version uint64) *raftv1.Secret {
	if version > 0 {
		return first[*raftv1.Secret](v, tableSecret, indexID, numbered(name, version))
	}
	raw, err := v.txn.Last(tableSecret, indexID+"_prefix", name+"\x00")
	if err != nil {
		panic("state: look up " + tableSecret + ": " + err.Error())
	}
	newest, _ := raw.(*raftv1.Secret)
	return newest
}

// Secrets in their newest versions, in order of their names.
func (v *View) Secrets() []*raftv1.Secret {
	var newest []*raftv1.Secret
	for _, secret := range all[*raftv1.Secret](v, tableSecret, indexID+"_prefix", "") {
		if n := len(newest); n > 0 && newest[n-1].GetName() == secret.GetName() {
			newest[n-1] = secret
			continue
		}
		newest = append(newest, secret)
	}
	return newest
}

func clone[T proto.Message](message T) T { return proto.Clone(message).(T) }

// NextDue returns when the next delay or deadline of a run passes; zero if none is armed. Nothing passes while a run is paused but the time
// of its open operations.
func NextDue(v *View, run *coordinatorv1.Run) time.Time {
	var next time.Time
	soonest := func(at *timestamppb.Timestamp) {
		if t := at.AsTime(); at != nil && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	moving := run.GetState() == coordinatorv1.RunState_RUN_STATE_RUNNING || run.GetState() == coordinatorv1.RunState_RUN_STATE_ROLLING_BACK
	if moving {
		soonest(run.GetDeadline())
	}
	for _, step := range v.Steps(run.GetId()) {
		switch step.GetState() {
		case coordinatorv1.StepState_STEP_STATE_WAITING:
			if moving && (run.GetState() == coordinatorv1.RunState_RUN_STATE_RUNNING || isUndo(step.GetStepId())) ||
				run.GetState() == coordinatorv1.RunState_RUN_STATE_PAUSED && isUndo(step.GetStepId()) {
				soonest(step.GetNotBefore())
			}
		case coordinatorv1.StepState_STEP_STATE_RUNNING:
			soonest(step.GetDeadline())
		case coordinatorv1.StepState_STEP_STATE_ASKING:
			if run.GetState() == coordinatorv1.RunState_RUN_STATE_RUNNING {
				soonest(step.GetDeadline())
			}
		}
	}
	return next
}

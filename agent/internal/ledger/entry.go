package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Causes of the end of an action's context.
var (
	errTimeout   = errors.New("the operation's timeout has passed")
	errCancelled = errors.New("the engine cancelled the operation")
	errShutdown  = errors.New("the agent shuts down")
)

// entry is one operation. It runs (attempt), has ended (finished), or was interrupted (neither).
type entry struct {
	accepted *agentv1.LedgerAccepted // never changes.
	finished *agentv1.LedgerFinished // set before it is written, published when attempt.done is closed; never changes then.
	attempt  *attempt                // nil while the operation does not run.
}

// attempt is one performance of an operation by this process.
type attempt struct {
	done   chan struct{} // closed at the end.
	err    error         // set before done is closed if there is no outcome.
	cancel context.CancelCauseFunc
}

// job is what an attempt has to do.
type job struct {
	op       *agentv1.Operation
	received time.Time // with its monotonic reading.
	accept   bool      // the operation is to be written to disk before it is performed.
	act      Act
}

func newEntry(op *agentv1.Operation, method string, effect accessv1.Effect, now time.Time) *entry {
	return &entry{accepted: &agentv1.LedgerAccepted{
		OperationId: op.GetId(), Method: method, Digest: op.GetDigest(), Effect: effect, Epoch: op.GetEpoch(),
		AcceptedAt: timestamppb.New(now),
	}}
}

// outcome returns how an operation ended.
func (e *entry) outcome() ([]byte, error) {
	if f := e.finished.GetFailure(); f != nil {
		return nil, &rpcerr.OperationError{Failure: proto.CloneOf(f)}
	}
	return e.finished.GetResponse(), nil
}

// describe returns e for people. l.mu is held.
func (e *entry) describe() *agentv1.LedgerEntry {
	d := &agentv1.LedgerEntry{
		OperationId: e.accepted.GetOperationId(), Method: e.accepted.GetMethod(), Epoch: e.accepted.GetEpoch(),
		AcceptedAt: e.accepted.GetAcceptedAt(), State: agentv1.OperationState_OPERATION_STATE_RUNNING,
	}
	if e.attempt != nil || e.finished == nil {
		return d
	}
	d.FinishedAt, d.State = e.finished.GetFinishedAt(), agentv1.OperationState_OPERATION_STATE_DONE
	if f := e.finished.GetFailure(); f != nil {
		d.Failure, d.State = proto.CloneOf(f), agentv1.OperationState_OPERATION_STATE_FAILED
	}
	return d
}

// records returns e as it is on disk. l.mu is held.
func (e *entry) records() []*agentv1.LedgerRecord {
	if e.finished == nil && e.accepted.GetEffect() == accessv1.Effect_EFFECT_NONE {
		return nil // if it is lost, nothing is.
	}
	records := []*agentv1.LedgerRecord{acceptedRecord(e.accepted)}
	if e.finished != nil {
		records = append(records, finishedRecord(e.finished))
	}
	return records
}

func acceptedRecord(a *agentv1.LedgerAccepted) *agentv1.LedgerRecord {
	return &agentv1.LedgerRecord{Record: &agentv1.LedgerRecord_Accepted{Accepted: a}}
}

func finishedRecord(f *agentv1.LedgerFinished) *agentv1.LedgerRecord {
	return &agentv1.LedgerRecord{Record: &agentv1.LedgerRecord_Finished{Finished: f}}
}

// perform is the life of one attempt: accepted on disk, action, outcome on disk, published.
func (l *Ledger) perform(ctx context.Context, e *entry, a *attempt, j job) {
	defer l.running.Done()
	defer a.cancel(nil)
	finished, err := l.attempt(ctx, e, j)
	if err == nil {
		err = l.record(e, finished)
	}
	l.mu.Lock()
	a.err = err
	e.attempt = nil
	l.mu.Unlock()
	close(a.done)
	if err := l.journal.compact(false, l.snapshot); err != nil && !errors.Is(err, ErrClosed) {
		l.logger.Warn("the ledger was not compacted", "err", err)
	}
}

// attempt performs the action and returns its outcome; an error means that there is none.
func (l *Ledger) attempt(ctx context.Context, e *entry, j job) (*agentv1.LedgerFinished, error) {
	records := l.epochRecord(j.op.GetEpoch())
	if j.accept {
		records = append(records, acceptedRecord(e.accepted))
	}
	if err := l.commit(records...); err != nil {
		return nil, err
	}
	finished := &agentv1.LedgerFinished{OperationId: j.op.GetId()}
	failure := expired(j)
	if failure == nil {
		timeout := defaultTimeout
		if t := j.op.GetTimeout().AsDuration(); t > 0 {
			timeout = t
		}
		ctx, stop := context.WithTimeoutCause(ctx, timeout, errTimeout)
		defer stop()
		response, err := l.act(ctx, j)
		cause := context.Cause(ctx)
		if cut(e.accepted.GetEffect(), cause, err) {
			return nil, fmt.Errorf("operation %q was cut short: %w", j.op.GetId(), ErrClosed)
		}
		if failure = judge(e.accepted.GetEffect(), cause, err); failure == nil {
			finished.Outcome = &agentv1.LedgerFinished_Response{Response: response}
		}
	}
	if failure != nil {
		failure.OperationId = j.op.GetId()
		finished.Outcome = &agentv1.LedgerFinished_Failure{Failure: failure}
	}
	finished.FinishedAt = timestamppb.Now()
	return finished, nil
}

// act calls the action and serialises its response. A panic is a failure like any other: it must not take other operations with it.
func (l *Ledger) act(ctx context.Context, j job) (response []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			l.logger.Error("an action panicked", "operation", j.op.GetId(), "panic", p, "stack", string(debug.Stack()))
			err = rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_UNSPECIFIED, true, "the agent's action panicked: %v", p)
		}
	}()
	message, err := j.act(ctx)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(message)
}

// record makes an outcome durable: at once, or with the next write if losing it costs nothing.
func (l *Ledger) record(e *entry, finished *agentv1.LedgerFinished) error {
	l.mu.Lock()
	e.finished = finished // before it is written, so that a compaction in between keeps it.
	l.mu.Unlock()
	if e.accepted.GetEffect() != accessv1.Effect_EFFECT_NONE {
		return l.commit(finishedRecord(finished))
	}
	if err := l.journal.later(acceptedRecord(e.accepted), finishedRecord(finished)); err != nil {
		return l.breakBy(err)
	}
	return nil
}

// expired says that an operation has waited longer for its start than it may.
func expired(j job) *agentv1.OperationFailure {
	ttl, waited := j.op.GetTtl().AsDuration(), time.Since(j.received)
	if ttl <= 0 || waited <= ttl {
		return nil
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_EXPIRED, false,
		"the operation was not started: it waited %s on the host, and may wait %s", waited.Round(time.Millisecond), ttl).Failure
}

// cut says that the end of the agent, not the action, made the result.
func cut(effect accessv1.Effect, cause, err error) bool {
	return errors.Is(cause, errShutdown) && (err != nil || effect == accessv1.Effect_EFFECT_NONE)
}

// judge returns the failure that an action's error means; nil for success.
func judge(effect accessv1.Effect, cause, err error) *agentv1.OperationFailure {
	if effect == accessv1.Effect_EFFECT_NONE && errors.Is(cause, errCancelled) {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_CANCELLED, false, "the engine cancelled the operation").Failure
	}
	if err == nil {
		return nil
	}
	failure, definite := rpcerr.Failure(err)
	if !definite {
		failure = rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "%v", err).Failure
	}
	failure = proto.CloneOf(failure)
	vague := failure.GetReason() == agentv1.FailureReason_FAILURE_REASON_ENGINE ||
		failure.GetReason() == agentv1.FailureReason_FAILURE_REASON_UNSPECIFIED
	if vague && errors.Is(cause, errTimeout) {
		failure.Reason, failure.Permanent = agentv1.FailureReason_FAILURE_REASON_TIMEOUT, false
		failure.Message = "the action did not end in time: " + failure.GetMessage()
	}
	// A string that is not UTF-8 could be neither written nor sent.
	failure.Message = strings.ToValidUTF8(strings.ReplaceAll(failure.GetMessage(), "\n", " "), "?")
	failure.Evidence = strings.ToValidUTF8(failure.GetEvidence(), "?")
	return failure
}

// load fills an empty ledger from its file. Records may be repeated: a compaction writes what is about to be written again.
func (l *Ledger) load(records []*agentv1.LedgerRecord) {
	for _, r := range records {
		switch {
		case r.GetAccepted() != nil:
			a := r.GetAccepted()
			l.epoch = max(l.epoch, a.GetEpoch())
			if _, known := l.entries[a.GetOperationId()]; !known {
				e := &entry{accepted: a}
				l.entries[a.GetOperationId()] = e
				l.order = append(l.order, e)
			}
		case r.GetFinished() != nil:
			f := r.GetFinished()
			if e, known := l.entries[f.GetOperationId()]; known && e.finished == nil {
				e.finished = f
			}
		default:
			l.epoch = max(l.epoch, r.GetEpoch())
		}
	}
	l.durableEpoch = l.epoch
}

// interrupt ends the once-only operations that the death of the agent interrupted, and returns what is to be written of it.
func (l *Ledger) interrupt() []*agentv1.LedgerRecord {
	var records []*agentv1.LedgerRecord
	for _, e := range l.order {
		if e.finished != nil {
			continue
		}
		l.logger.Info("operation was interrupted", "operation", e.accepted.GetOperationId(), "method", e.accepted.GetMethod())
		if e.accepted.GetEffect() != accessv1.Effect_EFFECT_ONCE {
			continue
		}
		failure := rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, false,
			"the agent died while it performed the operation: whether it had its effect is not known").Failure
		failure.OperationId = e.accepted.GetOperationId()
		e.finished = &agentv1.LedgerFinished{
			OperationId: e.accepted.GetOperationId(), FinishedAt: timestamppb.Now(),
			Outcome: &agentv1.LedgerFinished_Failure{Failure: failure},
		}
		records = append(records, finishedRecord(e.finished))
	}
	return records
}

// older says that an entry ended, or was interrupted, longer ago than that. A running one never did.
func (e *entry) older(age time.Duration, now time.Time) bool {
	end := e.accepted.GetAcceptedAt()
	if e.finished != nil {
		end = e.finished.GetFinishedAt()
	}
	return e.attempt == nil && now.Sub(end.AsTime()) > age
}

// excess says that the ledger holds what it need not hold.
func (l *Ledger) excess() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	return len(l.order) > l.tuning.keepCount || slices.ContainsFunc(l.order, func(e *entry) bool { return e.older(l.tuning.keepAge, now) })
}

// snapshot drops the entries that are too old or too many, and returns the others as they are on disk.
func (l *Ledger) snapshot() []*agentv1.LedgerRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, surplus := time.Now(), len(l.order)-l.tuning.keepCount
	records := []*agentv1.LedgerRecord{{Record: &agentv1.LedgerRecord_Epoch{Epoch: l.epoch}}}
	kept := make([]*entry, 0, len(l.order))
	for i, e := range l.order {
		if e.older(l.tuning.keepAge, now) || i < surplus && e.finished != nil && e.older(l.tuning.keepRecent, now) {
			delete(l.entries, e.accepted.GetOperationId())
			continue
		}
		kept = append(kept, e)
		records = append(records, e.records()...)
	}
	l.order = kept
	return records
}

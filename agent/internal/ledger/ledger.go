// Package ledger owns the host's memory of operations: which ids were accepted, how they ended, and the highest epoch seen, on disk
// before anybody acts on it. It performs an operation at most once at a time and hands its outcome to whoever asks with the same id.
// What an operation does is left to the capabilities, what an answer looks like on the wire to the api. DESIGN.md has the invariants.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Errors that say nothing about the outcome of an operation.
var (
	// ErrClosed is returned while the agent shuts down: ask again when it is back.
	ErrClosed = errors.New("ledger: the agent shuts down")
	// ErrBroken is returned once the ledger's file could not be written: nothing is started any more until the agent starts again.
	ErrBroken = errors.New("ledger: the file cannot be written")
	// ErrStaleEpoch is returned to an engine that has been replaced.
	ErrStaleEpoch = errors.New("ledger: a newer engine has taken over")
	// ErrUnknown is returned when an operation is not in the ledger.
	ErrUnknown = errors.New("ledger: no such operation")
)

const (
	// defaultTimeout bounds an action whose operation has no timeout.
	defaultTimeout = time.Hour
	// abandonWait is how long an action may take to end when it is cut short.
	abandonWait = 5 * time.Second
	// listDefault and listMax bound the answer of List.
	listDefault, listMax = 100, 1000
)

// Act performs an operation. It ends soon after ctx does, and what it returns is recorded.
type Act func(ctx context.Context) (proto.Message, error)

// Options configure a ledger. All of them are required.
type Options struct {
	// Path of the ledger's file; its folder must exist.
	Path string
	// Logger receives what happens outside of any call.
	Logger *slog.Logger
}

// tuning is what tests set otherwise.
type tuning struct {
	open         func(path string) (file, error)
	compactAbove int64
	keepAge      time.Duration // after its end, an operation is kept no longer,
	keepRecent   time.Duration // and no shorter than this, however many there are.
	keepCount    int
}

func defaults() tuning {
	return tuning{open: openFile, compactAbove: 64 << 20, keepAge: 7 * 24 * time.Hour, keepRecent: time.Hour, keepCount: 50_000}
}

// Ledger remembers operations. It is safe for concurrent use.
type Ledger struct {
	logger  *slog.Logger
	journal *journal
	tuning  tuning
	running sync.WaitGroup
	broken  chan struct{} // closed when brokenBy is set.

	mu           sync.Mutex
	entries      map[string]*entry
	order        []*entry // in the order in which they were accepted.
	epoch        uint64   // the highest seen.
	durableEpoch uint64   // the highest on disk.
	closed       bool
	brokenBy     error
}

// Open reads the ledger of a file, or creates it. An operation that was under way when the agent died is INTERRUPTED from now on: once-only
// ones have that for their outcome, others are performed again when they are asked for again.
func Open(o Options) (*Ledger, error) { return open(o, defaults()) }

func open(o Options, t tuning) (*Ledger, error) {
	if o.Path == "" || o.Logger == nil {
		return nil, errors.New("ledger: Path and Logger are required")
	}
	j, records, cut, err := openJournal(o.Path, t)
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		logger: o.Logger.With("component", "ledger"), journal: j, tuning: t,
		broken: make(chan struct{}), entries: make(map[string]*entry),
	}
	if cut > 0 {
		l.logger.Info("torn end of the ledger cut off", "file", o.Path, "bytes", cut)
	}
	l.load(records)
	interrupted := l.interrupt()
	if err := j.commit(interrupted...); err != nil {
		return nil, errors.Join(err, j.close())
	}
	if err := j.compact(l.excess(), l.snapshot); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return l, nil
}

// Do performs an operation, or waits for it if it is under way, or returns how it ended. The response is the serialised message that act
// returned; a failure is an *rpcerr.OperationError. Any other error, that of ctx included, leaves the outcome open: ask again with the
// same id. The action goes on when ctx ends.
func (l *Ledger) Do(ctx context.Context, op *agentv1.Operation, method string, effect accessv1.Effect, act Act) ([]byte, error) {
	received := time.Now()
	if effect == accessv1.Effect_EFFECT_UNSPECIFIED {
		return nil, fmt.Errorf("method %s declares no effect", method)
	}
	e, a, mine, err := l.claim(op, method, effect, received, act)
	if err != nil {
		return nil, err
	}
	if !mine { // an attempt of one's own writes the epoch with its ACCEPTED.
		if err := l.keepEpoch(op.GetEpoch()); err != nil {
			return nil, err
		}
	}
	if a != nil {
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for operation %q: %w", op.GetId(), ctx.Err())
		}
		if a.err != nil {
			return nil, a.err
		}
	}
	return e.outcome()
}

// claim finds or makes the entry of an operation. The attempt is nil if the operation has ended; mine says that this call started it.
func (l *Ledger) claim(
	op *agentv1.Operation, method string, effect accessv1.Effect, received time.Time, act Act,
) (e *entry, a *attempt, mine bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(op.GetEpoch()); err != nil {
		return nil, nil, false, fmt.Errorf("operation %q: %w", op.GetId(), err)
	}
	e, known := l.entries[op.GetId()]
	switch {
	case known && (e.accepted.GetDigest() != op.GetDigest() || e.accepted.GetMethod() != method):
		refused := rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true,
			"operation %q is known here as %s with digest %q, and was now asked for as %s with digest %q: a new request needs a new id",
			op.GetId(), e.accepted.GetMethod(), e.accepted.GetDigest(), method, op.GetDigest())
		refused.Failure.OperationId = op.GetId()
		return nil, nil, false, refused
	case known && e.attempt != nil:
		return e, e.attempt, false, nil
	case known && e.finished != nil:
		return e, nil, false, nil
	case !known:
		e = newEntry(op, method, effect, received)
		l.entries[op.GetId()] = e
		l.order = append(l.order, e)
	}
	// A known entry that neither runs nor has ended was interrupted, and is idempotent: interrupt ends the once-only ones.
	ctx, cancel := context.WithCancelCause(context.Background())
	e.attempt = &attempt{done: make(chan struct{}), cancel: cancel}
	l.running.Add(1)
	go l.perform(ctx, e, e.attempt, job{op: op, received: received, accept: !known && effect != accessv1.Effect_EFFECT_NONE, act: act})
	return e, e.attempt, true, nil
}

// admit refuses what must not be looked at: l.mu is held.
func (l *Ledger) admit(epoch uint64) error {
	switch {
	case l.brokenBy != nil:
		return fmt.Errorf("%w: %w", ErrBroken, l.brokenBy)
	case l.closed:
		return ErrClosed
	case epoch < l.epoch:
		return fmt.Errorf("%w: the call's epoch is %d, the highest seen is %d", ErrStaleEpoch, epoch, l.epoch)
	}
	l.epoch = epoch
	return nil
}

// keepEpoch returns when an epoch that was admitted is on disk.
func (l *Ledger) keepEpoch(epoch uint64) error {
	return l.commit(l.epochRecord(epoch)...)
}

// epochRecord returns a record of the epoch unless one is on disk.
func (l *Ledger) epochRecord(epoch uint64) []*agentv1.LedgerRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch <= l.durableEpoch {
		return nil
	}
	return []*agentv1.LedgerRecord{{Record: &agentv1.LedgerRecord_Epoch{Epoch: epoch}}}
}

// commit makes records durable. Without records it does nothing.
func (l *Ledger) commit(records ...*agentv1.LedgerRecord) error {
	if len(records) == 0 {
		return nil
	}
	if err := l.journal.commit(records...); err != nil {
		return l.breakBy(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		l.durableEpoch = max(l.durableEpoch, r.GetEpoch())
	}
	return nil
}

// breakBy makes the ledger refuse everything from now on, unless it does already because it is closed.
func (l *Ledger) breakBy(err error) error {
	if errors.Is(err, ErrClosed) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.brokenBy == nil {
		l.brokenBy = err
		close(l.broken)
		l.logger.Error("the ledger cannot be written, nothing is started any more", "err", err)
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

// AwaitFailure returns why the file became unusable, or nil when ctx ends before it does. The agent then starts again, and reads from the
// disk what is true.
func (l *Ledger) AwaitFailure(ctx context.Context) error {
	select {
	case <-l.broken:
		l.mu.Lock()
		defer l.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrBroken, l.brokenBy)
	case <-ctx.Done():
		return nil
	}
}

// Cancel ends a running operation that has no effect; one that has ended, or has an effect, goes its way. ErrUnknown if there is none.
func (l *Ledger) Cancel(id string, epoch uint64) error {
	err := func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if err := l.admit(epoch); err != nil {
			return fmt.Errorf("cancel operation %q: %w", id, err)
		}
		e, known := l.entries[id]
		if !known {
			return fmt.Errorf("cancel operation %q: %w", id, ErrUnknown)
		}
		if e.attempt != nil && e.accepted.GetEffect() == accessv1.Effect_EFFECT_NONE {
			e.attempt.cancel(errCancelled)
		}
		return nil
	}()
	if err != nil {
		return err
	}
	return l.keepEpoch(epoch)
}

// Meet takes note of an engine: from here on the calls of those before it are refused.
func (l *Ledger) Meet(epoch uint64) error {
	l.mu.Lock()
	err := l.admit(epoch)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return l.keepEpoch(epoch)
}

// List returns the operations whose ids start with prefix, newest first. A limit of 0 means 100; it is at most 1000.
func (l *Ledger) List(prefix string, limit int) []*agentv1.LedgerEntry {
	if limit <= 0 {
		limit = listDefault
	}
	limit = min(limit, listMax)
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*agentv1.LedgerEntry
	for i := len(l.order) - 1; i >= 0 && len(found) < limit; i-- {
		if e := l.order[i]; strings.HasPrefix(e.accepted.GetOperationId(), prefix) {
			found = append(found, e.describe())
		}
	}
	return found
}

// Close refuses new operations, abandons those without an effect, waits for the others until ctx ends, then ends those too, and closes
// the file. What is cut short by Close has no outcome: its caller asks again after the next start.
func (l *Ledger) Close(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.abandon(func(e *entry) bool { return e.accepted.GetEffect() == accessv1.Effect_EFFECT_NONE })
	ended := make(chan struct{})
	go func() {
		l.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return l.journal.close()
	case <-ctx.Done():
	}
	l.abandon(func(*entry) bool { return true })
	timer := time.NewTimer(abandonWait)
	defer timer.Stop()
	select {
	case <-ended:
		return l.journal.close()
	case <-timer.C:
		return errors.Join(errors.New("ledger: an action does not end although its context has"), l.journal.close())
	}
}

// abandon cuts running operations short without an outcome.
func (l *Ledger) abandon(which func(*entry) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.order {
		if e.attempt != nil && which(e) {
			e.attempt.cancel(errShutdown)
		}
	}
}

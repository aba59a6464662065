package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	none       = accessv1.Effect_EFFECT_NONE
	idempotent = accessv1.Effect_EFFECT_IDEMPOTENT
	once       = accessv1.Effect_EFFECT_ONCE
	method     = "/muster.agent.v1.ContainerService/DrainContainer"
)

func operation(id string) *agentv1.Operation {
	return &agentv1.Operation{Id: id, Epoch: 1, Digest: "d1", Timeout: durationpb.New(time.Minute)}
}

// left is an action that answers with n.
func left(n uint32) ledger.Act {
	return func(context.Context) (proto.Message, error) { return &agentv1.DrainContainerResponse{Left: n}, nil }
}

// never is an action that must not be performed.
func never(t *testing.T) ledger.Act {
	return func(context.Context) (proto.Message, error) {
		t.Error("the action was performed again")
		return nil, errors.New("performed again")
	}
}

func open(t *testing.T, path string, tuning ledger.Tuning) *ledger.Ledger {
	t.Helper()
	l, err := ledger.OpenTuned(ledger.Options{Path: path, Logger: slog.New(slog.DiscardHandler)}, tuning)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, l) })
	return l
}

func shut(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
}

func file(t *testing.T) string { return filepath.Join(t.TempDir(), "ledger") }

func wantLeft(t *testing.T, response []byte, err error, want uint32) {
	t.Helper()
	if err != nil {
		t.Fatalf("got error %v, want left %d", err, want)
	}
	var got agentv1.DrainContainerResponse
	if err := proto.Unmarshal(response, &got); err != nil {
		t.Fatal(err)
	}
	if got.GetLeft() != want {
		t.Fatalf("got left %d, want %d", got.GetLeft(), want)
	}
}

func wantReason(t *testing.T, err error, want agentv1.FailureReason) *agentv1.OperationFailure {
	t.Helper()
	f, ok := rpcerr.Failure(err)
	if !ok || f.GetReason() != want {
		t.Fatalf("got error %v (failure %v), want a failure %v", err, f, want)
	}
	return f
}

func TestCallersAttachAndMayVanish(t *testing.T) {
	path := file(t)
	l := open(t, path, ledger.Tuning{})
	started, proceed := make(chan struct{}), make(chan struct{})
	act := func(ctx context.Context) (proto.Message, error) {
		close(started)
		select {
		case <-proceed:
			return &agentv1.DrainContainerResponse{Left: 7}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	first, vanish := context.WithCancel(context.Background())
	firstErr := make(chan error)
	go func() {
		_, err := l.Do(first, operation("r/s/1"), method, idempotent, act)
		firstErr <- err
	}()
	<-started
	vanish()
	if err := <-firstErr; !errors.Is(err, context.Canceled) {
		t.Fatalf("the caller that vanished got %v, want context.Canceled", err)
	} else if _, definite := rpcerr.Failure(err); definite {
		t.Fatal("a caller that vanished was told an outcome")
	}
	if got := l.List("r/", 0); len(got) != 1 || got[0].GetState() != agentv1.OperationState_OPERATION_STATE_RUNNING {
		t.Fatalf("got %v, want one running operation", got)
	}
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			response, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, never(t))
			wantLeft(t, response, err, 7)
		})
	}
	close(proceed)
	callers.Wait()
	response, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, never(t))
	wantLeft(t, response, err, 7)
	shut(t, l)

	l = open(t, path, ledger.Tuning{})
	response, err = l.Do(context.Background(), operation("r/s/1"), method, idempotent, never(t))
	wantLeft(t, response, err, 7)
	if got := l.List("", 0); len(got) != 1 || got[0].GetState() != agentv1.OperationState_OPERATION_STATE_DONE || got[0].GetMethod() != method {
		t.Fatalf("got %v, want one operation that is done", got)
	}
}

func TestFailuresAreOutcomes(t *testing.T) {
	tests := []struct {
		name      string
		timeout   time.Duration
		act       ledger.Act
		want      agentv1.FailureReason
		permanent bool
	}{
		{name: "definite", want: agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, permanent: true, act: func(context.Context) (proto.Message, error) {
			return nil, fmt.Errorf("create: %w", rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true, "port 80 is taken"))
		}},
		{name: "any other error", want: agentv1.FailureReason_FAILURE_REASON_ENGINE, act: func(context.Context) (proto.Message, error) {
			return nil, errors.New("no answer\nfrom the engine \xff")
		}},
		{name: "timeout", timeout: 10 * time.Millisecond, want: agentv1.FailureReason_FAILURE_REASON_TIMEOUT,
			act: func(ctx context.Context) (proto.Message, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}},
		{name: "timeout that the capability calls an engine failure", timeout: 10 * time.Millisecond, want: agentv1.FailureReason_FAILURE_REASON_TIMEOUT,
			act: func(ctx context.Context) (proto.Message, error) {
				<-ctx.Done()
				return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "stop: %v", ctx.Err())
			}},
		{name: "a better reason than the timeout", timeout: 10 * time.Millisecond, want: agentv1.FailureReason_FAILURE_REASON_NOT_READY,
			act: func(ctx context.Context) (proto.Message, error) {
				<-ctx.Done()
				return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_NOT_READY, false, "503 from /healthz")
			}},
		{name: "panic", want: agentv1.FailureReason_FAILURE_REASON_UNSPECIFIED, permanent: true, act: func(context.Context) (proto.Message, error) {
			panic("nil map")
		}},
	}
	for _, tt := range tests {
		for _, effect := range []accessv1.Effect{none, idempotent, once} {
			t.Run(tt.name+"/"+effect.String(), func(t *testing.T) {
				path := file(t)
				l := open(t, path, ledger.Tuning{})
				op := operation("r/s/1")
				if tt.timeout > 0 {
					op.Timeout = durationpb.New(tt.timeout)
				}
				_, err := l.Do(context.Background(), op, method, effect, tt.act)
				f := wantReason(t, err, tt.want)
				if f.GetPermanent() != tt.permanent || f.GetOperationId() != "r/s/1" {
					t.Fatalf("got %v, want permanent %v and the operation's id", f, tt.permanent)
				}
				shut(t, l)
				l = open(t, path, ledger.Tuning{})
				_, err = l.Do(context.Background(), op, method, effect, never(t))
				if again := wantReason(t, err, tt.want); !proto.Equal(again, f) {
					t.Fatalf("got %v after a restart, want %v", again, f)
				}
			})
		}
	}
}

func TestAnotherRequestWithAKnownIDIsRefused(t *testing.T) {
	l := open(t, file(t), ledger.Tuning{})
	if _, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, left(3)); err != nil {
		t.Fatal(err)
	}
	other := operation("r/s/1")
	other.Digest = "d2"
	_, err := l.Do(context.Background(), other, method, idempotent, never(t))
	wantReason(t, err, agentv1.FailureReason_FAILURE_REASON_INVALID)
	_, err = l.Do(context.Background(), operation("r/s/1"), "/muster.agent.v1.ContainerService/StopContainer", idempotent, never(t))
	wantReason(t, err, agentv1.FailureReason_FAILURE_REASON_INVALID)
	response, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, never(t))
	wantLeft(t, response, err, 3)
	if _, err := l.Do(context.Background(), operation("r/s/2"), method, accessv1.Effect_EFFECT_UNSPECIFIED, never(t)); err == nil {
		t.Fatal("a method without an effect was performed")
	}
}

func TestEpochsOnlyRise(t *testing.T) {
	raise := map[string]func(l *ledger.Ledger) error{
		"operation with an effect": func(l *ledger.Ledger) error {
			_, err := l.Do(context.Background(), &agentv1.Operation{Id: "a", Epoch: 9}, method, idempotent, left(0))
			return err
		},
		"operation without an effect": func(l *ledger.Ledger) error {
			_, err := l.Do(context.Background(), &agentv1.Operation{Id: "b", Epoch: 9}, method, none, left(0))
			return err
		},
		"repeated operation": func(l *ledger.Ledger) error {
			_, err := l.Do(context.Background(), &agentv1.Operation{Id: "old", Epoch: 9}, method, idempotent, left(0))
			return err
		},
		"cancel": func(l *ledger.Ledger) error { return l.Cancel("old", 9) },
		"look":   func(l *ledger.Ledger) error { return l.Meet(9) },
	}
	for name, raise := range raise {
		t.Run(name, func(t *testing.T) {
			path := file(t)
			// No Close before the file is read again: what counts is what was on disk when the call returned.
			l := open(t, path, ledger.Tuning{})
			if _, err := l.Do(context.Background(), &agentv1.Operation{Id: "old", Epoch: 5}, method, idempotent, left(0)); err != nil {
				t.Fatal(err)
			}
			if err := raise(l); err != nil {
				t.Fatal(err)
			}
			for _, l := range []*ledger.Ledger{l, open(t, path, ledger.Tuning{})} {
				_, err := l.Do(context.Background(), &agentv1.Operation{Id: "old", Epoch: 8}, method, idempotent, never(t))
				if !errors.Is(err, ledger.ErrStaleEpoch) {
					t.Errorf("got %v, want ErrStaleEpoch", err)
				}
				if _, definite := rpcerr.Failure(err); definite {
					t.Error("a stale engine was told an outcome")
				}
				if err := l.Cancel("old", 8); !errors.Is(err, ledger.ErrStaleEpoch) {
					t.Errorf("cancel: got %v, want ErrStaleEpoch", err)
				}
				if err := l.Meet(8); !errors.Is(err, ledger.ErrStaleEpoch) {
					t.Errorf("look: got %v, want ErrStaleEpoch", err)
				}
				if _, err := l.Do(context.Background(), &agentv1.Operation{Id: "old", Epoch: 9}, method, idempotent, never(t)); err != nil {
					t.Errorf("epoch 9: %v", err)
				}
			}
		})
	}
}

func TestCancelEndsOnlyWhatHasNoEffect(t *testing.T) {
	for _, effect := range []accessv1.Effect{none, idempotent, once} {
		t.Run(effect.String(), func(t *testing.T) {
			l := open(t, file(t), ledger.Tuning{})
			if err := l.Cancel("r/s/1", 1); !errors.Is(err, ledger.ErrUnknown) {
				t.Fatalf("got %v, want ErrUnknown", err)
			}
			started, proceed := make(chan struct{}), make(chan struct{})
			act := func(ctx context.Context) (proto.Message, error) {
				close(started)
				select {
				case <-ctx.Done(): // a drain that answers with what is left, as at its limit.
					return &agentv1.DrainContainerResponse{Left: 9}, nil
				case <-proceed:
					return &agentv1.DrainContainerResponse{Left: 1}, nil
				}
			}
			type result struct {
				response []byte
				err      error
			}
			ended := make(chan result)
			go func() {
				response, err := l.Do(context.Background(), operation("r/s/1"), method, effect, act)
				ended <- result{response, err}
			}()
			<-started
			if err := l.Cancel("r/s/1", 1); err != nil {
				t.Fatal(err)
			}
			if effect == none {
				wantReason(t, (<-ended).err, agentv1.FailureReason_FAILURE_REASON_CANCELLED)
			} else {
				close(proceed)
				r := <-ended
				wantLeft(t, r.response, r.err, 1)
			}
			if err := l.Cancel("r/s/1", 1); err != nil {
				t.Fatalf("cancel of an operation that has ended: %v", err)
			}
		})
	}
}

func TestWaitingLongerThanTheTTLExpires(t *testing.T) {
	l := open(t, file(t), ledger.Tuning{Wrap: func(f ledger.File) ledger.File { return &slowFile{File: f, delay: 50 * time.Millisecond} }})
	op := operation("r/s/1")
	op.Ttl = durationpb.New(40 * time.Millisecond)
	for range 2 {
		_, err := l.Do(t.Context(), op, method, idempotent, never(t))
		wantReason(t, err, agentv1.FailureReason_FAILURE_REASON_EXPIRED)
	}
	op = operation("r/s/2")
	op.Ttl = durationpb.New(time.Minute)
	response, err := l.Do(t.Context(), op, method, idempotent, left(2))
	wantLeft(t, response, err, 2)
}

func TestConcurrentOperationsShareSyncs(t *testing.T) {
	slow := &slowFile{delay: 10 * time.Millisecond}
	l := open(t, file(t), ledger.Tuning{Wrap: func(f ledger.File) ledger.File { slow.File = f; return slow }})
	const operations = 100
	var callers sync.WaitGroup
	for i := range operations {
		callers.Go(func() {
			response, err := l.Do(context.Background(), operation(fmt.Sprint("r/s/", i)), method, idempotent, left(1))
			wantLeft(t, response, err, 1)
		})
	}
	callers.Wait()
	// Alone, each operation takes two.
	if got := slow.syncs.Load(); got > operations {
		t.Fatalf("%d concurrent operations took %d syncs", operations, got)
	}
}

func TestAFileThatCannotBeWrittenStopsTheLedger(t *testing.T) {
	for _, fail := range []string{"write", "sync"} {
		t.Run(fail, func(t *testing.T) {
			path := file(t)
			broken := &brokenFile{fail: fail}
			l, err := ledger.OpenTuned(ledger.Options{Path: path, Logger: slog.New(slog.DiscardHandler)},
				ledger.Tuning{Wrap: func(f ledger.File) ledger.File { broken.File = f; return broken }})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, left(1)); err != nil {
				t.Fatal(err)
			}
			broken.broken.Store(true)
			for _, id := range []string{"r/s/2", "r/s/1"} {
				_, err = l.Do(context.Background(), operation(id), method, idempotent, never(t))
				if _, definite := rpcerr.Failure(err); definite || !errors.Is(err, ledger.ErrBroken) {
					t.Fatalf("got %v, want ErrBroken without an outcome", err)
				}
			}
			if err := l.AwaitFailure(context.Background()); !errors.Is(err, ledger.ErrBroken) {
				t.Fatalf("got %v, want ErrBroken", err)
			}
			if err := l.Close(context.Background()); err == nil {
				t.Fatal("close reports no error")
			}
			l = open(t, path, ledger.Tuning{})
			response, err := l.Do(context.Background(), operation("r/s/1"), method, idempotent, never(t))
			wantLeft(t, response, err, 1)
		})
	}
}

// slowFile takes its time to sync, and counts.
type slowFile struct {
	ledger.File
	delay time.Duration
	syncs atomic.Int64
}

func (f *slowFile) Sync() error {
	f.syncs.Add(1)
	<-time.NewTimer(f.delay).C
	return f.File.Sync()
}

// brokenFile fails on demand.
type brokenFile struct {
	ledger.File
	fail   string
	broken atomic.Bool
}

func (f *brokenFile) Write(b []byte) (int, error) {
	if f.fail == "write" && f.broken.Load() {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, errors.New("no space left on device")
	}
	return f.File.Write(b)
}

func (f *brokenFile) Sync() error {
	if f.fail == "sync" && f.broken.Load() {
		return errors.New("input/output error")
	}
	return f.File.Sync()
}

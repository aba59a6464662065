package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/agent/internal/ledger"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// The crash tests run this test binary again as an agent that kills itself at a given point.
const (
	crashPoint  = "MUSTER_LEDGER_CRASH_POINT"
	crashEffect = "MUSTER_LEDGER_CRASH_EFFECT"
	crashDir    = "MUSTER_LEDGER_CRASH_DIR"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashPoint) != "" {
		fmt.Fprintln(os.Stderr, "not killed:", crash())
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// crash performs one operation and is killed at the point; it returns if the point was not reached.
func crash() error {
	dir, point := os.Getenv(crashDir), os.Getenv(crashPoint)
	l, err := ledger.OpenTuned(ledger.Options{Path: filepath.Join(dir, "ledger"), Logger: slog.New(slog.DiscardHandler)},
		ledger.Tuning{Wrap: func(f ledger.File) ledger.File { return &crashFile{File: f, point: point} }})
	if err == nil {
		effect := accessv1.Effect(accessv1.Effect_value[os.Getenv(crashEffect)])
		_, err = l.Do(context.Background(), operation("r/s/1"), method, effect, func(ctx context.Context) (proto.Message, error) {
			if point == "before the effect" {
				die()
			}
			response, err := makeThing(dir)
			if point == "after the effect" {
				die()
			}
			return response, err
		})
	}
	if err == nil && point == "after the answer" {
		die()
	}
	return err
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// crashFile kills the process around its writes: the first holds ACCEPTED, the second FINISHED.
type crashFile struct {
	ledger.File
	point  string
	writes int
}

func (f *crashFile) at(what string) bool {
	return f.point == fmt.Sprintf("%s %s", what, map[int]string{1: "ACCEPTED", 2: "FINISHED"}[f.writes])
}

func (f *crashFile) Write(b []byte) (int, error) {
	f.writes++
	if f.at("before writing") {
		die()
	}
	if f.at("half way through writing") {
		_, _ = f.File.Write(b[:len(b)/2])
		die()
	}
	return f.File.Write(b)
}

func (f *crashFile) Sync() error {
	if f.at("before syncing") {
		die()
	}
	err := f.File.Sync()
	if f.at("after syncing") {
		die()
	}
	return err
}

// makeThing is an action with an effect: it makes a thing by name, finds one that is there, and tells every call in a file.
func makeThing(dir string) (proto.Message, error) {
	calls, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer calls.Close()
	if _, err := calls.WriteString("called\n"); err != nil {
		return nil, err
	}
	thing, err := os.OpenFile(filepath.Join(dir, "thing"), os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &agentv1.DrainContainerResponse{Left: 4}, nil
	}
	if err != nil {
		return nil, err
	}
	return &agentv1.DrainContainerResponse{Left: 4}, thing.Close()
}

func TestKilledAtEveryPoint(t *testing.T) {
	// A killed process loses nothing that it has written: from "before syncing" on the record is found.
	points := []struct {
		name               string
		accepted, finished bool
		calls              int // of the action, before the kill.
	}{
		{"before writing ACCEPTED", false, false, 0},
		{"half way through writing ACCEPTED", false, false, 0},
		{"before syncing ACCEPTED", true, false, 0},
		{"after syncing ACCEPTED", true, false, 0},
		{"before the effect", true, false, 0},
		{"after the effect", true, false, 1},
		{"before writing FINISHED", true, false, 1},
		{"half way through writing FINISHED", true, false, 1},
		{"before syncing FINISHED", true, true, 1},
		{"after syncing FINISHED", true, true, 1},
		{"after the answer", true, true, 1},
	}
	for _, point := range points {
		for _, effect := range []accessv1.Effect{idempotent, once} {
			t.Run(point.name+"/"+effect.String(), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				runUntilKilled(t, dir, point.name, effect)
				if got := calls(t, dir); got != point.calls {
					t.Fatalf("the action was called %d times before the kill, want %d", got, point.calls)
				}
				want := point.calls
				acts := !point.finished && (effect == idempotent || !point.accepted)
				if acts {
					want++
				}
				for range 2 { // a second restart finds what the first one wrote.
					l := open(t, filepath.Join(dir, "ledger"), ledger.Tuning{})
					response, err := l.Do(context.Background(), operation("r/s/1"), method, effect,
						func(context.Context) (proto.Message, error) { return makeThing(dir) })
					if effect == once && point.accepted && !point.finished {
						if f := wantReason(t, err, agentv1.FailureReason_FAILURE_REASON_INTERRUPTED); f.GetPermanent() {
							t.Error("an interrupted operation is called permanent")
						}
					} else {
						wantLeft(t, response, err, 4)
					}
					if got := calls(t, dir); got != want {
						t.Fatalf("the action was called %d times, want %d", got, want)
					}
					shut(t, l)
				}
			})
		}
	}
}

// An operation without an effect writes nothing before it acts, and nothing is lost with it.
func TestKilledInAnOperationWithoutEffect(t *testing.T) {
	for _, point := range []string{"before the effect", "after the effect", "after the answer"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			runUntilKilled(t, dir, point, none)
			l := open(t, filepath.Join(dir, "ledger"), ledger.Tuning{})
			response, err := l.Do(context.Background(), operation("r/s/1"), method, none, left(6))
			wantLeft(t, response, err, 6)
			if _, err := l.Do(context.Background(), &agentv1.Operation{Id: "x"}, method, none, never(t)); !errors.Is(err, ledger.ErrStaleEpoch) {
				t.Fatalf("got %v, want ErrStaleEpoch: the epoch was not on disk when the action began", err)
			}
		})
	}
}

func runUntilKilled(t *testing.T, dir, point string, effect accessv1.Effect) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), crashPoint+"="+point, crashEffect+"="+effect.String(), crashDir+"="+dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the agent ended with %v, want it killed\n%s", err, out)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL || ctx.Err() != nil {
		t.Fatalf("the agent ended with %v (%v), want it killed by itself\n%s", err, ctx.Err(), out)
	}
}

func calls(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func TestShutdown(t *testing.T) {
	tests := []struct {
		effect  accessv1.Effect
		patient bool // the action ends within the grace.
		again   bool // the action is performed after the restart.
		reason  agentv1.FailureReason
	}{
		{effect: none, again: true},
		{effect: idempotent, patient: true},
		{effect: once, patient: true},
		{effect: idempotent, again: true},
		{effect: once, reason: agentv1.FailureReason_FAILURE_REASON_INTERRUPTED},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s patient=%v", tt.effect, tt.patient), func(t *testing.T) {
			path := file(t)
			l := open(t, path, ledger.Tuning{})
			started, proceed := make(chan struct{}), make(chan struct{})
			told := make(chan error)
			go func() {
				_, err := l.Do(context.Background(), operation("r/s/1"), method, tt.effect, func(ctx context.Context) (proto.Message, error) {
					close(started)
					select {
					case <-proceed:
						return &agentv1.DrainContainerResponse{Left: 1}, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})
				told <- err
			}()
			<-started
			grace, end := context.WithTimeout(context.Background(), 50*time.Millisecond)
			if tt.patient {
				grace, end = context.WithTimeout(context.Background(), time.Minute)
			}
			defer end()
			closed := make(chan error)
			go func() { closed <- l.Close(grace) }()
			if tt.patient {
				close(proceed)
			}
			err := <-told
			if tt.patient != (err == nil) || !tt.patient && !errors.Is(err, ledger.ErrClosed) {
				t.Fatalf("the caller was told %v", err)
			}
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
			if _, err := l.Do(context.Background(), operation("r/s/2"), method, tt.effect, never(t)); !errors.Is(err, ledger.ErrClosed) {
				t.Fatalf("got %v, want ErrClosed", err)
			}

			l = open(t, path, ledger.Tuning{})
			act, want := never(t), uint32(1)
			if tt.again {
				act, want = left(2), 2
			}
			response, err := l.Do(context.Background(), operation("r/s/1"), method, tt.effect, act)
			if tt.reason != 0 {
				wantReason(t, err, tt.reason)
				return
			}
			wantLeft(t, response, err, want)
		})
	}
}

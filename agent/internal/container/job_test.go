package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	dockercontainer "github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/container"
	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	jobFailed = agentv1.FailureReason_FAILURE_REASON_JOB_FAILED
	timedOut  = agentv1.FailureReason_FAILURE_REASON_TIMEOUT
)

// newJob returns a spec whose container writes down each of its runs, and how many there were.
func newJob(t *testing.T, h *host, env ...string) (spec *agentv1.ContainerSpec, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	spec = &agentv1.ContainerSpec{
		Name: "t." + h.name + ".job", Image: testImage, Command: []string{"job"}, Env: env, Labels: map[string]string{"muster.stack": h.name},
		Mounts: []*agentv1.Mount{{Type: "bind", Source: dir, Target: "/work"}},
	}
	return spec, func() int {
		text, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Count(string(text), "run\n")
	}
}

func wantRuns(t *testing.T, want int, runs func() int) {
	t.Helper()
	if got := runs(); got != want {
		t.Errorf("the job ran %d times, want %d", got, want)
	}
}

func TestRunJob(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec, runs := newJob(t, h, "SAY=migrated 3 tables")
	for range 2 { // the outcome was lost: the same attempt is asked for again.
		got, err := h.RunJob(t.Context(), "run/migrate/1", spec)
		if err != nil || got.GetExitCode() != 0 || got.GetOutput() != "job starts\nmigrated 3 tables\n" {
			t.Fatalf("got %v, %v; want its output", got, err)
		}
	}
	wantRuns(t, 1, runs)
	if all := list(t, h); len(all) != 1 || all[0].GetState() != "exited" || all[0].GetLabels()["muster.operation"] != "run/migrate/1" || all[0].GetStopped() {
		t.Errorf("got %v, want the container to stay with its label, and not as one to be started", all)
	}
	if _, err := h.RunJob(t.Context(), "run/migrate/2", spec); err != nil {
		t.Fatalf("a later attempt: %v", err)
	}
	wantRuns(t, 2, runs)
	_, err := h.RunJob(t.Context(), "run/migrate/1", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true, "run/migrate/2")
	_, err = h.RunJob(t.Context(), "run/other/3", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true, "run/migrate/2")
	wantRuns(t, 2, runs)

	// What a run left that failed is not in the way of the next one; what is no job, or runs, is.
	if _, err := h.RunJob(t.Context(), "later/migrate/1", spec); err != nil {
		t.Errorf("a later run: %v", err)
	}
	wantRuns(t, 3, runs)
	if err := h.Remove(t.Context(), "later/remove/1", spec.GetName(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Create(t.Context(), "later/create/1", spec); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "exited", func() string { return list(t, h)[0].GetState() })
	_, err = h.RunJob(t.Context(), "last/migrate/1", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true, "later/create/1")
}

func TestRunJobLeavesTheRunningJobOfAnotherRun(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec, runs := newJob(t, h, "WORK=2s")
	var g errgroup.Group
	g.Go(func() error {
		_, err := h.RunJob(t.Context(), "one/job/1", spec)
		return err
	})
	eventually(t, "1", func() string { return strings.Repeat("1", runs()) })
	_, err := h.RunJob(t.Context(), "two/job/1", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true, "one/job/1")
	if err := g.Wait(); err != nil {
		t.Errorf("got %v, want the job to end well", err)
	}
	wantRuns(t, 1, runs)
}

func TestRunJobFails(t *testing.T) {
	h := newHost(t, container.Policy{})
	for _, tt := range []struct {
		name   string
		env    []string
		change func(*agentv1.ContainerSpec)
		reason agentv1.FailureReason
		runs   int
		texts  []string
		end    string
	}{
		{name: "exit code", env: []string{"EXIT_CODE=3", "SAY=no such table"}, reason: jobFailed, runs: 1, texts: []string{"exited with code 3"}, end: "no such table"},
		{
			name: "out of memory", env: []string{"EAT=1"}, reason: jobFailed, runs: 1, texts: []string{"exited with code 137 (out of memory)"}, end: "job starts",
			change: func(s *agentv1.ContainerSpec) { s.Resources = &agentv1.Resources{MemoryLimitBytes: 64 << 20} },
		},
		{
			name: "restart policy", reason: invalid, texts: []string{`"on-failure"`, `use "no"`},
			change: func(s *agentv1.ContainerSpec) { s.Restart = &agentv1.RestartPolicy{Name: "on-failure"} },
		},
		{
			name: "policy of the host", reason: agentv1.FailureReason_FAILURE_REASON_REFUSED, texts: []string{"privileged"},
			change: func(s *agentv1.ContainerSpec) { s.Privileged = true },
		},
		{
			name: "no such program", reason: invalid, texts: []string{"/nothing"},
			change: func(s *agentv1.ContainerSpec) { s.Entrypoint = []string{"/nothing"} },
		},
		{
			name: "no such image", reason: agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, texts: []string{"pull it first"},
			change: func(s *agentv1.ContainerSpec) { s.Image = "sha256:" + strings.Repeat("0", 64) },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec, runs := newJob(t, h, tt.env...)
			spec.Name += strings.ReplaceAll(tt.name, " ", "-")
			if tt.change != nil {
				tt.change(spec)
			}
			for range 2 {
				_, err := h.RunJob(t.Context(), "run/job/1", spec)
				f := wantFailure(t, err, tt.reason, true, append(tt.texts, spec.GetName())...)
				if !strings.HasSuffix(strings.TrimSpace(f.GetEvidence()), tt.end) {
					t.Errorf("got evidence %q, want %q at its end", f.GetEvidence(), tt.end)
				}
			}
			wantRuns(t, tt.runs, runs)
		})
	}
}

func TestRunJobOutputIsTheEndAsText(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec, _ := newJob(t, h, "SAY="+strings.Repeat("ž", 3000)+"\xff end")
	got, err := h.RunJob(t.Context(), "run/job/1", spec)
	if err != nil {
		t.Fatal(err)
	}
	if out := got.GetOutput(); len(out) > 2048 || len(out) < 2040 || !utf8.ValidString(out) || !strings.HasSuffix(out, "ž? end\n") && !strings.HasSuffix(out, "ž\ufffd end\n") {
		t.Errorf("got %d bytes that end in %q", len(out), out[max(0, len(out)-12):])
	}
}

func TestRunJobTimesOut(t *testing.T) {
	for _, tt := range []struct{ name, env string }{{"ends on SIGTERM", ""}, {"must be killed", "DEAF=1"}} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec, runs := newJob(t, h, "WORK=1h", tt.env)
			spec.StopGrace = durationpb.New(time.Second)
			if tt.env == "" {
				spec.Env = spec.Env[:1]
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err := h.RunJob(ctx, "run/job/1", spec)
			f := wantFailure(t, err, timedOut, false, "was stopped")
			if !strings.Contains(f.GetEvidence(), "job starts") {
				t.Errorf("got evidence %q, want its output", f.GetEvidence())
			}
			if all := list(t, h); len(all) != 1 || all[0].GetState() != "exited" {
				t.Errorf("got %v, want it stopped", all)
			}
			// The agent died before it told: the same attempt must not pass for success because the job ended well when it was stopped.
			_, err = h.RunJob(t.Context(), "run/job/1", spec)
			wantFailure(t, err, jobFailed, false, "told to stop")
			wantRuns(t, 1, runs)
		})
	}
}

// agent is a ledger on a file, and an engine: what is lost when an agent is killed, and what is not.
func newAgent(t *testing.T, path string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(ledger.Options{Path: path, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func runJob(ctx context.Context, l *ledger.Ledger, h *host, spec *agentv1.ContainerSpec, timeout time.Duration) (*agentv1.RunJobResponse, error) {
	op := &agentv1.Operation{Id: "run/job/1", Epoch: 1, Digest: "d", Timeout: durationpb.New(timeout)}
	text, err := l.Do(ctx, op, agentv1.ContainerService_RunJob_FullMethodName, accessv1.Effect_EFFECT_IDEMPOTENT,
		func(ctx context.Context) (proto.Message, error) { return h.RunJob(ctx, op.GetId(), spec) })
	if err != nil {
		return nil, err
	}
	got := &agentv1.RunJobResponse{}
	return got, proto.Unmarshal(text, got)
}

// TestAgentIsKilledWhileAJobRuns: the job goes on in the engine, and whoever asks again with the same id gets its end, within the time that it
// was given at first.
func TestAgentIsKilledWhileAJobRuns(t *testing.T) {
	for _, tt := range []struct {
		name    string
		env     []string
		timeout time.Duration
		away    time.Duration // of the agent.
		reason  agentv1.FailureReason
	}{
		{name: "it ends later", env: []string{"WORK=3s", "SAY=done"}, timeout: time.Minute},
		{name: "it ends meanwhile", env: []string{"WORK=1s", "SAY=done"}, timeout: time.Minute, away: 1500 * time.Millisecond},
		{name: "it fails meanwhile", env: []string{"WORK=1s", "EXIT_CODE=3"}, timeout: time.Minute, away: 1500 * time.Millisecond, reason: jobFailed},
		{name: "its time passes meanwhile", env: []string{"WORK=1h"}, timeout: 6 * time.Second, away: 5 * time.Second, reason: timedOut},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec, runs := newJob(t, h, tt.env...)
			path := filepath.Join(t.TempDir(), "ledger")
			first := newAgent(t, path)
			var g errgroup.Group
			g.Go(func() error {
				_, err := runJob(t.Context(), first, h, spec, tt.timeout)
				if !errors.Is(err, ledger.ErrClosed) {
					return errors.Join(errors.New("the agent that was killed told an outcome"), err)
				}
				return nil
			})
			eventually(t, "1", func() string { return strings.Repeat("1", runs()) })
			killed, cancel := context.WithCancel(t.Context())
			cancel()
			if err := first.Close(killed); err != nil {
				t.Fatal(err)
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			pause(tt.away)
			second, began := newAgent(t, path), time.Now()
			defer second.Close(t.Context())
			got, err := runJob(t.Context(), second, h, spec, tt.timeout)
			switch {
			case tt.reason != 0:
				wantFailureReason(t, err, tt.reason)
			case err != nil || !strings.HasSuffix(got.GetOutput(), "done\n"):
				t.Errorf("got %v, %v; want the end of the job", got, err)
			}
			if took := time.Since(began); tt.away > 0 && took > 4*time.Second {
				t.Errorf("the second agent took %s, want it to find what there is", took)
			}
			wantRuns(t, 1, runs)
		})
	}
}

// TestDaemonIsKilledWhileAJobRuns: the daemon stops what it finds when it comes back, and a job that ends well on SIGTERM has not done its work.
func TestDaemonIsKilledWhileAJobRuns(t *testing.T) {
	for _, tt := range []struct {
		name   string
		env    []string
		reason agentv1.FailureReason
	}{
		{name: "stopped by the daemon", env: []string{"WORK=1h"}, reason: jobFailed},
		{name: "ended before the daemon came back", env: []string{"WORK=1500ms", "SAY=done"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec, runs := newJob(t, h, tt.env...)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var got *agentv1.RunJobResponse
			var g errgroup.Group
			g.Go(func() (err error) {
				got, err = h.RunJob(ctx, "run/job/1", spec)
				return err
			})
			eventually(t, "1", func() string { return strings.Repeat("1", runs()) })
			pause(300 * time.Millisecond)
			crash(t, h.lab, 2*time.Second)
			err := g.Wait()
			t.Logf("got %v, %v", got, err)
			for range 2 {
				if tt.reason == 0 && (err != nil || got.GetExitCode() != 0) {
					t.Errorf("got %v, %v; want the end of the job", got, err)
				}
				if tt.reason != 0 {
					wantFailure(t, err, tt.reason, false, "docker engine")
				}
				got, err = h.RunJob(ctx, "run/job/1", spec) // by another agent, which saw nothing of the outage.
			}
			wantRuns(t, 1, runs)
		})
	}
}

// TestJobThatWasCreatedIsStartedOnce: the agent died between the two, or after it had sent the start that the engine has yet to perform.
func TestJobThatWasCreatedIsStartedOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		late time.Duration // when the engine performs the start of the agent that died; 0 if that sent none.
	}{{name: "no start was sent"}, {name: "a start is on its way", late: 500 * time.Millisecond}} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, container.Policy{})
			spec, runs := newJob(t, h, "SAY=done")
			spec.Networks = []*agentv1.NetworkAttachment{{Name: h.name + "-a"}, {Name: h.name + "-b"}}
			if _, err := h.Create(t.Context(), "run/job/1", spec); err != nil {
				t.Fatal(err)
			}
			if err := h.lab.docker.NetworkDisconnect(t.Context(), h.name+"-b", spec.GetName(), true); err != nil {
				t.Fatal(err)
			}
			var g errgroup.Group
			if tt.late > 0 {
				g.Go(func() error {
					pause(tt.late)
					return h.lab.docker.ContainerStart(t.Context(), spec.GetName(), dockercontainer.StartOptions{})
				})
			}
			got, err := h.RunJob(t.Context(), "run/job/1", spec)
			if err = errors.Join(err, g.Wait()); err != nil || !strings.HasSuffix(got.GetOutput(), "done\n") {
				t.Errorf("got %v, %v; want the end of the job", got, err)
			}
			wantRuns(t, 1, runs)
			found, err := h.lab.docker.ContainerInspect(t.Context(), spec.GetName())
			if err != nil || found.NetworkSettings.Networks[h.name+"-b"] == nil {
				t.Errorf("got %v, %v; want the second network too", found.NetworkSettings, err)
			}
		})
	}
}

func TestLaterAttemptStopsAnEarlierOne(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec, runs := newJob(t, h, "WORK=1h")
	left, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		_, err := h.RunJob(left, "run/job/9", spec)
		return err
	})
	eventually(t, "1", func() string { return strings.Repeat("1", runs()) })
	cancel() // its agent shut down.
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the call and no outcome", err)
	}
	if all := list(t, h); len(all) != 1 || all[0].GetState() != "running" {
		t.Fatalf("got %v, want the job to go on", all)
	}
	spec.Env = []string{"SAY=second"}
	got, err := h.RunJob(t.Context(), "run/job/10", spec)
	if err != nil || !strings.HasSuffix(got.GetOutput(), "second\n") {
		t.Errorf("got %v, %v; want the end of the later attempt", got, err)
	}
	if all := list(t, h); len(all) != 1 || all[0].GetLabels()["muster.operation"] != "run/job/10" {
		t.Errorf("got %v, want the later attempt's container alone", all)
	}
	wantRuns(t, 2, runs)
}

func TestJobThatIsRemoved(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec, runs := newJob(t, h, "WORK=1h")
	var g errgroup.Group
	g.Go(func() error {
		_, err := h.RunJob(t.Context(), "run/job/1", spec)
		return err
	})
	eventually(t, "1", func() string { return strings.Repeat("1", runs()) })
	if err := h.lab.docker.ContainerRemove(t.Context(), spec.GetName(), dockercontainer.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	// It is killed before it is removed: which of the two is seen is a matter of luck.
	if f, ok := rpcerr.Failure(g.Wait()); !ok || f.GetPermanent() || !strings.Contains(f.GetMessage(), "removed") && !strings.Contains(f.GetMessage(), "told to stop") {
		t.Errorf("got %v, want it told what was done to the job", f)
	}
}

// TestDaemonIsKilledWhileAJobStarts: wherever the daemon was, an attempt runs its job once at most, and success is told only of one that ran.
func TestDaemonIsKilledWhileAJobStarts(t *testing.T) {
	h := newHost(t, container.Policy{})
	for i, after := range []time.Duration{40 * time.Millisecond, 160 * time.Millisecond} {
		spec, runs := newJob(t, h, "SAY=done")
		spec.Name += strconv.Itoa(i)
		var g errgroup.Group
		g.Go(func() error {
			_, err := h.RunJob(t.Context(), "run/job/1", spec)
			return err
		})
		pause(after)
		crash(t, h.lab, 300*time.Millisecond)
		err := g.Wait()
		t.Logf("killed after %s: %v; %d runs", after, err, runs())
		if err != nil {
			f := wantFailureReason(t, err, agentv1.FailureReason_FAILURE_REASON_INTERRUPTED)
			if f.GetPermanent() {
				t.Errorf("got %v, want it not permanent", f)
			}
		}
		if n := runs(); n > 1 || err == nil && n != 1 {
			t.Errorf("the job ran %d times (%v)", n, err)
		}
	}
}

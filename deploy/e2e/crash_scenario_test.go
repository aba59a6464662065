//go:build e2e || crash

package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const nine = "nine"

// scenario is a procedure whose every write is a place to die at. It leaves the fleet as the next one, or its own repetition, may find it.
type scenario struct {
	name string
	// start starts the run and returns it as it was acknowledged; nil if there is nothing to do.
	start func(ctx context.Context, r *rig) (*coordinatorv1.Run, error)
	// during is called while the run goes on, with the run as it is now; nil for nothing.
	during func(ctx context.Context, r *rig, run *coordinatorv1.Run, c *crash) error
	// want is how the run ends.
	want coordinatorv1.RunState
}

func scenarios() []scenario {
	return []scenario{
		{name: "update", start: update(""), want: coordinatorv1.RunState_RUN_STATE_SUCCEEDED},
		{name: "failing update", start: update("gateway"), want: coordinatorv1.RunState_RUN_STATE_ROLLED_BACK},
		{name: "cancelled update", start: update(""), during: cancelHalfway, want: coordinatorv1.RunState_RUN_STATE_CANCELLED},
	}
}

func rigImages() []string { return []string{"nine-app:v1", "nine-app:v2", "nine-app:bad"} }

// nineServices by name, with what each depends on. Services that depend on each other stay on one host, so these are three groups for two hosts.
var nineServices = map[string][]string{
	"db": nil, "auth": {"db"}, "api": {"auth"}, "gateway": {"api"}, "web": {"api"},
	"queue": nil, "mail": {"queue"}, "worker": {"queue"},
	"cache": nil,
}

// composeNine is the stack of nine services with an image each.
func composeNine(images func(service string) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nservices:\n", nine)
	for _, name := range slices.Sorted(maps.Keys(nineServices)) {
		fmt.Fprintf(&b, "  %s:\n    image: %s\n", name, images(name))
		if on := nineServices[name]; len(on) > 0 {
			fmt.Fprintf(&b, "    depends_on: [%s]\n", strings.Join(on, ", "))
		}
		copies := 1
		if name == "cache" {
			copies = rigHosts
		}
		fmt.Fprintf(&b, "    deploy: {replicas: %d, update_config: {parallelism: 1, order: start-first, monitor: 1ms, failure_action: rollback}}\n", copies)
	}
	return b.String()
}

// update rolls all services to the version that does not run; one of them may be given an image that never becomes healthy.
func update(broken string) func(context.Context, *rig) (*coordinatorv1.Run, error) {
	return func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
		now, err := r.version(ctx)
		if err != nil {
			return nil, err
		}
		next := map[string]string{"": "v1", "v1": "v2", "v2": "v1"}[now]
		return r.apply(ctx, composeNine(func(service string) string {
			if service == broken {
				return "nine-app:bad"
			}
			return "nine-app:" + next
		}))
	}
}

func (r *rig) apply(ctx context.Context, compose string) (*coordinatorv1.Run, error) {
	resp, err := r.stacks.ApplyStack(ctx, &coordinatorv1.ApplyStackRequest{
		RequestId: r.requestID(),
		Source: &coordinatorv1.StackSource{
			ComposeFiles: []string{"compose.yaml"}, Files: []*coordinatorv1.StackFile{{Path: "compose.yaml", Content: []byte(compose)}},
		},
	})
	return resp.GetRun(), err
}

// cancelHalfway cancels the run once.
func cancelHalfway(ctx context.Context, r *rig, run *coordinatorv1.Run, c *crash) error {
	if c.cancelled || run.GetStepsSettled()*2 < run.GetStepsTotal() {
		return nil
	}
	c.cancelled = true
	_, err := r.runs.CancelRun(ctx, &coordinatorv1.CancelRunRequest{RunId: run.GetId(), RequestId: r.requestID(), Reason: "scenario"})
	c.cancelAcked = time.Now()
	return err
}

// resume is the start of a scenario whose run was started already.
func resume(run *coordinatorv1.Run) func(context.Context, *rig) (*coordinatorv1.Run, error) {
	return func(context.Context, *rig) (*coordinatorv1.Run, error) { return run, nil }
}

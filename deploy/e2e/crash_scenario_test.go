//go:build e2e || crash

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	nine   = "nine"
	moving = "moving"
)

// scenario is a procedure whose every write is a place to die at. It leaves the fleet as the next one, or its own repetition, may find it.
type scenario struct {
	name  string
	stack string
	// prepare makes what the scenario begins with, before anybody is killed; nil for nothing.
	prepare func(ctx context.Context, r *rig) error
	// swapped says that the second host plays the first one's part and the other way round; nil for never.
	swapped func(ctx context.Context, r *rig) (bool, error)
	// start starts the run and returns it as it was acknowledged; nil if there is nothing to do.
	start func(ctx context.Context, r *rig) (*coordinatorv1.Run, error)
	// during is called while the run goes on, with the run as it is now; nil for nothing.
	during func(ctx context.Context, r *rig, run *coordinatorv1.Run, c *crash) error
	// away is how many instances of a service may be down at a time.
	away int
	// want is how the run ends.
	want coordinatorv1.RunState
}

func scenarios() []scenario {
	const succeeded = coordinatorv1.RunState_RUN_STATE_SUCCEEDED
	return []scenario{
		{name: "update", stack: nine, prepare: scaledTo(rigCopies), start: update("", ""), want: succeeded},
		{name: "failing update", stack: nine, prepare: scaledTo(rigCopies), start: update("gateway", "bad"), want: coordinatorv1.RunState_RUN_STATE_ROLLED_BACK},
		{
			name: "cancelled update", stack: nine, prepare: scaledTo(rigCopies), start: update("gateway", "slow"), during: cancelHalfway,
			want: coordinatorv1.RunState_RUN_STATE_CANCELLED,
		},
		{name: "scale up", stack: nine, prepare: scaledTo(rigCopies), start: scale(rigCopies + 2), want: succeeded},
		{name: "scale down", stack: nine, prepare: scaledTo(rigCopies + 2), start: scale(rigCopies), want: succeeded},
		{name: "drain", stack: moving, prepare: movable, swapped: onSecond, start: drain, want: succeeded},
		{name: "maintenance", stack: spheroseg, prepare: maintainable, start: maintain, during: approve, away: 1, want: succeeded},
	}
}

// rigCopies is the number of instances of the service that is scaled.
const rigCopies = 2

func rigImages() []string {
	return []string{"nine-app:v1", "nine-app:v2", "nine-app:bad", "nine-app:slow"}
}

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
			copies = rigCopies
		}
		fmt.Fprintf(&b, "    deploy: {replicas: %d, update_config: {parallelism: 1, order: start-first, monitor: 1ms, failure_action: rollback}}\n", copies)
	}
	return b.String()
}

// update rolls all services to the version that does not run; one of them may be given an image that never becomes healthy.
func update(broken, image string) func(context.Context, *rig) (*coordinatorv1.Run, error) {
	return func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
		now, err := r.version(ctx)
		if err != nil {
			return nil, err
		}
		next := map[string]string{"": "v1", "v1": "v2", "v2": "v1"}[now]
		return r.apply(ctx, composeNine(func(service string) string {
			if service == broken {
				return "nine-app:" + image
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
			Environment: map[string]string{"IMAGE": "nine-app:v1"},
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

// scale changes the number of instances of one service.
func scale(to uint32) func(context.Context, *rig) (*coordinatorv1.Run, error) {
	return func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
		resp, err := coordinatorv1.NewServiceServiceClient(r.client).ScaleService(ctx, &coordinatorv1.ScaleServiceRequest{
			Stack: nine, Service: "cache", Replicas: to, RequestId: r.requestID(),
		})
		return resp.GetRun(), err
	}
}

// scaledTo has so many instances before the scenario begins.
func scaledTo(n uint32) func(context.Context, *rig) error {
	return func(ctx context.Context, r *rig) error {
		got, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: nine})
		if status.Code(err) == codes.NotFound {
			return r.finish(ctx, update("", ""))
		}
		if err != nil {
			return err
		}
		for _, s := range got.GetRelease().GetServices() {
			if s.GetName() == "cache" && s.GetReplicas() == n {
				return nil
			}
		}
		return r.finish(ctx, scale(n))
	}
}

// finish lets a run succeed that is no scenario.
func (r *rig) finish(ctx context.Context, start func(context.Context, *rig) (*coordinatorv1.Run, error)) error {
	f, _, err := r.follow(ctx, scenario{start: start, want: coordinatorv1.RunState_RUN_STATE_SUCCEEDED}, &crash{}, nil)
	if found := f.all(); err == nil && len(found) > 0 {
		err = errors.New(strings.Join(found, "; "))
	}
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	return nil
}

// composeMoving is the stack that leaves hosts: its services depend on each other, so that they are all on one.
func composeMoving() string {
	return `name: moving
services:
  store: {image: "nine-app:v1"}
  front: {image: "nine-app:v1", depends_on: [store]}
  side: {image: "nine-app:v1", depends_on: [front]}
`
}

// uncordon lets every host take instances again.
func (r *rig) uncordon(ctx context.Context) error {
	hosts := coordinatorv1.NewHostServiceClient(r.client)
	list, err := hosts.ListHosts(ctx, &coordinatorv1.ListHostsRequest{})
	if err != nil {
		return err
	}
	for _, h := range list.GetHosts() {
		if !h.GetCordoned() {
			continue
		}
		if _, err := hosts.UncordonHost(ctx, &coordinatorv1.UncordonHostRequest{Host: h.GetName(), RequestId: r.requestID()}); err != nil {
			return err
		}
	}
	return nil
}

// movable deploys the stack that moves, once.
func movable(ctx context.Context, r *rig) error {
	_, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: moving})
	if status.Code(err) == codes.NotFound {
		return r.finish(ctx, func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) { return r.apply(ctx, composeMoving()) })
	}
	return err
}

// from is the host of the stack that moves.
func from(ctx context.Context, r *rig) (string, error) {
	got, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: moving})
	if err != nil {
		return "", err
	}
	return got.GetRelease().GetAssignments()[0].GetHost(), nil
}

func onSecond(ctx context.Context, r *rig) (bool, error) {
	host, err := from(ctx, r)
	return host == "h2", err
}

// drain moves the stack off its host.
func drain(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
	host, err := from(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := coordinatorv1.NewHostServiceClient(r.client).DrainHost(ctx, &coordinatorv1.DrainHostRequest{Host: host, Stack: moving, RequestId: r.requestID()})
	return resp.GetRun(), err
}

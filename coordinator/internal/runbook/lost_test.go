package runbook_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// again makes the release that replaces one lost container of a release, or drops its slot.
func again(before *coordinatorv1.Release, lost string, drop bool) *coordinatorv1.Release {
	after := &coordinatorv1.Release{Stack: "shop", Number: before.GetNumber() + 1, Services: before.GetServices()}
	for _, a := range before.GetAssignments() {
		if a.GetContainer() != lost {
			after.Assignments = append(after.Assignments, a)
			continue
		}
		if !drop {
			after.Assignments = append(after.Assignments, &coordinatorv1.Assignment{
				Service: a.GetService(), Slot: a.GetSlot(), Host: a.GetHost(), HostAddress: a.GetHostAddress(), Release: after.GetNumber(),
				Container: stack.ContainerName("shop", a.GetService(), a.GetSlot(), after.GetNumber()),
				Ports:     []*agentv1.PortBinding{{HostPort: 29999, ContainerPort: 8080, Protocol: "tcp"}},
			})
		}
	}
	return after
}

func TestLostContainerLeavesTheProxy(t *testing.T) {
	const lost = "shop.web.2.r1"
	for _, drop := range []bool{false, true} {
		for _, fail := range []bool{false, true} {
			before := release(1, nil, service{name: "web", replicas: 3, order: "start-first", parallelism: 1, routed: true, version: 1})
			after := again(before, lost, drop)
			rollout := runbook.Rollout{
				Title: "test", Before: before, After: after, Proxies: []string{"h1"}, Lost: map[string]bool{lost: true},
				Leftovers: []runbook.Leftover{{Host: "h2", Container: "shop.web.9.r0"}}, Specs: map[string]*agentv1.ContainerSpec{},
			}
			for _, a := range after.GetAssignments() {
				if a.GetRelease() == 2 {
					rollout.Specs[a.GetContainer()] = stack.Spec("shop", after.GetServices()[0], a, nil)
				}
			}
			p, err := runbook.RollingUpdate(rollout)
			if err != nil {
				t.Fatal(err)
			}
			f := newFleet(t, before, after)
			f.put(before)
			f.running["shop.web.9.r0"] = false
			delete(f.running, lost)
			gone := f.at[lost]
			delete(f.at, lost) // The proxy still leads to it, which is what the plan must end.
			got := f.run(1, p, func(id string) bool { return fail && strings.HasSuffix(id, "/watch") })
			want := coordinatorv1.RunState_RUN_STATE_SUCCEEDED
			if fail && !drop {
				want = coordinatorv1.RunState_RUN_STATE_ROLLED_BACK
			}
			if got != want {
				t.Fatalf("drop %t, fail %t: %s, want %s", drop, fail, got, want)
			}
			if f.upstream[gone] {
				t.Errorf("drop %t, fail %t: the proxy still leads to the lost container", drop, fail)
			}
			if _, left := f.running["shop.web.9.r0"]; left == (want == coordinatorv1.RunState_RUN_STATE_SUCCEEDED) {
				t.Errorf("drop %t, fail %t: leftover present: %t", drop, fail, left)
			}
		}
	}
}

func TestDelayComesOnceAndBeforeWhatIsNoticed(t *testing.T) {
	for _, routed := range []bool{false, true} {
		services := []service{{name: "db", replicas: 3, order: "stop-first", parallelism: 1, routed: routed, version: 1}}
		before := release(1, nil, services...)
		services[0].version = 2
		after := release(2, before, services...)
		after.Services[0].Update.Delay = durationpb.New(10 * time.Minute)
		p := plan(t, before, after)
		for _, step := range p.GetSteps() {
			first := strings.HasSuffix(step.GetId(), "/stop")
			if routed {
				first = strings.Contains(step.GetId(), "/unroute@")
			}
			want := first && !strings.HasPrefix(step.GetId(), "db.1/")
			if got := step.GetDelay().AsDuration() > 0; got != want {
				t.Errorf("routed %t: step %s has delay %s", routed, step.GetId(), step.GetDelay().AsDuration())
			}
		}
		if got := p.GetMaxDuration().AsDuration(); got < 80*time.Minute {
			t.Errorf("the run has %s, and its delays take 20 min of it", got)
		}
		if state.Definition(p, "db.2/stop") == nil {
			t.Error("no such step")
		}
	}
}

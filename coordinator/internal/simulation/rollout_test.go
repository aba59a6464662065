package simulation

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// shop is the stack that the planner of rolling updates works on.
const shop = "shop"

// services of the stack: one for each order in which instances can be replaced, and one that needs another.
func services(version uint64) []*coordinatorv1.Service {
	service := func(name, order string, replicas, parallelism uint32, needs string) *coordinatorv1.Service {
		s := &coordinatorv1.Service{
			Name: name, Replicas: replicas, Image: "app", Template: &agentv1.ContainerSpec{Image: fmt.Sprintf("app@sha256:%064d", version)},
			Gate:   &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 8080}}},
			Update: &coordinatorv1.UpdatePolicy{Parallelism: parallelism, Order: order, Monitor: durationpb.New(time.Second)},
		}
		if needs != "" {
			s.DependsOn = []*coordinatorv1.Dependency{{Service: needs, Condition: "service_healthy"}}
		}
		return s
	}
	return []*coordinatorv1.Service{service("db", "stop-first", 2, 1, ""), service("web", "start-first", 3, 2, "db")}
}

// nextRelease replaces every instance, on the hosts on which they are.
func nextRelease(number uint64, hosts []*host) *coordinatorv1.Release {
	r := &coordinatorv1.Release{Stack: shop, Number: number, Services: services(number)}
	for i, s := range r.GetServices() {
		for slot := range s.GetReplicas() {
			r.Assignments = append(r.Assignments, &coordinatorv1.Assignment{
				Service: s.GetName(), Slot: slot + 1, Host: hosts[(int(slot)+i)%len(hosts)].name, Release: number, HostAddress: "10.0.0.1",
				Container: stack.ContainerName(shop, s.GetName(), slot+1, number),
				Ports:     []*agentv1.PortBinding{{HostPort: 20000 + uint32(number)*100 + uint32(i)*10 + slot, ContainerPort: 8080, Protocol: "tcp"}},
			})
		}
	}
	return r
}

// rollOut starts a rolling update from what a coordinator holds for the present. One that is made from an old state is refused.
func (c *crowd) rollOut(ctx context.Context, rng *rand.Rand) {
	n := c.sim.anyNode(rng)
	if n == nil {
		return
	}
	view := n.state.View()
	before, present := view.CurrentRelease(shop), view.Stack(shop)
	after := nextRelease(present.GetLastRelease()+1, c.sim.hosts)
	specs := map[string]*agentv1.ContainerSpec{}
	for _, a := range after.GetAssignments() {
		i := slices.IndexFunc(after.GetServices(), func(s *coordinatorv1.Service) bool { return s.GetName() == a.GetService() })
		specs[a.GetContainer()] = stack.Spec(shop, after.GetServices()[i], a, nil)
	}
	plan, err := runbook.RollingUpdate(runbook.Rollout{Title: "roll out", Before: before, After: after, Specs: specs})
	if err != nil {
		c.sim.history.blame("the planner refuses an update: %v", err)
		return
	}
	_, _, _ = c.propose(ctx, rng, &raftv1.Command{ // What was told is kept.
		Actor: "starter", Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan, Release: after, StackRevision: present.GetRevision(), Reason: "simulation"}},
	})
}

// instances reads from the log which containers belong to which service of the stack.
func (e *evidence) instances() map[string]string {
	found := map[string]string{}
	for _, x := range e.log {
		for _, a := range x.command.GetStartRun().GetRelease().GetAssignments() {
			found[a.GetContainer()] = a.GetService()
		}
	}
	return found
}

// gaveUp is the number of the first entry in which a run on the stack was left as it was by a human; 0 for none.
func (e *evidence) gaveUp() (seq int64) {
	e.walk(func(x *entry, _ *book) {
		for _, r := range x.runs {
			if r.GetStack() == shop && r.GetState() == coordinatorv1.RunState_RUN_STATE_FAILED && seq == 0 {
				seq = x.seq
			}
		}
	})
	return seq
}

// floorHolds: from the first release on, never fewer instances of a service run than its update policy allows to be away, whatever fails, dies or
// is taken back, until somebody gives a rollback up.
func floorHolds(e *evidence) (found []string) {
	service, floor := e.instances(), map[string]int{}
	for _, s := range services(0) {
		floor[s.GetName()] = int(s.GetReplicas())
		if s.GetUpdate().GetOrder() == "stop-first" {
			floor[s.GetName()] -= int(s.GetUpdate().GetParallelism())
		}
	}
	var from int64
	e.walk(func(x *entry, _ *book) {
		for _, r := range x.runs {
			if r.GetStack() == shop && r.GetCommitted() && from == 0 {
				from = x.seq
			}
		}
	})
	until, running := e.gaveUp(), map[string]map[string]bool{}
	for _, f := range bySeq(e.facts) {
		name := service[f.container]
		if f.deed != effected || name == "" || until > 0 && f.seq > until {
			continue
		}
		if running[name] == nil {
			running[name] = map[string]bool{}
		}
		switch _, verb, _ := strings.Cut(f.method, "/"); verb {
		case "StartContainer":
			running[name][f.container] = true
		case "StopContainer", "RemoveContainer":
			delete(running[name], f.container)
		}
		if from > 0 && f.seq > from && len(running[name]) < floor[name] {
			found = append(found, fmt.Sprintf("%v leaves %d instances of %s, the floor is %d", f, len(running[name]), name, floor[name]))
		}
	}
	return found
}

// theReleaseRuns: in the end exactly the containers of the current release run: none is missing, none is left over.
func theReleaseRuns(e *evidence) (found []string) {
	if e.gaveUp() > 0 || !e.settled {
		return nil
	}
	_, end := replay(e.log, "reader", e.bugs.apply)
	wanted := map[string]bool{}
	for _, a := range end.View().CurrentRelease(shop).GetAssignments() {
		wanted[a.GetContainer()] = true
	}
	for _, name := range slices.Sorted(maps.Keys(e.instances())) {
		switch {
		case wanted[name] && !e.running[name]:
			found = append(found, fmt.Sprintf("%s of the current release does not run", name))
		case !wanted[name] && e.running[name]:
			found = append(found, fmt.Sprintf("%s runs, and the current release does not have it", name))
		}
	}
	return found
}

// updates counts the rolling updates that ended in each way.
func (e *evidence) updates() map[coordinatorv1.RunState]int {
	ends := map[coordinatorv1.RunState]int{}
	for _, r := range e.walk(func(*entry, *book) {}).runs {
		if r.GetStack() == shop && state.Terminal(r.GetState()) {
			ends[r.GetState()]++
		}
	}
	return ends
}

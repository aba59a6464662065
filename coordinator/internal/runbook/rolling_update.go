package runbook

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	rolloutTime = time.Hour
	defaultGate = 5 * time.Minute
	defaultStop = 10 * time.Second
	defaultWait = 30 * time.Second
	waveTime    = time.Minute
)

// Rollout is a way from one release to the next, decided but for the order of the steps.
type Rollout struct {
	// Title of the plan.
	Title string
	// Before is the release that runs; nil for none.
	Before *coordinatorv1.Release
	// After is the release that is put in place.
	After *coordinatorv1.Release
	// Specs of the containers to create, by their names.
	Specs map[string]*agentv1.ContainerSpec
	// Proxies are the hosts whose agents drive a proxy.
	Proxies []string
	// Lost are containers of Before that do not run any more, by their names.
	Lost map[string]bool
	// Stopped are containers of both releases that rest on their hosts: they are started again.
	Stopped map[string]bool
	// Delay between waves, instead of that of the services' updates; 0 for theirs.
	Delay time.Duration
	// Leftovers are containers on their hosts that no release accounts for: they are removed at the end.
	Leftovers []Leftover
	// Notes for the operator.
	Notes []string
	// Procedure that makes the plan; empty means "rolling-update".
	Procedure string
	// Drain is the host that the instances leave; empty for none.
	Drain string
	// Cut says that the drained host does not answer: nothing is done there, and its containers are given up.
	Cut bool
	// Deadline of a drain, after which it stops and asks.
	Deadline time.Duration
}

// Leftover is a container that an earlier run left on a host.
type Leftover struct{ Host, Container string }

// unit is one slot of a service on its way: from an old container, or none, to a new one, or none.
type unit struct {
	group    string
	service  *coordinatorv1.Service // as released after; for a slot that goes, as released before
	previous *coordinatorv1.Service // as released before; nil for a new slot
	from, to *coordinatorv1.Assignment
	lost     bool // the old container does not run any more, or its host does not answer: only its route is left
	rests    bool // the container stays and is stopped: it is started again
}

// rollout is a Rollout while its plan is made.
type rollout struct {
	Rollout
	plan  *coordinatorv1.Plan
	pulls map[[2]string]string // steps by host and image
	ready map[string][]string  // steps by service after which it serves
}

// RollingUpdate makes the plan: services in the order of their dependencies, every image pulled before anything is touched, and for each
// instance start-first: create, start, ready, routed, old drained, old stopped, watched; stop-first where two cannot coexist.
// Old containers stay, stopped, until the release is in place, so that going back is a start.
func RollingUpdate(r Rollout) (*coordinatorv1.Plan, error) {
	name := r.After.GetStack()
	b := &rollout{Rollout: r, ready: map[string][]string{}, plan: &coordinatorv1.Plan{
		Procedure: cmp.Or(r.Procedure, "rolling-update"), Title: r.Title, Stack: name, Locks: []string{"stack/" + name}, Notes: r.Notes,
		ActivateRelease: r.After.GetNumber(), Changes: stack.Diff(r.Before, r.After),
	}}
	order, err := dependencyOrder(r.After.GetServices())
	if err != nil {
		return nil, err
	}
	units := b.units(order)
	b.pullImages(units)
	for _, service := range order {
		b.replaceInstances(service, units[service.GetName()])
	}
	b.removeInstances(units)
	b.removeLeftovers()
	b.plan.MaxDuration = durationpb.New(b.patience(order, units))
	if r.Drain != "" {
		b.drainTerms()
	}
	if err := Seal(b.plan); err != nil {
		return nil, err
	}
	return b.plan, nil
}

// dependencyOrder sorts services so that each comes after those that it depends on.
func dependencyOrder(services []*coordinatorv1.Service) ([]*coordinatorv1.Service, error) {
	byName := map[string]*coordinatorv1.Service{}
	for _, service := range services {
		byName[service.GetName()] = service
	}
	var order []*coordinatorv1.Service
	done, open := map[string]bool{}, map[string]bool{}
	var visit func(service *coordinatorv1.Service) error
	visit = func(service *coordinatorv1.Service) error {
		if done[service.GetName()] {
			return nil
		}
		if open[service.GetName()] {
			return fmt.Errorf("service %s depends on itself through depends_on", service.GetName())
		}
		open[service.GetName()] = true
		for _, dependency := range service.GetDependsOn() {
			if on := byName[dependency.GetService()]; on != nil {
				if err := visit(on); err != nil {
					return err
				}
			}
		}
		done[service.GetName()] = true
		order = append(order, service)
		return nil
	}
	for _, service := range services {
		if err := visit(service); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// units pairs the slots before with those after, by service. A slot whose container stays is no unit. Services that go come under their own names.
func (b *rollout) units(order []*coordinatorv1.Service) map[string][]unit {
	before, previous := map[string]*coordinatorv1.Assignment{}, map[string]*coordinatorv1.Service{}
	for _, a := range b.Before.GetAssignments() {
		before[state.GroupOf(a)] = a
	}
	for _, service := range b.Before.GetServices() {
		previous[service.GetName()] = service
	}
	services := map[string]*coordinatorv1.Service{}
	for _, service := range order {
		services[service.GetName()] = service
	}
	found, kept := map[string][]unit{}, map[string]bool{}
	for _, to := range b.After.GetAssignments() {
		group := state.GroupOf(to)
		kept[group] = true
		u := unit{group: group, service: services[to.GetService()], previous: previous[to.GetService()], from: before[group], to: to}
		if u.from.GetContainer() == to.GetContainer() {
			if !b.Stopped[to.GetContainer()] {
				continue
			}
			u.rests = true
		}
		u.lost = u.from != nil && b.isLost(u.from)
		found[to.GetService()] = append(found[to.GetService()], u)
	}
	for _, from := range b.Before.GetAssignments() {
		if group := state.GroupOf(from); !kept[group] {
			service := previous[from.GetService()]
			found[from.GetService()] = append(found[from.GetService()], unit{
				group: group, service: service, previous: service, from: from, lost: b.isLost(from),
			})
		}
	}
	for name := range found {
		slices.SortFunc(found[name], func(x, y unit) int { return cmp.Compare(x.slot(), y.slot()) })
	}
	return found
}

func (u unit) slot() uint32 { return max(u.from.GetSlot(), u.to.GetSlot()) }

func (b *rollout) add(step *coordinatorv1.Step) string {
	slices.Sort(step.After)
	step.After = slices.Compact(step.After)
	b.plan.Steps = append(b.plan.Steps, step)
	return step.GetId()
}

// pullImages makes sure that every host has what it will run before anything is touched.
func (b *rollout) pullImages(units map[string][]unit) {
	wanted := map[[2]string]bool{}
	for _, us := range units {
		for _, u := range us {
			if u.to != nil && !u.rests {
				wanted[[2]string{u.to.GetHost(), b.Specs[u.to.GetContainer()].GetImage()}] = true
			}
		}
	}
	keys := make([][2]string, 0, len(wanted))
	for key := range wanted {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(x, y [2]string) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) })
	b.pulls = map[[2]string]string{}
	for i, key := range keys {
		b.pulls[key] = b.add(&coordinatorv1.Step{
			Id: fmt.Sprintf("pull.%d", i+1), Title: fmt.Sprintf("pull %s on %s", shortImage(key[1]), key[0]), Host: key[0],
			Action:  action("ContainerService/PullImage", &agentv1.PullImageRequest{Image: key[1]}),
			Timeout: seconds(10 * time.Minute), MaxAttempts: 3, RetryDelay: seconds(2 * time.Second),
		})
	}
}

// pullOf returns the step that pulls a unit's own image.
func (b *rollout) pullOf(u unit) []string {
	return []string{b.pulls[[2]string{u.to.GetHost(), b.Specs[u.to.GetContainer()].GetImage()}]}
}

// allPulls returns every pull of the plan: no running instance is touched before all of them.
func (b *rollout) allPulls() []string {
	pulls := make([]string, 0, len(b.pulls))
	for _, step := range b.pulls {
		pulls = append(pulls, step)
	}
	return pulls
}

func shortImage(image string) string {
	for i := len(image) - 1; i >= 0; i-- {
		if image[i] == ':' && len(image)-i > 20 {
			return image[:i+13]
		}
	}
	return image
}

// replaceInstances plans the slots of one service that get a new container: new slots at once, replaced ones in waves.
func (b *rollout) replaceInstances(service *coordinatorv1.Service, units []unit) {
	budget := &coordinatorv1.FailureBudget{
		Name: service.GetName(), MaxFailureRatio: service.GetUpdate().GetMaxFailureRatio(), FailureAction: service.GetUpdate().GetFailureAction(),
	}
	before := b.dependencies(service)
	var replaced []unit
	for _, u := range units {
		if u.to == nil {
			continue
		}
		budget.Groups = append(budget.Groups, u.group)
		if u.rests {
			b.startAgain(u, before)
			continue
		}
		if u.from == nil || u.lost {
			b.startFirst(u, place{create: b.pullOf(u), start: before})
			continue
		}
		replaced = append(replaced, u)
	}
	if len(budget.Groups) > 0 {
		b.plan.Budgets = append(b.plan.Budgets, budget)
	}
	stopFirst := service.GetUpdate().GetOrder() == "stop-first"
	wave := admission{parallelism: b.parallelism(service.GetName(), len(replaced)), delay: cmp.Or(b.Delay, service.GetUpdate().GetDelay().AsDuration())}
	for i, u := range replaced {
		at := wave.at(i)
		at.start = append(at.start, before...)
		if len(at.create) == 0 {
			at.create = b.allPulls()
		}
		var ends ends
		if stopFirst && !b.movesStartFirst(u) {
			ends = b.stopFirst(u, at)
		} else {
			ends = b.startFirst(u, at)
		}
		wave.record(ends)
	}
}

// dependencies of a service: the steps after which those that it depends on serve. Only services that this plan changes have any.
func (b *rollout) dependencies(service *coordinatorv1.Service) []string {
	var steps []string
	for _, dependency := range service.GetDependsOn() {
		steps = append(steps, b.ready[dependency.GetService()]...)
	}
	return steps
}

// startFirst plans one slot whose new container serves before its old one, if it has one, is stopped.
func (b *rollout) startFirst(u unit, at place) ends {
	created := b.create(u, at.create)
	started := b.start(u, append([]string{created}, at.start...), at.delay)
	ready := b.awaitReady(u, started)
	routed := b.route(u, "route", []string{ready}, upstream(u.service, u.to), upstream(u.previous, u.from))
	b.watch(u, ready)
	b.ready[u.to.GetService()] = append(b.ready[u.to.GetService()], routed...)
	e := ends{started: started, serves: routed, gone: routed}
	if u.from != nil && !u.lost {
		e.gone = []string{b.stop(u, b.drain(u, routed))}
		b.remove(u)
	}
	return e
}

// stopFirst plans one slot whose containers cannot coexist.
func (b *rollout) stopFirst(u unit, at place) ends {
	created := b.create(u, at.create)
	unrouted := b.route(u, "unroute", append([]string{created}, at.start...), "", upstream(u.previous, u.from))
	stopped := b.stop(u, b.drain(u, unrouted))
	b.delayFirst(u, unrouted, stopped, at.delay)
	started := b.start(u, []string{stopped}, 0)
	ready := b.awaitReady(u, started)
	routed := b.route(u, "route", []string{ready}, upstream(u.service, u.to), "")
	b.watch(u, ready)
	b.remove(u)
	b.ready[u.to.GetService()] = append(b.ready[u.to.GetService()], routed...)
	return ends{started: started, serves: routed, gone: routed}
}

// startAgain plans one slot whose container is there and does not run.
func (b *rollout) startAgain(u unit, after []string) {
	ready := b.awaitReady(u, b.start(u, after, 0))
	routed := b.route(u, "route", []string{ready}, upstream(u.service, u.to), "")
	b.watch(u, ready)
	b.ready[u.to.GetService()] = append(b.ready[u.to.GetService()], routed...)
}

// delayFirst puts the delay of a wave before the first thing that anybody notices of an instance that goes.
func (b *rollout) delayFirst(u unit, unrouted []string, stopped string, delay time.Duration) {
	if delay <= 0 {
		return
	}
	first := []string{stopped}
	if upstream(u.previous, u.from) != "" && len(b.Proxies) > 0 {
		first = unrouted
	}
	for _, id := range first {
		b.step(id).Delay = durationpb.New(delay)
	}
}

// removeInstances plans the slots that go, after everything that comes, in waves like those of an update.
func (b *rollout) removeInstances(units map[string][]unit) {
	var all []string
	for _, steps := range b.ready {
		all = append(all, steps...)
	}
	names := make([]string, 0, len(units))
	for name := range units {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		var budget *coordinatorv1.FailureBudget
		var going []unit
		for _, u := range units[name] {
			if u.to == nil {
				going = append(going, u)
			}
		}
		wave := admission{parallelism: b.parallelism(name, len(going))}
		for i, u := range going {
			if budget == nil {
				budget = &coordinatorv1.FailureBudget{Name: name + " removal", FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK}
				b.plan.Budgets = append(b.plan.Budgets, budget)
			}
			budget.Groups = append(budget.Groups, u.group)
			unrouted := b.route(u, "unroute", append(wave.at(i).start, all...), "", upstream(u.previous, u.from))
			gone := unrouted
			if !u.lost {
				gone = []string{b.stop(u, b.drain(u, unrouted))}
				b.remove(u)
			}
			wave.record(ends{serves: gone, gone: gone})
		}
	}
}

// parallelism of a service's update, at most n; that of a service which goes is its former one.
func (b *rollout) parallelism(name string, n int) int {
	for _, services := range [][]*coordinatorv1.Service{b.After.GetServices(), b.Before.GetServices()} {
		for _, service := range services {
			if p := int(service.GetUpdate().GetParallelism()); service.GetName() == name && p > 0 {
				return min(p, n)
			} else if service.GetName() == name {
				return n
			}
		}
	}
	return n
}

// removeLeftovers plans the removal of what earlier runs left behind.
func (b *rollout) removeLeftovers() {
	for _, left := range b.Leftovers {
		b.add(&coordinatorv1.Step{
			Id: "leftover/" + left.Container, Title: fmt.Sprintf("remove %s on %s, which no release accounts for", left.Container, left.Host),
			Host: left.Host, CleanUp: true, Timeout: seconds(time.Minute), MaxAttempts: 3, RetryDelay: seconds(2 * time.Second),
			Action: action("ContainerService/RemoveContainer", &agentv1.RemoveContainerRequest{Name: left.Container}),
		})
	}
}

// patience is the time after which a run of this plan has failed: what its own delays and watches take, and an hour.
func (b *rollout) patience(services []*coordinatorv1.Service, units map[string][]unit) time.Duration {
	total := rolloutTime
	for _, service := range services {
		parallelism := max(1, int(service.GetUpdate().GetParallelism()))
		waves := (len(units[service.GetName()]) + parallelism - 1) / parallelism
		total += time.Duration(waves)*(cmp.Or(b.Delay, service.GetUpdate().GetDelay().AsDuration())+waveTime) + service.GetUpdate().GetMonitor().AsDuration()
	}
	return total
}

func (b *rollout) step(id string) *coordinatorv1.Step {
	for _, step := range b.plan.GetSteps() {
		if step.GetId() == id {
			return step
		}
	}
	return nil
}

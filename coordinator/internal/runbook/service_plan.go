package runbook

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// The steps of the verbs that leave the containers as they are.

// build makes the steps of the verb.
func (o *operation) build() error {
	o.plan.MaxDuration = durationpb.New(rolloutTime)
	var err error
	switch o.req.GetVerb() {
	case coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART:
		err = o.restart()
	case coordinatorv1.ServiceVerb_SERVICE_VERB_STOP:
		o.stopAll()
	case coordinatorv1.ServiceVerb_SERVICE_VERB_START:
		err = o.startAll()
	case coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD:
		err = o.reload()
	case coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL:
		err = o.signalAll()
	}
	return err
}

func (o *operation) unit(m *member) unit {
	return unit{group: groupOf(m), service: o.service, previous: o.service, from: m.assignment, to: m.assignment, lost: !m.runs()}
}

func groupOf(m *member) string {
	return fmt.Sprintf("%s.%d", m.assignment.GetService(), m.assignment.GetSlot())
}

func (o *operation) note(format string, args ...any) {
	o.plan.Notes = append(o.plan.Notes, fmt.Sprintf(format, args...))
}

// running counts the instances of the service that run, selected or not.
func (o *operation) running() int {
	n := 0
	for _, m := range o.members {
		if m.runs() {
			n++
		}
	}
	return n
}

// runningOf returns the selected instances that run.
func (o *operation) runningOf() []*member {
	var out []*member
	for _, m := range o.selected {
		if m.runs() {
			out = append(out, m)
		}
	}
	return out
}

// budget lets the groups that the plan touches fail as far as the service's update may.
func (o *operation) budget(members []*member, action coordinatorv1.FailureAction) {
	budget := &coordinatorv1.FailureBudget{
		Name: o.service.GetName(), MaxFailureRatio: o.service.GetUpdate().GetMaxFailureRatio(), FailureAction: action,
	}
	for _, m := range members {
		budget.Groups = append(budget.Groups, groupOf(m))
	}
	if len(members) > 0 {
		o.plan.Budgets = append(o.plan.Budgets, budget)
	}
}

// change tells what happens to how many instances.
func (o *operation) change(before, after, parallelism int) {
	change := &coordinatorv1.ServiceChange{
		Service: o.service.GetName(), Kind: coordinatorv1.ChangeKind_CHANGE_KIND_NONE,
		InstancesBefore: uint32(before), InstancesAfter: uint32(after), Parallelism: uint32(parallelism),
	}
	if len(o.plan.GetSteps()) > 0 {
		change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE
	}
	o.plan.Changes = append(o.plan.Changes, change)
}

// waves returns how many instances may be away at a time, and gives the run the time that its waves take. At least one instance goes on serving,
// if there is more than one.
func (o *operation) waves(instances int, each time.Duration) int {
	parallelism, running := int(o.service.GetUpdate().GetParallelism()), o.running()
	if parallelism == 0 || parallelism > instances {
		parallelism = instances
	}
	if o.req.GetVerb() == coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART && parallelism == running && running > 1 {
		parallelism = running - 1
		o.note("all %d instances at a time would leave none to serve: %d at a time are restarted", running, parallelism)
	}
	parallelism = max(1, parallelism)
	count := (instances + parallelism - 1) / parallelism
	o.plan.MaxDuration = durationpb.New(rolloutTime + time.Duration(count)*(o.delay+waveTime+each) + o.service.GetUpdate().GetMonitor().AsDuration())
	return parallelism
}

// restart stops and starts the containers in waves. What does not run has only to be started.
func (o *operation) restart() error {
	if err := o.checkPresent(); err != nil {
		return err
	}
	running := o.runningOf()
	parallelism := o.waves(len(running), 0)
	o.budget(o.selected, o.service.GetUpdate().GetFailureAction())
	wave := admission{parallelism: parallelism, delay: o.delay}
	for i, m := range running {
		wave.record(o.bounce(m, wave.at(i)))
	}
	for _, m := range o.selected {
		if !m.runs() {
			o.startAgain(o.unit(m), nil)
			o.note("instance %d does not run: it is only started", m.assignment.GetSlot())
		}
	}
	if o.running() == 1 && len(running) == 1 {
		o.note("service %s has one running instance: it does not serve while that is restarted", o.service.GetName())
	}
	o.change(len(running), len(o.selected), parallelism)
	return nil
}

// bounce plans one instance that goes and comes back. Taking it back is bringing it back: one that serves again is left alone, and so is all that was
// restarted before the failure.
func (o *operation) bounce(m *member, at place) ends {
	u := o.unit(m)
	address := upstream(u.service, u.from)
	unrouted := o.route(u, "unroute", at.start, "", address)
	stopped := o.stop(u, o.drain(u, unrouted))
	if !m.serves() { // It cannot be asked to be better than it was.
		o.step(stopped).Undo = o.step(stopped).GetUndo()[:1]
	}
	o.delayFirst(u, unrouted, stopped, at.delay)
	started := o.start(u, []string{stopped}, 0)
	o.step(started).Undo = nil
	ready := o.awaitReady(u, started)
	routed := o.route(u, "route", []string{ready}, address, "")
	for _, id := range routed {
		if id != ready {
			o.step(id).Undo = o.step(id).GetUndo()[:1] // Out of the proxy until it is ready again; its requests go on meanwhile.
		}
	}
	o.watch(u, ready)
	return ends{started: started, serves: routed, gone: routed}
}

// stopAll takes everything out of the route and stops it. The containers stay. One that cannot be stopped serves again, and the operator is asked what
// becomes of the others: to start them all again is seldom what who stops a service wants.
func (o *operation) stopAll() {
	var stopped []*member
	running := o.runningOf()
	for _, m := range o.selected {
		switch {
		case m.container == nil:
			o.note("instance %d is not on host %s: there is nothing to stop", m.assignment.GetSlot(), m.assignment.GetHost())
			continue
		case m.container.GetStopped():
			continue
		}
		u := o.unit(m)
		id := o.stop(u, o.drainOf(m, o.route(u, "unroute", nil, "", upstream(u.service, u.from))))
		switch {
		case !m.runs(): // It ended by itself; what is left to do is that nothing starts it again.
			o.step(id).Undo = nil
		case !m.serves():
			o.step(id).Undo = o.step(id).GetUndo()[:1]
		}
		stopped = append(stopped, m)
	}
	o.budget(stopped, coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE)
	if len(stopped) == 0 {
		o.note("nothing of it runs")
	}
	if left := o.running() - len(running); left == 0 && len(running) > 0 {
		o.note("service %s does not serve until it is started again: `musterctl service start %s/%s`, or the next apply", o.service.GetName(), o.req.GetStack(), o.service.GetName())
	}
	o.change(o.running(), o.running()-len(running), 0)
}

// drainOf drains an instance that runs.
func (o *operation) drainOf(m *member, after []string) []string {
	if !m.runs() {
		return after
	}
	return o.drain(o.unit(m), after)
}

// startAll starts what does not run.
func (o *operation) startAll() error {
	if err := o.checkPresent(); err != nil {
		return err
	}
	var started []*member
	for _, m := range o.selected {
		if !m.runs() {
			o.startAgain(o.unit(m), nil)
			started = append(started, m)
		}
	}
	o.budget(started, o.service.GetUpdate().GetFailureAction())
	if len(started) == 0 {
		o.note("all of it runs")
	}
	o.change(o.running(), o.running()+len(started), 0)
	return nil
}

// reload sends the signal in waves. A gate that passes right after a signal says little, so the next wave waits until the one before was watched.
func (o *operation) reload() error {
	running, err := o.reachable()
	if err != nil {
		return err
	}
	parallelism := o.waves(len(running), o.service.GetUpdate().GetMonitor().AsDuration())
	o.budget(running, o.service.GetUpdate().GetFailureAction())
	wave := admission{parallelism: parallelism, delay: o.delay}
	for i, m := range running {
		u, at := o.unit(m), wave.at(i)
		sent := o.send(m, at.start, coordinatorv1.IfUnknown_IF_UNKNOWN_REPEAT)
		step := o.step(sent)
		if at.delay > 0 {
			step.Delay = durationpb.New(at.delay)
		}
		// A signal cannot be taken back. What can be seen to is that the instance serves, as it did before.
		step.Undo = bringBack(o.service, m.assignment)
		if !m.serves() {
			step.Undo = step.Undo[:1]
		}
		last := o.awaitReady(u, sent)
		o.watch(u, last)
		if watched := u.group + "/watch"; o.step(watched) != nil {
			last = watched
		}
		wave.record(ends{started: sent, serves: []string{last}, gone: []string{last}})
	}
	o.change(o.running(), o.running(), parallelism)
	return nil
}

// signalAll sends the signal to everything that runs, at once.
func (o *operation) signalAll() error {
	running, err := o.reachable()
	if err != nil {
		return err
	}
	for _, m := range running {
		o.send(m, nil, coordinatorv1.IfUnknown_IF_UNKNOWN_ASK)
	}
	o.budget(running, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
	o.note("nothing is checked after the signal, and it cannot be taken back")
	o.change(o.running(), o.running(), 0)
	return nil
}

func (o *operation) send(m *member, after []string, unknown coordinatorv1.IfUnknown) string {
	name, host := m.assignment.GetContainer(), m.assignment.GetHost()
	return o.add(&coordinatorv1.Step{
		Id: groupOf(m) + "/signal", Title: fmt.Sprintf("send %s to %s on %s", o.signal, name, host), After: after, Group: groupOf(m), Host: host,
		Action:  action("ContainerService/SignalContainer", &agentv1.SignalContainerRequest{Name: name, Signal: o.signal}),
		Timeout: seconds(defaultWait), IfUnknown: unknown,
	})
}

// reachable returns the selected instances that can get a signal. Those that were named must be able to.
func (o *operation) reachable() ([]*member, error) {
	var running, deaf []*member
	for _, m := range o.selected {
		if m.container.GetState() == "running" {
			running = append(running, m)
		} else {
			deaf = append(deaf, m)
		}
	}
	if len(deaf) == 0 && len(running) > 0 {
		return running, nil
	}
	if len(running) == 0 || len(o.req.GetSlots()) > 0 {
		if len(deaf) == 0 {
			return nil, invalid("service %s has no instance", o.service.GetName())
		}
		return nil, invalid("instance %s of service %s does not run and can get no signal: `musterctl service start %s/%s` starts it",
			slotsOf(deaf), o.service.GetName(), o.req.GetStack(), o.service.GetName())
	}
	o.note("instance %s does not run and gets no signal", slotsOf(deaf))
	return running, nil
}

// checkPresent refuses instances whose containers are gone: nothing of them can be started.
func (o *operation) checkPresent() error {
	var gone []*member
	for _, m := range o.selected {
		if m.container == nil {
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return invalid("the container of instance %s of service %s is not on its host any more: `musterctl service recreate %s/%s` makes a new one",
		slotsOf(gone), o.service.GetName(), o.req.GetStack(), o.service.GetName())
}

package runbook

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// The steps of one instance. Each returns its id, or the ids that later steps wait for.

func (b *rollout) create(u unit, after []string) string {
	name, host := u.to.GetContainer(), u.to.GetHost()
	return b.add(&coordinatorv1.Step{
		Id: u.group + "/create", Title: fmt.Sprintf("create %s on %s", name, host), After: after, Group: u.group, Host: host,
		Action:  action("ContainerService/CreateContainer", &agentv1.CreateContainerRequest{Spec: b.Specs[name]}),
		Timeout: seconds(2 * time.Minute), MaxAttempts: 2, RetryDelay: seconds(time.Second),
		Undo: []*coordinatorv1.Undo{{
			Title: fmt.Sprintf("remove %s", name), Timeout: seconds(time.Minute),
			Action: action("ContainerService/RemoveContainer", &agentv1.RemoveContainerRequest{Name: name, OwnRunOnly: true}),
		}},
	})
}

func (b *rollout) start(u unit, after []string, delay time.Duration) string {
	name, host := u.to.GetContainer(), u.to.GetHost()
	step := &coordinatorv1.Step{
		Id: u.group + "/start", Title: fmt.Sprintf("start %s on %s", name, host), After: after, Group: u.group, Host: host,
		Action:  action("ContainerService/StartContainer", &agentv1.StartContainerRequest{Name: name}),
		Timeout: seconds(2 * time.Minute), MaxAttempts: 2, RetryDelay: seconds(time.Second),
		Undo: []*coordinatorv1.Undo{stopAction(u.service, u.to)},
	}
	if delay > 0 {
		step.Delay = durationpb.New(delay)
	}
	return b.add(step)
}

func (b *rollout) awaitReady(u unit, started string) string {
	name, host := u.to.GetContainer(), u.to.GetHost()
	return b.add(&coordinatorv1.Step{
		Id: u.group + "/ready", Title: fmt.Sprintf("wait until %s is ready", name), After: []string{started}, Group: u.group, Host: host,
		Action:  action("ContainerService/AwaitReady", &agentv1.AwaitReadyRequest{Name: name, Gate: u.service.GetGate()}),
		Timeout: seconds(gateTime(u.service) + 10*time.Second),
	})
}

// route plans one change of upstreams on every proxy. Without any it returns what it was to come after.
func (b *rollout) route(u unit, verb string, after []string, add, remove string) []string {
	if add == "" && remove == "" {
		return after
	}
	service := u.service
	if service.GetRoute() == nil {
		service = u.previous
	}
	route := &agentv1.Route{
		Name: b.After.GetStack() + "." + service.GetName(), Hosts: service.GetRoute().GetHosts(), PathPrefix: service.GetRoute().GetPathPrefix(),
	}
	forth := &agentv1.UpdateRouteRequest{Route: route, Add: list(add), Remove: list(remove)}
	back := &agentv1.UpdateRouteRequest{Route: route, Add: list(remove), Remove: list(add)}
	if u.lost && !b.cut(u.from) {
		back.Add = nil // Nothing serves there. On a host that is cut off something may, once it is back.
	}
	title := routeTitle(u, add, remove)
	var steps []string
	for _, proxy := range b.Proxies {
		undo := []*coordinatorv1.Undo{{Title: "undo on " + proxy + ": " + title, Action: action("RouteService/UpdateRoute", back), Timeout: seconds(defaultWait)}}
		if add != "" {
			undo = append(undo, drainAction(u.service, u.to))
		}
		steps = append(steps, b.add(&coordinatorv1.Step{
			Id: u.group + "/" + verb + "@" + proxy, Title: title, After: after, Group: u.group, Host: proxy,
			Action: action("RouteService/UpdateRoute", forth), Timeout: seconds(defaultWait), MaxAttempts: 3, RetryDelay: seconds(time.Second), Undo: undo,
		}))
	}
	return steps
}

func routeTitle(u unit, add, remove string) string {
	switch {
	case remove == "":
		return "route requests to " + u.to.GetContainer()
	case add == "":
		return "route no more requests to " + u.from.GetContainer()
	}
	return fmt.Sprintf("route requests to %s instead of %s", u.to.GetContainer(), u.from.GetContainer())
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// drain waits for the requests in flight of an old container. Only a container that was routed can be drained: the others are told by their
// stop signal.
func (b *rollout) drain(u unit, after []string) []string {
	if upstream(u.previous, u.from) == "" || len(b.Proxies) == 0 {
		return after
	}
	undo := drainAction(u.previous, u.from)
	return []string{b.add(&coordinatorv1.Step{
		Id: u.group + "/drain", Title: undo.GetTitle(), After: after, Group: u.group, Host: u.from.GetHost(), Action: undo.GetAction(),
		Timeout: undo.GetTimeout(), MaxAttempts: 2, RetryDelay: seconds(time.Second),
	})}
}

func drainAction(service *coordinatorv1.Service, a *coordinatorv1.Assignment) *coordinatorv1.Undo {
	limit := service.GetDrainLimit().AsDuration()
	if limit <= 0 {
		limit = defaultWait
	}
	return &coordinatorv1.Undo{
		Title: "drain " + a.GetContainer(), Host: a.GetHost(), Timeout: seconds(limit + 10*time.Second),
		Action: action("ContainerService/DrainContainer", &agentv1.DrainContainerRequest{
			Name: a.GetContainer(), Ports: []uint32{service.GetRoute().GetPort()}, Limit: durationpb.New(limit),
		}),
	}
}

func stopAction(service *coordinatorv1.Service, a *coordinatorv1.Assignment) *coordinatorv1.Undo {
	grace := service.GetTemplate().GetStopGrace().AsDuration()
	if grace <= 0 {
		grace = defaultStop
	}
	return &coordinatorv1.Undo{
		Title: "stop " + a.GetContainer(), Host: a.GetHost(), Timeout: seconds(grace + defaultWait),
		Action: action("ContainerService/StopContainer", &agentv1.StopContainerRequest{Name: a.GetContainer(), Grace: durationpb.New(grace)}),
	}
}

// stop stops the old container. Taking that back starts it again and waits until it is ready.
func (b *rollout) stop(u unit, after []string) string {
	name, host, act := u.from.GetContainer(), u.from.GetHost(), stopAction(u.previous, u.from)
	return b.add(&coordinatorv1.Step{
		Id: u.group + "/stop", Title: fmt.Sprintf("stop %s on %s", name, host), After: after, Group: u.group, Host: host,
		Action: act.GetAction(), Timeout: act.GetTimeout(), MaxAttempts: 3, RetryDelay: seconds(time.Second),
		Undo: bringBack(u.previous, u.from),
	})
}

// bringBack starts a container, unless it runs, and waits until it is ready.
func bringBack(service *coordinatorv1.Service, a *coordinatorv1.Assignment) []*coordinatorv1.Undo {
	name := a.GetContainer()
	return []*coordinatorv1.Undo{
		{
			Title: "start " + name, Timeout: seconds(2 * time.Minute),
			Action: action("ContainerService/StartContainer", &agentv1.StartContainerRequest{Name: name}),
		},
		{
			Title: "wait until " + name + " is ready", Timeout: seconds(gateTime(service) + 10*time.Second),
			Action: action("ContainerService/AwaitReady", &agentv1.AwaitReadyRequest{Name: name, Gate: service.GetGate()}),
		},
	}
}

// watch looks at the new container for the monitor window. Nothing waits for it but the end: a failure within the window counts.
func (b *rollout) watch(u unit, ready string) {
	window := u.service.GetUpdate().GetMonitor().AsDuration()
	if window <= 0 {
		return
	}
	name := u.to.GetContainer()
	request := &agentv1.WatchContainerRequest{Name: name, Window: durationpb.New(window)}
	switch gate := u.service.GetGate(); gate.GetProbe().(type) {
	case *agentv1.Gate_Http, *agentv1.Gate_Tcp, *agentv1.Gate_Grpc:
		request.Gate = gate
	}
	b.add(&coordinatorv1.Step{
		Id: u.group + "/watch", Title: fmt.Sprintf("watch %s for %s", name, window), After: []string{ready}, Group: u.group, Host: u.to.GetHost(),
		Action: action("ContainerService/WatchContainer", request), Timeout: seconds(window + defaultWait),
	})
}

// remove removes the old container once the release is in place.
func (b *rollout) remove(u unit) {
	name := u.from.GetContainer()
	b.add(&coordinatorv1.Step{
		Id: u.group + "/remove", Title: fmt.Sprintf("remove %s on %s", name, u.from.GetHost()), Group: u.group, Host: u.from.GetHost(), CleanUp: true,
		Action:  action("ContainerService/RemoveContainer", &agentv1.RemoveContainerRequest{Name: name}),
		Timeout: seconds(time.Minute), MaxAttempts: 3, RetryDelay: seconds(2 * time.Second),
	})
}

func gateTime(service *coordinatorv1.Service) time.Duration {
	if d := service.GetGate().GetDeadline().AsDuration(); d > 0 {
		return d
	}
	return defaultGate
}

// upstream is where the proxy reaches an instance; empty for one that it does not lead to.
func upstream(service *coordinatorv1.Service, a *coordinatorv1.Assignment) string {
	if a == nil || service.GetRoute() == nil {
		return ""
	}
	for _, port := range a.GetPorts() {
		if port.GetContainerPort() != service.GetRoute().GetPort() || port.GetProtocol() == "udp" {
			continue
		}
		host := port.GetHostIp()
		if host == "" || host == "0.0.0.0" || host == "::" {
			host = a.GetHostAddress()
		}
		return net.JoinHostPort(host, strconv.FormatUint(uint64(port.GetHostPort()), 10))
	}
	return ""
}

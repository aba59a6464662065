package definition

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// acts is what an action acts on.
type acts int

const (
	onHosts     acts = iota + 1 // once on each host of the target
	onInstances                 // once on each instance of the target's service
	onEither                    // on hosts or on instances, as the target has them
	onService                   // once for the target's service
)

// action is one thing that a step can do. Most are an agent's method as it is: what the author does not give, the compiler fills by the names of
// the request's fields.
type action struct {
	// name like container.stop.
	name string
	on   acts
	// method of the agents, like ContainerService/StopContainer; empty for an action that becomes several steps.
	method string
	// given are fields of the request that the compiler fills.
	given []protoreflect.Name
	// needs are fields that the author must fill.
	needs []protoreflect.Name
	// own is the message of the arguments, where it is not the method's request.
	own proto.Message
	// destroys says that nothing brings back what it took away.
	destroys bool
	// verb of a service that the action is, planned by package runbook.
	verb coordinatorv1.ServiceVerb
	doc  string
}

// actions is the registry. A new action is a line here, and a file of its own if it is more than a method of an agent.
func actions() []*action {
	return []*action{
		{name: "container.pull", on: onInstances, method: "ContainerService/PullImage", given: names("image"), doc: "pulls the image of an instance to its host"},
		{name: "container.start", on: onInstances, method: "ContainerService/StartContainer", given: names("name"), doc: "starts an instance"},
		{name: "container.stop", on: onInstances, method: "ContainerService/StopContainer", given: names("name"), doc: "stops an instance"},
		{name: "container.signal", on: onInstances, method: "ContainerService/SignalContainer", given: names("name"), needs: names("signal"), doc: "sends a signal to an instance, once"},
		{name: "container.inspect", on: onInstances, method: "ContainerService/InspectContainer", given: names("name"), doc: "says how an instance is"},
		{name: "container.remove", on: onInstances, method: "ContainerService/RemoveContainer", given: names("name", "own_run_only"), destroys: true, doc: "removes an instance's container"},
		{name: "container.await_ready", on: onInstances, method: "ContainerService/AwaitReady", given: names("name", "gate"), doc: "waits until an instance passes its service's gate"},
		{name: "container.watch", on: onInstances, method: "ContainerService/WatchContainer", given: names("name", "gate"), needs: names("window"), doc: "looks at an instance for a while"},
		{name: "container.drain", on: onInstances, method: "ContainerService/DrainContainer", given: names("name", "ports"), doc: "waits until no request to an instance is in flight"},
		{name: "probe.http", on: onEither, method: "ProbeService/ProbeHttp", needs: names("url"), doc: "asks a URL, from the target's host"},
		{name: "probe.tcp", on: onEither, method: "ProbeService/ProbeTcp", needs: names("address"), doc: "opens a connection, from the target's host"},
		{name: "web.maintenance", on: onHosts, method: "RouteService/SetMaintenance", needs: names("routes", "enabled"), doc: "shows a page instead of routes, or ends that"},
		{name: "job.run", on: onService, method: "ContainerService/RunJob", own: &coordinatorv1.JobArguments{}, needs: names("argv"), doc: "runs a command to its end, once, in a container like those of the service"},
		{name: "service.restart", on: onService, own: &coordinatorv1.ServiceArguments{}, verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART, doc: "restarts the instances of a service in turn"},
		{name: "service.reload", on: onService, own: &coordinatorv1.ServiceArguments{}, verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD, doc: "lets the instances of a service read their configuration again, in turn"},
	}
}

func names(fields ...protoreflect.Name) []protoreflect.Name { return fields }

// lookUp finds an action; nil if there is none of the name.
func lookUp(name string) *action {
	for _, a := range actions() {
		if a.name == name {
			return a
		}
	}
	return nil
}

// Actions lists the names of all actions, in the order of the registry.
func Actions() []string {
	var all []string
	for _, a := range actions() {
		all = append(all, a.name)
	}
	return all
}

// rpc is the agents' method; nil for an action that becomes several steps.
func (a *action) rpc() protoreflect.MethodDescriptor {
	if a.method == "" {
		return nil
	}
	service, method, _ := strings.Cut(a.method, "/")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("muster.agent.v1." + service))
	if err != nil {
		panic("definition: action " + a.name + ": " + err.Error())
	}
	return descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
}

// arguments returns an empty message for what stands under `with`.
func (a *action) arguments() proto.Message {
	if a.own != nil {
		return a.own.ProtoReflect().New().Interface()
	}
	found, err := protoregistry.GlobalTypes.FindMessageByName(a.rpc().Input().FullName())
	if err != nil {
		return dynamicpb.NewMessage(a.rpc().Input())
	}
	return found.New().Interface()
}

// hidden lists the fields of the arguments that are not the author's.
func (a *action) hidden() []protoreflect.Name {
	return append(slices.Clone(a.given), "operation")
}

func (a *action) rule() *accessv1.Rule {
	if a.method == "" {
		return &accessv1.Rule{Risk: accessv1.Risk_RISK_DISRUPT, Effect: accessv1.Effect_EFFECT_IDEMPOTENT}
	}
	return proto.GetExtension(a.rpc().Options(), accessv1.E_Rule).(*accessv1.Rule)
}

// changes says that the action has an effect.
func (a *action) changes() bool { return a.rule().GetEffect() != accessv1.Effect_EFFECT_NONE }

// composite says that the action becomes several steps, with times of their own.
func (a *action) composite() bool { return a.method == "" }

package stack

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Labels by which a container is known to belong to an instance.
const (
	LabelStack   = "muster.stack"
	LabelService = "muster.service"
	LabelSlot    = "muster.slot"
	LabelRelease = "muster.release"
)

// Labels that tools made for compose look for.
const (
	labelComposeProject = "com.docker.compose.project"
	labelComposeService = "com.docker.compose.service"
	labelComposeNumber  = "com.docker.compose.container-number"
	labelComposeOneOff  = "com.docker.compose.oneoff"
)

// Spec returns the final spec of an instance's container: the service's template with the name, the labels, the ports and the names of
// other hosts that its assignment gives it. Links may be nil for none. The service and the assignment stay as they are.
func Spec(stack string, service *coordinatorv1.Service, a *coordinatorv1.Assignment, links *Links) *agentv1.ContainerSpec {
	spec := proto.CloneOf(service.GetTemplate())
	if spec == nil {
		spec = &agentv1.ContainerSpec{}
	}
	slot := strconv.FormatUint(uint64(a.GetSlot()), 10)
	spec.Name = a.GetContainer()
	labels := maps.Clone(spec.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, map[string]string{
		LabelStack:          stack,
		LabelService:        service.GetName(),
		LabelSlot:           slot,
		LabelRelease:        strconv.FormatUint(a.GetRelease(), 10),
		labelComposeProject: stack,
		labelComposeService: service.GetName(),
		labelComposeNumber:  slot,
		labelComposeOneOff:  "False",
	})
	spec.Labels = labels
	spec.Ports = make([]*agentv1.PortBinding, 0, len(a.GetPorts()))
	for _, p := range a.GetPorts() {
		b := proto.CloneOf(p)
		if b.GetHostIp() == "" { // the address of the time of placement: the binding does not move when the host's address does.
			b.HostIp = a.GetHostAddress()
		}
		spec.Ports = append(spec.Ports, b)
	}
	spec.ExtraHosts = mergeHosts(spec.GetExtraHosts(), links.ExtraHosts(service.GetName(), a.GetHost()))
	return spec
}

// mergeHosts adds links to the extra_hosts of the file. What the file says about a name wins.
func mergeHosts(own, links []string) []string {
	out := slices.Clone(own)
	for _, entry := range links {
		name, _, _ := strings.Cut(entry, ":")
		if !slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name+":") }) {
			out = append(out, entry)
		}
	}
	slices.Sort(out)
	return out
}

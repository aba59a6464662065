package stack

import (
	"cmp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Replace says whether going from before to after needs new containers: their template differs, or the service is a job, which runs
// once per release. A different number of replicas, gate, policy, route or placement alone leaves running containers as they are.
// It is true if either is nil.
func Replace(before, after *coordinatorv1.Service) bool {
	if before == nil || after == nil {
		return true
	}
	return after.GetJob() || before.GetJob() || !proto.Equal(before.GetTemplate(), after.GetTemplate())
}

// Diff tells what going from before to after does to each service, in order of their names. Either may be nil, for a stack that does not
// run yet or is removed. Kinds: CREATE and REMOVE as they say; UPDATE if anything differs, be it only the number of replicas; else NONE.
func Diff(before, after *coordinatorv1.Release) []*coordinatorv1.ServiceChange {
	old, now := byName(before.GetServices()), byName(after.GetServices())
	var names []string
	for name := range old {
		names = append(names, name)
	}
	for name := range now {
		if old[name] == nil {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	changes := make([]*coordinatorv1.ServiceChange, 0, len(names))
	for _, name := range names {
		b, a := old[name], now[name]
		change := &coordinatorv1.ServiceChange{
			Service:         name,
			InstancesBefore: instances(before, b),
			InstancesAfter:  instances(after, a),
			Fields:          fieldChanges(b, a),
		}
		switch {
		case b == nil:
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_CREATE
		case a == nil:
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_REMOVE
		case len(change.Fields) > 0 || change.InstancesBefore != change.InstancesAfter:
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE
		default:
			change.Kind = coordinatorv1.ChangeKind_CHANGE_KIND_NONE
		}
		if a != nil {
			change.Order = a.GetUpdate().GetOrder()
			change.Parallelism = a.GetUpdate().GetParallelism()
		}
		changes = append(changes, change)
	}
	return changes
}

// instances counts those of a service: the assigned ones, or before placement the replicas wanted.
func instances(r *coordinatorv1.Release, s *coordinatorv1.Service) uint32 {
	if s == nil {
		return 0
	}
	if len(r.GetAssignments()) == 0 {
		return s.GetReplicas()
	}
	var n uint32
	for _, a := range r.GetAssignments() {
		if a.GetService() == s.GetName() {
			n++
		}
	}
	return n
}

// fieldChanges compares two services field by field.
func fieldChanges(before, after *coordinatorv1.Service) []*coordinatorv1.FieldChange {
	b, a := flatten(before), flatten(after)
	if before == nil || after == nil { // a whole service is not a list of differences; its image says what it is.
		return []*coordinatorv1.FieldChange{{Path: "image", Before: b["image"], After: a["image"]}}
	}
	var paths []string
	for path := range b {
		paths = append(paths, path)
	}
	for path := range a {
		if _, ok := b[path]; !ok {
			paths = append(paths, path)
		}
	}
	sort.Strings(paths)
	var changes []*coordinatorv1.FieldChange
	for _, path := range paths {
		if b[path] == a[path] {
			continue
		}
		changes = append(changes, &coordinatorv1.FieldChange{Path: path, Before: redact(path, b), After: redact(path, a)})
	}
	return changes
}

// flatten writes a service as path and value. The parts of the template are named as in a compose file.
func flatten(s *coordinatorv1.Service) map[string]string {
	out := map[string]string{}
	if s == nil {
		return out
	}
	t := s.GetTemplate()
	for _, kv := range t.GetEnv() {
		name, value, _ := strings.Cut(kv, "=")
		out["env."+name] = value
	}
	for _, p := range t.GetPorts() {
		out["ports."+portKey(p)] = formatPort(p)
	}
	for _, m := range t.GetMounts() {
		out["volumes."+m.GetTarget()] = formatMessage(m)
	}
	for _, m := range t.GetSecrets() {
		out["secrets."+m.GetTarget()] = m.GetSecret().GetName() + " v" + strconv.FormatUint(m.GetSecret().GetVersion(), 10)
	}
	for _, c := range t.GetConfigs() {
		out["configs."+c.GetTarget()] = formatConfig(c)
	}
	for _, n := range t.GetNetworks() {
		out["networks."+n.GetName()] = formatMessage(n)
	}
	rest := proto.CloneOf(t)
	if rest != nil {
		rest.Env, rest.Ports, rest.Mounts, rest.Secrets, rest.Configs, rest.Networks = nil, nil, nil, nil, nil, nil
		flattenMessage(out, "", rest.ProtoReflect())
	}
	whole := proto.CloneOf(s)
	whole.Name, whole.Template, whole.DependsOn = "", nil, nil
	if t.GetImage() != "" { // the pinned image tells more than the name in the file, and both may move.
		out["image"] = t.GetImage()
		if whole.GetImage() == t.GetImage() {
			whole.Image = ""
		} else if whole.Image != "" {
			out["image_name"] = whole.Image
			whole.Image = ""
		}
	}
	for _, d := range s.GetDependsOn() {
		out["depends_on."+d.GetService()] = d.GetCondition()
	}
	flattenMessage(out, "", whole.ProtoReflect())
	return out
}

// flattenMessage adds the fields of m that are set.
func flattenMessage(out map[string]string, prefix string, m protoreflect.Message) {
	if d, ok := m.Interface().(*durationpb.Duration); ok {
		out[strings.TrimSuffix(prefix, ".")] = d.AsDuration().String()
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := prefix + string(f.Name())
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				out[path+"."+k.String()] = e.String()
				return true
			})
		case f.IsList():
			items := make([]string, v.List().Len())
			for i := range items {
				items[i] = formatValue(f, v.List().Get(i))
			}
			out[path] = strings.Join(items, " ")
		case f.Message() != nil:
			if f.ContainingOneof() != nil && !hasFields(v.Message()) { // an empty choice says something by being there, like a health gate.
				out[path] = "yes"
			}
			flattenMessage(out, path+".", v.Message())
		default:
			out[path] = formatValue(f, v)
		}
		return true
	})
}

// hasFields says whether any field of m is set.
func hasFields(m protoreflect.Message) bool {
	found := false
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		found = true
		return false
	})
	return found
}

// formatValue writes one value of a field.
func formatValue(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case f.Message() != nil:
		return formatMessage(v.Message().Interface())
	case f.Enum() != nil:
		name := string(f.Enum().Values().ByNumber(v.Enum()).Name())
		if _, short, ok := strings.Cut(name, "_ACTION_"); ok {
			name = short
		}
		return strings.ToLower(name)
	case f.Kind() == protoreflect.StringKind:
		if s := v.String(); strings.ContainsAny(s, " \t\n\"") {
			return strconv.Quote(s)
		}
	}
	return v.String()
}

// formatMessage writes a small message on one line, always in the same way: prototext does not promise that.
func formatMessage(m proto.Message) string {
	flat := map[string]string{}
	flattenMessage(flat, "", m.ProtoReflect())
	parts := make([]string, 0, len(flat))
	for path, value := range flat {
		parts = append(parts, path+"="+value)
	}
	sort.Strings(parts)
	return strings.Join(parts, " ")
}

// portKey names a published port by what it publishes.
func portKey(p *agentv1.PortBinding) string {
	return strconv.FormatUint(uint64(p.GetContainerPort()), 10) + "/" + p.GetProtocol() + hostPart(p)
}

// hostPart tells apart several fixed bindings of one port.
func hostPart(p *agentv1.PortBinding) string {
	if p.GetHostPort() == 0 && p.GetHostIp() == "" {
		return ""
	}
	return "@" + p.GetHostIp() + ":" + strconv.FormatUint(uint64(p.GetHostPort()), 10)
}

// formatPort writes a binding as compose does.
func formatPort(p *agentv1.PortBinding) string {
	host := "dynamic"
	if p.GetHostPort() != 0 {
		host = strconv.FormatUint(uint64(p.GetHostPort()), 10)
	}
	if p.GetHostIp() != "" {
		host = p.GetHostIp() + ":" + host
	}
	return host + ":" + strconv.FormatUint(uint64(p.GetContainerPort()), 10) + "/" + p.GetProtocol()
}

// formatConfig tells a config file by its content without showing it.
func formatConfig(c *agentv1.ConfigFile) string {
	return formatBytes(int64(len(c.GetContent()))) + " sha256:" + digest(c.GetContent())[:12]
}

// sortPorts orders bindings, so that equal sets are equal lists.
func sortPorts(ports []*agentv1.PortBinding) {
	slices.SortFunc(ports, func(a, b *agentv1.PortBinding) int {
		return cmp.Or(cmp.Compare(a.GetContainerPort(), b.GetContainerPort()), cmp.Compare(a.GetProtocol(), b.GetProtocol()),
			cmp.Compare(a.GetHostIp(), b.GetHostIp()), cmp.Compare(a.GetHostPort(), b.GetHostPort()))
	})
}

package stack

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// mapper makes services of a project and collects everything that is to be said about it, so that a person sees it all at once.
type mapper struct {
	*project

	warnings []string
	found    []string
	// external secrets that are used.
	external map[string]bool
	// jobs by service name.
	jobs map[string]bool
	// aliases that links give to other services.
	aliases map[string][]string
}

// model maps the project.
func (p *project) model() (*Model, error) {
	m := &mapper{project: p, external: map[string]bool{}, jobs: map[string]bool{}, aliases: map[string][]string{}}
	m.warnings, m.found = p.checkKeys()
	if len(p.Services) == 0 {
		m.found = append(m.found, "no service is active: "+inactive(p.DisabledServices))
	}
	names := slices.Sorted(maps.Keys(p.Services))
	for _, name := range names {
		m.declare(p.Services[name])
	}
	model := &Model{Name: p.Name}
	for _, name := range names {
		model.Services = append(model.Services, m.service(p.Services[name]))
	}
	if len(m.found) > 0 {
		return nil, problems(m.found)
	}
	model.Networks = networksOf(model.Services)
	model.Warnings = append(slices.Clone(p.warnings), m.warnings...)
	if open := unaddressed(model.Services); len(open) > 0 {
		model.Warnings = append(model.Warnings, "ports of "+strings.Join(open, ", ")+
			": without an address they are bound on the host's advertised one, not on all: write 0.0.0.0:80:80 where localhost must work too")
	}
	model.ExternalSecrets = slices.Sorted(maps.Keys(m.external))
	return model, nil
}

// unaddressed lists services with a fixed port that names no address of the host. Compose would bind it on all of them.
func unaddressed(services []*coordinatorv1.Service) []string {
	var out []string
	for _, s := range services {
		if slices.ContainsFunc(fixedPorts(s), func(b *agentv1.PortBinding) bool { return b.GetHostIp() == "" }) {
			out = append(out, s.GetName())
		}
	}
	return out
}

// inactive says why there is nothing to run.
func inactive(disabled types.Services) string {
	if len(disabled) == 0 {
		return "the files have none"
	}
	profiles := disabled.GetProfiles()
	slices.Sort(profiles)
	return "the files have services only under the profiles " + strings.Join(profiles, ", ") + ": name one with --profile"
}

// declare notes what a service says about others before any is mapped.
func (m *mapper) declare(s types.ServiceConfig) {
	for name, d := range s.DependsOn {
		if d.Condition == types.ServiceConditionCompletedSuccessfully {
			m.jobs[name] = true
		}
	}
	for _, link := range s.Links {
		if target, alias, ok := strings.Cut(link, ":"); ok && alias != target {
			m.aliases[target] = append(m.aliases[target], alias)
		}
	}
}

// refuse notes a problem with a key of a service.
func (m *mapper) refuse(service, key, format string, args ...any) {
	m.found = append(m.found, m.sentence(keyPath(service, key), fmt.Sprintf(format, args...)))
}

// warn notes what Muster does otherwise.
func (m *mapper) warn(service, key, format string, args ...any) {
	m.warnings = append(m.warnings, m.sentence(keyPath(service, key), fmt.Sprintf(format, args...)))
}

// keyPath is the path of a key like deploy.replicas under a service.
func keyPath(service, key string) []string {
	return append([]string{"services", service}, strings.Split(key, ".")...)
}

// service maps one service.
func (m *mapper) service(s types.ServiceConfig) *coordinatorv1.Service {
	ext := m.extension(s)
	out := &coordinatorv1.Service{
		Name:      s.Name,
		Image:     s.Image,
		Template:  m.template(s),
		Placement: m.placement(s),
		DependsOn: dependencies(s),
		Job:       ext.Job || m.jobs[s.Name] || s.Deploy != nil && s.Deploy.Mode == "replicated-job",
	}
	m.image(s)
	m.replicas(s, out)
	m.restart(s, out)
	m.data(s, out, ext.Shared)
	out.Route = m.route(s, ext)
	if ext.DrainLimit != 0 {
		out.DrainLimit = durationpb.New(time.Duration(ext.DrainLimit))
	}
	m.hostLost(s, out, ext)
	out.ReloadSignal = m.reload(s, ext)
	m.gate(s, out, ext)
	m.policies(s, out)
	return out
}

// image checks what the file names, and refuses what only a build would give.
func (m *mapper) image(s types.ServiceConfig) {
	switch {
	case s.Image == "":
		m.found = append(m.found, fmt.Sprintf("%sservice %s is built: give it image: registry.example.com/%s:1.0 (built and pushed once), then apply again",
			m.survey.where("services", s.Name, "build"), s.Name, s.Name))
		return
	case s.Build != nil:
		m.warn(s.Name, "build", "Muster does not build: %s must be in its registry or on the hosts", s.Image)
	}
	if _, err := reference.ParseAnyReference(s.Image); err != nil {
		m.refuse(s.Name, "image", "%q is not the name of an image: %v", cut(s.Image), err)
	}
}

// template maps what a container is made of.
func (m *mapper) template(s types.ServiceConfig) *agentv1.ContainerSpec {
	t := &agentv1.ContainerSpec{
		Image:        s.Image,
		Entrypoint:   s.Entrypoint,
		Command:      s.Command,
		Env:          environment(s.Environment),
		Labels:       m.labels(s),
		Ports:        m.ports(s),
		Mounts:       m.mounts(s),
		Networks:     m.networks(s),
		ExtraHosts:   extraHosts(s.ExtraHosts),
		Healthcheck:  healthcheck(s.HealthCheck),
		Resources:    m.resources(s),
		User:         s.User,
		WorkingDir:   s.WorkingDir,
		StopSignal:   s.StopSignal,
		Privileged:   s.Privileged,
		CapAdd:       slices.Sorted(slices.Values(s.CapAdd)),
		CapDrop:      slices.Sorted(slices.Values(s.CapDrop)),
		ReadOnly:     s.ReadOnly,
		Init:         s.Init != nil && *s.Init,
		Hostname:     s.Hostname,
		ShmSizeBytes: int64(s.ShmSize),
		Sysctls:      s.Sysctls,
		Ulimits:      ulimits(s.Ulimits),
		SecurityOpt:  s.SecurityOpt,
		GroupAdd:     s.GroupAdd,
		Dns:          s.DNS,
		Tty:          s.Tty,
		Devices:      devices(s.Devices),
	}
	if s.StopGracePeriod != nil {
		t.StopGrace = durationpb.New(time.Duration(*s.StopGracePeriod))
	}
	if s.Logging != nil {
		t.Log = &agentv1.LogConfig{Driver: s.Logging.Driver, Options: s.Logging.Options}
	}
	if s.Privileged {
		m.warn(s.Name, "privileged", "it runs only on hosts whose own policy allows it")
	}
	m.namespaces(s, t)
	m.files(s, t)
	if s.Command != nil && len(s.Command) == 0 {
		m.refuse(s.Name, "command", "an empty command cannot clear the image's: write out what shall run")
	}
	if s.Entrypoint != nil && len(s.Entrypoint) == 0 {
		m.refuse(s.Name, "entrypoint", "an empty entrypoint cannot clear the image's: write out what shall run")
	}
	return t
}

// environment is sorted, so that equal sets are equal lists. Variables without a value anywhere are left unset, as compose does.
func environment(env types.MappingWithEquals) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if v := env[name]; v != nil {
			out = append(out, name+"="+*v)
		}
	}
	return out
}

// labels of the containers. Those by which Muster finds its containers are its own.
func (m *mapper) labels(s types.ServiceConfig) map[string]string {
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		switch {
		case strings.HasPrefix(name, "muster."):
			m.refuse(s.Name, "labels", "%s: labels that start with muster. are Muster's own", name)
		case strings.HasPrefix(name, "com.docker.compose."):
			m.warn(s.Name, "labels", "%s: Muster sets the labels of compose itself", name)
		default:
			out[name] = s.Labels[name]
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// ports maps what is published. Without a published port Muster chooses one per instance.
func (m *mapper) ports(s types.ServiceConfig) []*agentv1.PortBinding {
	if s.NetworkMode == "host" && len(s.Ports) > 0 {
		m.warn(s.Name, "ports", "with network_mode: host every port is the host's: ignored")
		return nil
	}
	var out []*agentv1.PortBinding
	for i, p := range s.Ports {
		key := "ports." + strconv.Itoa(i)
		b := &agentv1.PortBinding{HostIp: p.HostIP, ContainerPort: p.Target, Protocol: cmp.Or(p.Protocol, "tcp")}
		if p.Published != "" {
			port, err := strconv.ParseUint(p.Published, 10, 16)
			if err != nil {
				m.refuse(s.Name, key, "published %s: give one port, or none to let Muster choose one per instance", cut(p.Published))
				continue
			}
			b.HostPort = uint32(port)
		}
		if b.Protocol != "tcp" && b.Protocol != "udp" {
			m.refuse(s.Name, key, "protocol %s: there are tcp and udp", cut(b.Protocol))
			continue
		}
		if p.Target == 0 || p.Target > 65535 {
			m.refuse(s.Name, key, "target %d is not a port", p.Target)
			continue
		}
		out = append(out, b)
	}
	sortPorts(out)
	return out
}

// extraHosts writes name:address.
func extraHosts(hosts types.HostsList) []string {
	var out []string
	for name, addresses := range hosts {
		for _, a := range addresses {
			out = append(out, name+":"+a)
		}
	}
	slices.Sort(out)
	return out
}

// healthcheck maps the engine's probe; nil keeps the image's.
func healthcheck(h *types.HealthCheckConfig) *agentv1.Healthcheck {
	switch {
	case h == nil:
		return nil
	case h.Disable:
		return &agentv1.Healthcheck{Test: []string{"NONE"}}
	}
	out := &agentv1.Healthcheck{Test: h.Test, Interval: duration(h.Interval), Timeout: duration(h.Timeout), StartPeriod: duration(h.StartPeriod)}
	if h.Retries != nil {
		out.Retries = uint32(min(*h.Retries, 1<<31))
	}
	return out
}

// duration maps an optional one.
func duration(d *types.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(time.Duration(*d))
}

// dependencies in order of their names.
func dependencies(s types.ServiceConfig) []*coordinatorv1.Dependency {
	var out []*coordinatorv1.Dependency
	for _, name := range slices.Sorted(maps.Keys(s.DependsOn)) {
		out = append(out, &coordinatorv1.Dependency{Service: name, Condition: cmp.Or(s.DependsOn[name].Condition, types.ServiceConditionStarted)})
	}
	return out
}

// ulimits in order of their names.
func ulimits(limits map[string]*types.UlimitsConfig) []*agentv1.Ulimit {
	var out []*agentv1.Ulimit
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		l := limits[name]
		u := &agentv1.Ulimit{Name: name, Soft: int64(l.Soft), Hard: int64(l.Hard)}
		if l.Single != 0 {
			u.Soft, u.Hard = int64(l.Single), int64(l.Single)
		}
		out = append(out, u)
	}
	return out
}

// devices as host:container:permissions.
func devices(list []types.DeviceMapping) []string {
	var out []string
	for _, d := range list {
		out = append(out, d.Source+":"+cmp.Or(d.Target, d.Source)+":"+cmp.Or(d.Permissions, "rwm"))
	}
	slices.Sort(out)
	return out
}

// namespaces maps the modes that share something of the host.
func (m *mapper) namespaces(s types.ServiceConfig, t *agentv1.ContainerSpec) {
	switch s.NetworkMode {
	case "", "bridge":
	case "host", "none":
		t.NetworkMode = s.NetworkMode
	default:
		m.refuse(s.Name, "network_mode", "%s: there are host and none; containers that must share a network namespace belong into one", cut(s.NetworkMode))
	}
	switch s.Pid {
	case "", "host":
		t.PidMode = s.Pid
	default:
		m.refuse(s.Name, "pid", "%s: only host is supported", cut(s.Pid))
	}
	switch s.Ipc {
	case "", "host", "private", "shareable":
		t.IpcMode = s.Ipc
	default:
		m.refuse(s.Name, "ipc", "%s: there are host, private and shareable", cut(s.Ipc))
	}
}

package container

import (
	"fmt"
	"maps"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"github.com/docker/go-units"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// validName is what the engine accepts, and what is safe as the name of a folder.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$`)

// maxConfigBytes is what all configs of a container may hold.
const maxConfigBytes = 512 << 10

// invalid is a request that cannot be performed as it stands.
func invalid(format string, args ...any) error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, format, args...)
}

// validate refuses what would be misread, ignored or dropped on the way to the engine.
func validate(spec *agentv1.ContainerSpec) error {
	name := spec.GetName()
	if !validName.MatchString(name) {
		return invalid("container name %q: use 2 to 200 of a-z A-Z 0-9 _ . - and begin with a letter or a digit", name)
	}
	if spec.GetImage() == "" {
		return invalid("container %q has no image", name)
	}
	if err := validatePorts(spec); err != nil {
		return err
	}
	if err := validateModes(spec); err != nil {
		return err
	}
	targets := make(map[string]bool)
	take := func(what, target string) error {
		if !path.IsAbs(target) {
			return invalid("container %q: %s target %q is no absolute path", name, what, target)
		}
		if target = path.Clean(target); targets[target] {
			return invalid("container %q: two mounts have the target %q", name, target)
		}
		targets[target] = true
		return nil
	}
	for _, m := range spec.GetMounts() {
		if err := validateMount(name, m); err != nil {
			return err
		}
		if err := take(m.GetType(), m.GetTarget()); err != nil {
			return err
		}
	}
	for _, s := range spec.GetSecrets() {
		if err := take("secret", s.GetTarget()); err != nil {
			return err
		}
	}
	size := 0
	for _, c := range spec.GetConfigs() {
		if err := take("config", c.GetTarget()); err != nil {
			return err
		}
		if size += len(c.GetContent()); size > maxConfigBytes {
			return invalid("container %q: its configs hold more than %d bytes; mount a volume instead", name, maxConfigBytes)
		}
	}
	return nil
}

func validatePorts(spec *agentv1.ContainerSpec) error {
	for _, p := range spec.GetPorts() {
		if p.GetContainerPort() == 0 || p.GetContainerPort() > 65535 || p.GetHostPort() > 65535 {
			return invalid("container %q: port %d:%d is not in 1 to 65535", spec.GetName(), p.GetHostPort(), p.GetContainerPort())
		}
		if proto := p.GetProtocol(); proto != "" && proto != "tcp" && proto != "udp" {
			return invalid("container %q: protocol %q of port %d is neither tcp nor udp", spec.GetName(), proto, p.GetContainerPort())
		}
		if ip := p.GetHostIp(); ip != "" && net.ParseIP(ip) == nil {
			return invalid("container %q: %q of port %d is no IP address", spec.GetName(), ip, p.GetHostPort())
		}
		if spec.GetNetworkMode() == "none" || spec.GetNetworkMode() == "host" && p.GetHostPort() != p.GetContainerPort() {
			return invalid("container %q: port %d cannot be published with network_mode %q", spec.GetName(), p.GetHostPort(), spec.GetNetworkMode())
		}
	}
	return nil
}

func validateModes(spec *agentv1.ContainerSpec) error {
	name := spec.GetName()
	for _, m := range []struct {
		what, mode string
		allowed    []string
	}{
		{"pid_mode", spec.GetPidMode(), []string{"", "host"}},
		{"network_mode", spec.GetNetworkMode(), []string{"", "host", "none"}},
		{"ipc_mode", spec.GetIpcMode(), []string{"", "host", "private", "shareable"}},
		{"restart policy", spec.GetRestart().GetName(), []string{"", "no", "on-failure", "always", "unless-stopped"}},
	} {
		if !slices.Contains(m.allowed, m.mode) {
			return invalid("container %q: %s %q is none of %q", name, m.what, m.mode, m.allowed)
		}
	}
	if spec.GetNetworkMode() != "" && len(spec.GetNetworks()) > 0 {
		return invalid("container %q: network_mode %q excludes networks", name, spec.GetNetworkMode())
	}
	if r := spec.GetRestart(); r.GetMaxRetries() > 0 && r.GetName() != "on-failure" {
		return invalid("container %q: max_retries needs the restart policy on-failure, not %q", name, r.GetName())
	}
	seen := make(map[string]bool)
	for _, n := range spec.GetNetworks() {
		if n.GetName() == "" || seen[n.GetName()] {
			return invalid("container %q: network %q is empty or named twice", name, n.GetName())
		}
		seen[n.GetName()] = true
	}
	return nil
}

func validateMount(name string, m *agentv1.Mount) error {
	switch m.GetType() {
	case "bind":
		if !filepath.IsAbs(m.GetSource()) {
			return invalid("container %q: bind source %q is no absolute path", name, m.GetSource())
		}
	case "volume":
	case "tmpfs":
		if m.GetSource() != "" {
			return invalid("container %q: tmpfs %s has a source %q", name, m.GetTarget(), m.GetSource())
		}
	default:
		return invalid("container %q: mount type %q is none of bind, volume and tmpfs", name, m.GetType())
	}
	if m.GetType() != "bind" && (m.GetPropagation() != "" || m.GetCreateHostPath()) {
		return invalid("container %q: propagation and create_host_path of %s are for binds only", name, m.GetTarget())
	}
	if m.GetType() != "volume" && (m.GetVolumeDriver() != "" || len(m.GetVolumeOptions()) > 0 || m.GetExternal()) {
		return invalid("container %q: volume options of %s are for volumes only", name, m.GetTarget())
	}
	return nil
}

// engineConfig is the spec in the engine's words, without its networks but the first and without its files.
func (e *Engine) engineConfig(operationID string, spec *agentv1.ContainerSpec) (*container.Config, *container.HostConfig, *network.NetworkingConfig, error) {
	exposed, published := e.ports(spec)
	labels := make(map[string]string, len(spec.GetLabels())+2)
	maps.Copy(labels, spec.GetLabels())
	labels[labelOperation], labels[labelHost] = operationID, e.name
	if policy := restartLabel(spec.GetRestart()); policy != "" {
		labels[labelRestart] = policy
	}
	config := &container.Config{
		Image: spec.GetImage(), Entrypoint: spec.GetEntrypoint(), Cmd: spec.GetCommand(), Env: spec.GetEnv(), Labels: labels,
		ExposedPorts: exposed, Healthcheck: healthcheck(spec.GetHealthcheck()), User: spec.GetUser(), WorkingDir: spec.GetWorkingDir(),
		StopSignal: spec.GetStopSignal(), Hostname: spec.GetHostname(), Tty: spec.GetTty(),
	}
	if spec.GetStopGrace() != nil {
		seconds := wholeSeconds(spec.GetStopGrace().AsDuration())
		config.StopTimeout = &seconds
	}
	resources, err := resourcesOf(spec)
	if err != nil {
		return nil, nil, nil, err
	}
	host := &container.HostConfig{
		LogConfig:      container.LogConfig{Type: spec.GetLog().GetDriver(), Config: spec.GetLog().GetOptions()},
		NetworkMode:    container.NetworkMode(spec.GetNetworkMode()),
		PortBindings:   published,
		CapAdd:         spec.GetCapAdd(),
		CapDrop:        spec.GetCapDrop(),
		DNS:            spec.GetDns(),
		ExtraHosts:     spec.GetExtraHosts(),
		GroupAdd:       spec.GetGroupAdd(),
		IpcMode:        container.IpcMode(spec.GetIpcMode()),
		PidMode:        container.PidMode(spec.GetPidMode()),
		Privileged:     spec.GetPrivileged(),
		ReadonlyRootfs: spec.GetReadOnly(),
		SecurityOpt:    spec.GetSecurityOpt(),
		ShmSize:        spec.GetShmSizeBytes(),
		Sysctls:        spec.GetSysctls(),
		Resources:      resources,
		Mounts:         mounts(spec),
	}
	if spec.GetInit() {
		yes := true
		host.Init = &yes
	}
	networking := &network.NetworkingConfig{}
	if nets := spec.GetNetworks(); len(nets) > 0 {
		// Engines before API 1.44 take one network here; the others are connected before the start.
		host.NetworkMode = container.NetworkMode(nets[0].GetName())
		networking.EndpointsConfig = map[string]*network.EndpointSettings{nets[0].GetName(): {Aliases: nets[0].GetAliases()}}
	}
	return config, host, networking, nil
}

func (e *Engine) ports(spec *agentv1.ContainerSpec) (nat.PortSet, nat.PortMap) {
	if spec.GetNetworkMode() == "host" {
		return nil, nil
	}
	exposed, published := make(nat.PortSet), make(nat.PortMap)
	for _, p := range spec.GetPorts() {
		proto := p.GetProtocol()
		if proto == "" {
			proto = "tcp"
		}
		port := nat.Port(fmt.Sprintf("%d/%s", p.GetContainerPort(), proto))
		binding := nat.PortBinding{HostIP: e.hostIP(p)}
		if p.GetHostPort() > 0 {
			binding.HostPort = strconv.FormatUint(uint64(p.GetHostPort()), 10)
		}
		exposed[port] = struct{}{}
		published[port] = append(published[port], binding)
	}
	return exposed, published
}

func (e *Engine) hostIP(p *agentv1.PortBinding) string {
	if p.GetHostIp() == "" {
		return e.address
	}
	return p.GetHostIp()
}

func healthcheck(h *agentv1.Healthcheck) *container.HealthConfig {
	if h == nil {
		return nil
	}
	return &container.HealthConfig{
		Test: h.GetTest(), Interval: h.GetInterval().AsDuration(), Timeout: h.GetTimeout().AsDuration(),
		StartPeriod: h.GetStartPeriod().AsDuration(), Retries: int(h.GetRetries()),
	}
}

func resourcesOf(spec *agentv1.ContainerSpec) (container.Resources, error) {
	r := spec.GetResources()
	out := container.Resources{
		Memory: r.GetMemoryLimitBytes(), NanoCPUs: r.GetNanoCpuLimit(), MemoryReservation: r.GetMemoryReservationBytes(),
	}
	if n := r.GetPidsLimit(); n != 0 {
		out.PidsLimit = &n
	}
	for _, g := range r.GetGpus() {
		capabilities := g.GetCapabilities()
		if len(capabilities) == 0 {
			capabilities = []string{"gpu"}
		}
		request := container.DeviceRequest{
			Driver: g.GetDriver(), Count: int(g.GetCount()), DeviceIDs: g.GetDeviceIds(), Capabilities: [][]string{capabilities},
		}
		if len(request.DeviceIDs) > 0 { // the engine refuses both.
			request.Count = 0
		}
		out.DeviceRequests = append(out.DeviceRequests, request)
	}
	for _, u := range spec.GetUlimits() {
		out.Ulimits = append(out.Ulimits, &units.Ulimit{Name: u.GetName(), Soft: u.GetSoft(), Hard: u.GetHard()})
	}
	for _, d := range spec.GetDevices() {
		parts := strings.Split(d, ":")
		if len(parts) > 3 || !path.IsAbs(parts[0]) {
			return out, invalid("container %q: device %q is not host[:container[:permissions]]", spec.GetName(), d)
		}
		mapping := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
		if len(parts) > 1 && parts[1] != "" {
			mapping.PathInContainer = parts[1]
		}
		if len(parts) > 2 && parts[2] != "" {
			mapping.CgroupPermissions = parts[2]
		}
		out.Devices = append(out.Devices, mapping)
	}
	return out, nil
}

func mounts(spec *agentv1.ContainerSpec) []mount.Mount {
	out := make([]mount.Mount, 0, len(spec.GetMounts()))
	for _, m := range spec.GetMounts() {
		one := mount.Mount{Type: mount.Type(m.GetType()), Source: m.GetSource(), Target: m.GetTarget(), ReadOnly: m.GetReadOnly()}
		switch m.GetType() {
		case "bind":
			if m.GetPropagation() != "" {
				one.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(m.GetPropagation())}
			}
		case "volume":
			one.VolumeOptions = &mount.VolumeOptions{}
			if stack := spec.GetLabels()[labelStack]; stack != "" && m.GetSource() != "" {
				one.VolumeOptions.Labels = map[string]string{labelStack: stack}
			}
			if m.GetVolumeDriver() != "" || len(m.GetVolumeOptions()) > 0 {
				one.VolumeOptions.DriverConfig = &mount.Driver{Name: m.GetVolumeDriver(), Options: m.GetVolumeOptions()}
			}
		case "tmpfs":
			if m.GetTmpfsSizeBytes() > 0 {
				one.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.GetTmpfsSizeBytes()}
			}
		}
		out = append(out, one)
	}
	return out
}

// wholeSeconds rounds up: the engine counts in seconds, and less time than asked for would cut a shutdown short.
func wholeSeconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}

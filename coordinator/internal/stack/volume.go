package stack

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// mounts maps volumes, binds and tmpfs, in order of their targets.
func (m *mapper) mounts(s types.ServiceConfig) []*agentv1.Mount {
	var out []*agentv1.Mount
	for i, v := range s.Volumes {
		key := "volumes." + strconv.Itoa(i)
		mount := &agentv1.Mount{Type: v.Type, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
		if !path.IsAbs(v.Target) {
			m.refuse(s.Name, key, "target %q is not an absolute path in the container", cut(v.Target))
			continue
		}
		switch v.Type {
		case types.VolumeTypeBind:
			if m.relative[v.Source] && m.src.project == noProject {
				m.refuse(s.Name, key, "%s is relative, and the stack has no project directory on the hosts: give one with --project-directory", m.rel(v.Source))
			}
			if v.Bind != nil {
				mount.Propagation, mount.CreateHostPath = v.Bind.Propagation, bool(v.Bind.CreateHostPath)
			}
		case types.VolumeTypeVolume:
			if v.Source != "" {
				m.volume(s.Name, key, v.Source, mount)
			}
		case types.VolumeTypeTmpfs:
			mount.Source = ""
			if v.Tmpfs != nil {
				mount.TmpfsSizeBytes = int64(v.Tmpfs.Size)
			}
		default:
			m.refuse(s.Name, key, "type %s: there are bind, volume and tmpfs", cut(v.Type))
		}
		out = append(out, mount)
	}
	for i, text := range s.Tmpfs {
		out = append(out, m.tmpfs(s.Name, "tmpfs."+strconv.Itoa(i), text))
	}
	slices.SortFunc(out, func(a, b *agentv1.Mount) int { return strings.Compare(a.GetTarget(), b.GetTarget()) })
	return out
}

// volume fills in what the top-level section says about a named volume.
func (m *mapper) volume(service, key, name string, mount *agentv1.Mount) {
	v, ok := m.Volumes[name]
	if !ok {
		m.refuse(service, key, "volume %s is not declared under volumes:", cut(name))
		return
	}
	mount.Source, mount.VolumeDriver, mount.External = v.Name, v.Driver, bool(v.External)
	if len(v.DriverOpts) > 0 {
		mount.VolumeOptions = v.DriverOpts
		if device := v.DriverOpts["device"]; m.relative[device] && m.src.project == noProject {
			m.found = append(m.found, m.sentence([]string{"volumes", name, "driver_opts", "device"},
				"the path is relative, and the stack has no project directory on the hosts: give one with --project-directory"))
		}
	}
}

// tmpfs maps the short syntax: /path:size=64m.
func (m *mapper) tmpfs(service, key, text string) *agentv1.Mount {
	target, options, _ := strings.Cut(text, ":")
	mount := &agentv1.Mount{Type: "tmpfs", Target: target}
	if !path.IsAbs(target) {
		m.refuse(service, key, "%q is not an absolute path in the container", cut(target))
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "", "rw", "noexec", "nosuid", "nodev": // Docker's own defaults.
		case "mode":
			if strings.TrimLeft(value, "0") != "1777" {
				m.refuse(service, key, "mode %s: the mode of a tmpfs is 1777", cut(value))
			}
		case "size":
			size, err := units.RAMInBytes(value)
			if err != nil {
				m.refuse(service, key, "size %s is not a size", cut(value))
			}
			mount.TmpfsSizeBytes = size
		default:
			m.refuse(service, key, "option %s is not supported: there are size and mode=1777", cut(name))
		}
	}
	return mount
}

// data decides where a service is bound to be: what it mounts and only one host has pins it there.
func (m *mapper) data(s types.ServiceConfig, out *coordinatorv1.Service, shared []string) {
	unused := map[string]bool{}
	for _, p := range shared {
		unused[p] = true
	}
	isShared := func(source, display string) bool {
		for _, p := range shared {
			clean := path.Clean(p)
			full := path.Join(m.src.project, clean)
			if path.IsAbs(clean) {
				full = clean
			}
			if p == display || source == full || strings.HasPrefix(source, strings.TrimSuffix(full, "/")+"/") {
				delete(unused, p)
				return true
			}
		}
		return false
	}
	names := map[string]string{}
	for name, v := range m.Volumes {
		names[v.Name] = name
	}
	var local, writable []*agentv1.Mount
	for _, mount := range out.GetTemplate().GetMounts() {
		switch mount.GetType() {
		case "volume":
			if mount.GetSource() == "" || isShared(mount.GetSource(), names[mount.GetSource()]) {
				continue
			}
			writable = append(writable, mount)
			if !remote(mount) {
				local = append(local, mount)
			}
		case "bind":
			if !isShared(mount.GetSource(), mount.GetSource()) && m.relative[mount.GetSource()] {
				writable = append(writable, mount)
				local = append(local, mount)
			}
		}
	}
	for _, p := range shared {
		if unused[p] {
			m.refuse(s.Name, extensionKey+".shared", "%s is neither a path nor a volume that the service mounts", cut(p))
		}
	}
	out.Pinned = describePins(local)
	out.StopFirst = m.exclusive(out, writable)
}

// remote says that the data of a volume is not on the host that mounts it: it comes over the network, or by a driver of its own.
func remote(mount *agentv1.Mount) bool {
	if mount.GetVolumeDriver() != "" && mount.GetVolumeDriver() != "local" {
		return true
	}
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p"}, mount.GetVolumeOptions()["type"])
}

// exclusive says why two instances of a service cannot run at once on a host; empty if they can.
func (m *mapper) exclusive(s *coordinatorv1.Service, data []*agentv1.Mount) string {
	t := s.GetTemplate()
	if ports := fixedPorts(s); len(ports) > 0 {
		return "host port " + strconv.FormatUint(uint64(ports[0].GetHostPort()), 10) + " can be bound once per host"
	}
	if t.GetNetworkMode() == "host" {
		return "it uses the host's network, where each port can be bound once"
	}
	if len(t.GetResources().GetGpus()) > 0 {
		return "its GPU is reserved for one instance"
	}
	if s.GetReplicas() > 1 && !s.GetPlacement().GetGlobal() { // several instances that run at once can share their data.
		return ""
	}
	for _, mount := range data {
		if mount.GetReadOnly() {
			continue
		}
		if mount.GetType() == "volume" {
			return writesAlone + "volume " + mount.GetSource()
		}
		return writesAlone + m.rel(mount.GetSource())
	}
	return ""
}

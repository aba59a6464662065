package container

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/distribution/reference"
	"go.yaml.in/yaml/v3"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Policy is what the owner of a host allows there, whatever a coordinator asks for. It is read from a file of the host and cannot be
// changed from afar. The zero Policy allows what a container without special rights needs, and nothing more.
type Policy struct {
	// AllowPrivileged allows privileged containers and security options that take a confinement away.
	AllowPrivileged bool `yaml:"allow_privileged"`
	// AllowHostNamespaces allows the host's pid, ipc and network namespace.
	AllowHostNamespaces bool `yaml:"allow_host_namespaces"`
	// BindRoots are protected paths, such as /etc/localtime, that containers may mount all the same, with what is below them.
	BindRoots []string `yaml:"bind_roots"`
	// BindRootsOnly forbids to mount any path that is not below one of BindRoots.
	BindRootsOnly bool `yaml:"bind_roots_only"`
	// AllowCapabilities may be added besides Docker's default ones.
	AllowCapabilities []string `yaml:"allow_capabilities"`
	// AllowDevices are device files of the host that containers may have.
	AllowDevices []string `yaml:"allow_devices"`
	// AllowImages are repositories, as registry.example.org/team/app, or prefixes of them that end in "*". Empty allows every image.
	AllowImages []string `yaml:"allow_images"`

	path string // the file it came from, named in refusals.
}

// protectedPaths are not mounted unless the policy lists them: with them a container could change, or read the secrets of, its host.
var protectedPaths = [...]string{"/proc", "/sys", "/etc", "/boot", "/dev", "/run", "/root/.ssh", "/var/lib/docker", "/var/lib/containerd"}

// defaultCapabilities are what Docker gives every container.
var defaultCapabilities = [...]string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID",
	"SETPCAP", "SETUID", "SYS_CHROOT",
}

// Types of file systems that a volume of the driver "local" may mount without a right of its own: those that lead to no path of the host,
// and those whose device is a path that is looked at.
var (
	remoteTypes = [...]string{"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p"}
	memoryTypes = [...]string{"tmpfs", "ramfs"}
	diskTypes   = [...]string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat", "ntfs3", "iso9660", "udf", "squashfs", "erofs"}
)

// LoadPolicy reads the host's policy. A missing file is the zero Policy. One that others than root or the agent's own user may write is
// refused: it would protect nothing.
func LoadPolicy(path string) (Policy, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Policy{path: path}, nil
	}
	if err != nil {
		return Policy{}, fmt.Errorf("policy: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Policy{}, fmt.Errorf("policy: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return Policy{}, fmt.Errorf("policy %q has mode %#o: take write permission from group and others (chmod 0644)", path, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return Policy{}, fmt.Errorf("policy %q belongs to uid %d: it must belong to root", path, st.Uid)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return Policy{}, fmt.Errorf("policy %q: %w", path, err)
	}
	p := Policy{path: path}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&p); err != nil && !errors.Is(err, io.EOF) {
		return Policy{}, fmt.Errorf("policy %q: %w", path, err)
	}
	for _, root := range append(slices.Clone(p.BindRoots), p.AllowDevices...) {
		if !filepath.IsAbs(root) {
			return Policy{}, fmt.Errorf("policy %q: %q is no absolute path", path, root)
		}
	}
	return p, nil
}

// guarded are paths that no policy gives away, because whoever has them has the host, or the secrets of other containers.
type guarded struct {
	socket     string // of the engine; empty if it has none here.
	secretsDir string
}

// admit returns the first reason why this host must not run the container; nil if it may.
func (p Policy) admit(spec *agentv1.ContainerSpec, own guarded) error {
	name := spec.GetName()
	if spec.GetPrivileged() && !p.AllowPrivileged {
		return p.refuse(name, "it is privileged", "allow_privileged", "true")
	}
	for _, ns := range []struct{ what, mode string }{
		{"pid", spec.GetPidMode()}, {"ipc", spec.GetIpcMode()}, {"network", spec.GetNetworkMode()},
	} {
		if ns.mode == "host" && !p.AllowHostNamespaces {
			return p.refuse(name, "it wants the host's "+ns.what+" namespace", "allow_host_namespaces", "true")
		}
	}
	for _, c := range spec.GetCapAdd() {
		c = strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if !slices.Contains(defaultCapabilities[:], c) && !p.allowsCapability(c) {
			return p.refuse(name, "it wants the capability "+c, "allow_capabilities", c)
		}
	}
	for _, opt := range spec.GetSecurityOpt() {
		if !confining(opt) && !p.AllowPrivileged {
			return p.refuse(name, fmt.Sprintf("its security option %q may take a confinement away", opt), "allow_privileged", "true")
		}
	}
	for _, d := range spec.GetDevices() {
		path, _, _ := strings.Cut(d, ":")
		if !p.AllowPrivileged && !slices.Contains(p.AllowDevices, filepath.Clean(path)) {
			return p.refuse(name, "it wants the device "+path, "allow_devices", path)
		}
	}
	for _, m := range spec.GetMounts() {
		if err := p.admitMount(name, m, own); err != nil {
			return err
		}
	}
	return p.admitImage(name, spec.GetImage())
}

// admitMount looks at what a mount leads to. A volume with options may be a path of the host by another name.
func (p Policy) admitMount(name string, m *agentv1.Mount, own guarded) error {
	options := m.GetVolumeOptions()
	device := options["device"]
	switch {
	case m.GetType() == "bind":
		return p.admitBind(name, m.GetSource(), own)
	case m.GetType() != "volume" || len(options) == 0:
		return nil
	case m.GetVolumeDriver() != "" && m.GetVolumeDriver() != "local": // only its author knows what the options mean.
		if filepath.IsAbs(device) {
			return p.admitBind(name, device, own)
		}
		return nil
	}
	// The engine hands type, o and device to mount(2) as they are. There the options bind and rbind make the type meaningless.
	kind := options["type"]
	flags := strings.FieldsFunc(options["o"], func(r rune) bool { return r == ',' || r == ' ' })
	if !slices.Contains(flags, "bind") && !slices.Contains(flags, "rbind") {
		switch {
		case slices.Contains(remoteTypes[:], kind), slices.Contains(memoryTypes[:], kind):
			return nil
		case kind != "" && kind != "none" && !slices.Contains(diskTypes[:], kind): // such as proc, or overlay with folders in its options.
			if p.AllowPrivileged {
				return nil
			}
			return p.refuse(name, fmt.Sprintf("its volume %q mounts a file system of type %q", m.GetSource(), kind), "allow_privileged", "true")
		}
	}
	if device == "" { // the engine refuses it, or makes a folder of its own.
		return nil
	}
	// A relative device is one of the daemon's working directory, which is the root.
	return p.admitBind(name, filepath.Join("/", device), own)
}

func (p Policy) admitBind(name, source string, own guarded) error {
	real, secrets := resolve(source), resolve(own.secretsDir)
	socket := ""
	if own.socket != "" {
		socket = resolve(own.socket)
	}
	if base := filepath.Base(real); real == socket || base == "docker.sock" || base == "containerd.sock" || within(real, secrets) {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_REFUSED, true,
			"container %q is refused: it mounts %s of the host, the engine's socket or other containers' secrets, which no policy allows", name, source)
	}
	if slices.ContainsFunc(p.BindRoots, func(root string) bool { return within(real, resolve(root)) }) {
		return nil
	}
	// A parent of a protected path is as good as the path.
	protected := p.BindRootsOnly || within(secrets, real) || socket != "" && within(socket, real)
	for _, root := range protectedPaths {
		protected = protected || within(real, root) || within(root, real)
	}
	if protected {
		return p.refuse(name, fmt.Sprintf("it mounts %s of the host", source), "bind_roots", source)
	}
	return nil
}

func (p Policy) admitImage(name, image string) error {
	if len(p.AllowImages) == 0 || image == "" {
		return nil
	}
	repository := image
	if ref, err := reference.ParseNormalizedNamed(image); err == nil && !strings.HasPrefix(image, "sha256:") {
		repository = reference.FamiliarName(ref)
	}
	for _, allowed := range p.AllowImages {
		prefix, star := strings.CutSuffix(allowed, "*")
		if repository == allowed || star && strings.HasPrefix(repository, prefix) {
			return nil
		}
	}
	return p.refuse(name, "its image is "+repository, "allow_images", repository)
}

func (p Policy) allowsCapability(c string) bool {
	return slices.ContainsFunc(p.AllowCapabilities, func(a string) bool { return strings.TrimPrefix(strings.ToUpper(a), "CAP_") == c })
}

// refuse names the key that the host's owner would change.
func (p Policy) refuse(name, why, key, value string) error {
	path := p.path
	if path == "" {
		path = "the agent's policy file"
	}
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_REFUSED, true,
		"container %q is refused by this host's policy: %s; its owner may allow it in %s with %s: %s", name, why, path, key, value)
}

// confining says that a security option takes nothing away from the engine's defaults.
func confining(opt string) bool {
	key, value, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
	switch key {
	case "no-new-privileges":
		return true
	case "apparmor":
		return value == "docker-default"
	case "seccomp":
		return value == "builtin"
	case "label":
		return value != "disable"
	default:
		return false
	}
}

// resolve follows the links of as much of path as exists, so that a link cannot hide where a mount leads.
func resolve(path string) string {
	path = filepath.Clean(path)
	rest := ""
	for dir := path; ; dir = filepath.Dir(dir) {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest)
		}
		if dir == filepath.Dir(dir) {
			return path
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// within says that path is root or lies below it.
func within(path, root string) bool {
	if root == "/" {
		return true
	}
	return path == root || strings.HasPrefix(path, root+"/")
}

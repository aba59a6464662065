package stack

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// maxConfigBytes is what the config files of one container may hold together.
const maxConfigBytes = 512 << 10

// files maps secrets and configs, which become files in the containers.
func (m *mapper) files(s types.ServiceConfig, t *agentv1.ContainerSpec) {
	for i, ref := range s.Secrets {
		m.secret(s.Name, "secrets."+strconv.Itoa(i), types.FileReferenceConfig(ref), t)
	}
	for i, ref := range s.Configs {
		m.config(s.Name, "configs."+strconv.Itoa(i), types.FileReferenceConfig(ref), t)
	}
	total := 0
	for _, c := range t.Configs {
		total += len(c.GetContent())
	}
	if total > maxConfigBytes {
		m.refuse(s.Name, "configs", "%s together, and %s is the limit for a container: put large files into the image or a volume",
			formatBytes(int64(total)), formatBytes(maxConfigBytes))
	}
	slices.SortFunc(t.Secrets, func(a, b *agentv1.SecretMount) int { return strings.Compare(a.GetTarget(), b.GetTarget()) })
	slices.SortFunc(t.Configs, func(a, b *agentv1.ConfigFile) int { return strings.Compare(a.GetTarget(), b.GetTarget()) })
}

// secret maps one use of a secret. External ones come from the store when the container is made; the planner gives them their version.
func (m *mapper) secret(service, key string, ref types.FileReferenceConfig, t *agentv1.ContainerSpec) {
	def, ok := m.Secrets[ref.Source]
	if !ok {
		m.refuse(service, key, "secret %s is not declared under secrets:", cut(ref.Source))
		return
	}
	target := cmp.Or(ref.Target, ref.Source)
	if !path.IsAbs(target) {
		target = path.Join("/run/secrets", target)
	}
	uid, gid, mode := m.owner(service, key, ref)
	if def.External {
		m.external[def.Name] = true
		t.Secrets = append(t.Secrets, &agentv1.SecretMount{Secret: &agentv1.SecretValue{Name: def.Name}, Target: target, Uid: uid, Gid: gid, Mode: mode})
		return
	}
	content, ok := m.content(service, key, "secret "+ref.Source, types.FileObjectConfig(def))
	if !ok {
		return
	}
	m.warn(service, key, "the value of secret %s comes with the files and is kept with each release, for all who may read the stack: "+
		"musterctl secret set %s and external: true keep it in the secret store", ref.Source, ref.Source)
	t.Configs = append(t.Configs, &agentv1.ConfigFile{Target: target, Content: content, Uid: uid, Gid: gid, Mode: mode})
}

// config maps one use of a config.
func (m *mapper) config(service, key string, ref types.FileReferenceConfig, t *agentv1.ContainerSpec) {
	def, ok := m.Configs[ref.Source]
	if !ok {
		m.refuse(service, key, "config %s is not declared under configs:", cut(ref.Source))
		return
	}
	target := cmp.Or(ref.Target, "/"+ref.Source)
	if !path.IsAbs(target) {
		target = "/" + target
	}
	if def.External {
		m.refuse(service, key, "config %s is external, and there is no store of configs: give it file: or content:", ref.Source)
		return
	}
	content, ok := m.content(service, key, "config "+ref.Source, types.FileObjectConfig(def))
	if !ok {
		return
	}
	uid, gid, mode := m.owner(service, key, ref)
	t.Configs = append(t.Configs, &agentv1.ConfigFile{Target: path.Clean(target), Content: content, Uid: uid, Gid: gid, Mode: mode})
}

// content finds what a secret or config holds.
func (m *mapper) content(service, key, what string, def types.FileObjectConfig) ([]byte, bool) {
	switch {
	case def.File != "":
		content, ok := m.src.files[def.File]
		if !ok {
			m.refuse(service, key, "%s: file %s is not among the files that were sent", what, m.rel(def.File))
		}
		return content, ok
	case def.Environment != "":
		value, ok := m.src.env[def.Environment]
		if !ok {
			m.refuse(service, key, "%s: variable %s is not set", what, def.Environment)
		}
		return []byte(value), ok
	}
	return []byte(def.Content), true
}

// owner maps who may read the file.
func (m *mapper) owner(service, key string, ref types.FileReferenceConfig) (uid, gid, mode uint32) {
	number := func(name, text string) uint32 {
		if text == "" {
			return 0
		}
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			m.refuse(service, key, "%s %s is not a number: names of users are known only in the container", name, cut(text))
		}
		return uint32(n)
	}
	if ref.Mode != nil {
		if *ref.Mode < 0 || *ref.Mode > 0o7777 {
			m.refuse(service, key, "mode %#o is not a file mode", int64(*ref.Mode))
		} else {
			mode = uint32(*ref.Mode)
		}
	}
	return number("uid", ref.UID), number("gid", ref.GID), mode
}

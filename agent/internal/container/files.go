package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/docker/docker/api/types/mount"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// file is one secret or config of a container.
type file struct {
	target   string
	content  []byte
	uid, gid uint32
	mode     uint32
}

func filesOf(spec *agentv1.ContainerSpec) []file {
	var out []file
	for _, s := range spec.GetSecrets() {
		out = append(out, file{s.GetTarget(), s.GetSecret().GetValue(), s.GetUid(), s.GetGid(), s.GetMode()})
	}
	for _, c := range spec.GetConfigs() {
		out = append(out, file{c.GetTarget(), c.GetContent(), c.GetUid(), c.GetGid(), c.GetMode()})
	}
	return out
}

// writeFiles writes the secrets and configs of a container that does not exist yet and returns their mounts. They outlive the agent;
// removeFiles takes them away. The folder is for root alone: the container reaches its files only through the mounts.
func (e *Engine) writeFiles(spec *agentv1.ContainerSpec) ([]mount.Mount, error) {
	files := filesOf(spec)
	if len(files) == 0 {
		return nil, nil
	}
	if err := e.removeFiles(spec.GetName()); err != nil {
		return nil, err
	}
	dir := filepath.Join(e.secretsDir, spec.GetName())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for the secrets of container %q: %w", spec.GetName(), err)
	}
	// MkdirAll leaves the mode of folders that exist: a folder that others can read would give the secrets away.
	for _, d := range []string{e.secretsDir, dir} {
		if err := os.Chmod(d, 0o700); err != nil {
			return nil, fmt.Errorf("folder for the secrets of container %q: %w", spec.GetName(), err)
		}
	}
	out := make([]mount.Mount, 0, len(files))
	for i, f := range files {
		path := filepath.Join(dir, strconv.Itoa(i))
		if err := f.write(path); err != nil {
			return nil, fmt.Errorf("file %s of container %q: %w", f.target, spec.GetName(), err)
		}
		out = append(out, mount.Mount{Type: mount.TypeBind, Source: path, Target: f.target, ReadOnly: true})
	}
	return out, nil
}

func (f file) write(path string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	mode := os.FileMode(f.mode).Perm()
	if mode == 0 {
		mode = 0o444
	}
	_, err = out.Write(f.content)
	if err == nil && (int(f.uid) != os.Geteuid() || int(f.gid) != os.Getegid()) {
		err = out.Chown(int(f.uid), int(f.gid))
	}
	if err == nil {
		err = out.Chmod(mode)
	}
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// removeFiles removes the secrets and configs of a container; none is no error. name is a valid container name, so it stays in the folder.
func (e *Engine) removeFiles(name string) error {
	if !validName.MatchString(name) {
		return nil // no container of that name was ever created here.
	}
	if err := os.RemoveAll(filepath.Join(e.secretsDir, name)); err != nil {
		return fmt.Errorf("remove the secrets of container %q: %w", name, err)
	}
	return nil
}

// lostFiles names a mounted file of the container that is gone, as all of them are when the host was started anew.
func (e *Engine) lostFiles(mounts []mount.Mount) string {
	for _, m := range mounts {
		if m.Type != mount.TypeBind || !within(m.Source, e.secretsDir) {
			continue
		}
		if _, err := os.Stat(m.Source); errors.Is(err, fs.ErrNotExist) {
			return m.Target
		}
	}
	return ""
}

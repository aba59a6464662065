package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/spheroseg/muster/internal/durable"
	"github.com/spheroseg/muster/internal/identity"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

const (
	membershipFile = "agent.yaml"
	lockFile       = "lock"
)

// membership is what Join was told, and coordinators told since, kept in the data directory.
type membership struct {
	// Coordinators by host:port.
	Coordinators []string `yaml:"coordinators"`
}

func ledgerFile(dir string) string { return filepath.Join(dir, "ledger") }

// loadMembership returns the agent's identity and the coordinators to dial: the given ones first, then the stored ones.
func loadMembership(o Options) (*identity.Credentials, []string, error) {
	credentials, err := identity.LoadCredentials(o.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s holds no identity: get one with `muster-agent join --data-dir %s`: %w", o.DataDir, o.DataDir, err)
	}
	if err != nil {
		return nil, nil, err
	}
	if id := credentials.ID(); id.Role != accessv1.Role_ROLE_AGENT {
		return nil, nil, fmt.Errorf("the identity in %s is %s, which is no agent's", o.DataDir, id)
	}
	coordinators, err := storedCoordinators(o.DataDir)
	if err != nil && len(o.Coordinators) == 0 {
		return nil, nil, fmt.Errorf("%w; give coordinators with --coordinator", err)
	}
	if err != nil { // what the coordinators tell replaces it.
		o.Logger.Warn("the stored coordinators are not known, dialling the given ones", "err", err)
	}
	for _, given := range slices.Backward(o.Coordinators) {
		coordinators = slices.DeleteFunc(coordinators, func(c string) bool { return c == given })
		coordinators = slices.Insert(coordinators, 0, given)
	}
	return credentials, coordinators, nil
}

// storedCoordinators are those that Join, or a coordinator since, told.
func storedCoordinators(dir string) ([]string, error) {
	path := filepath.Join(dir, membershipFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("coordinators: %w", err)
	}
	var m membership
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(&m); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(m.Coordinators) == 0 {
		return nil, fmt.Errorf("%s names no coordinators", path)
	}
	return m.Coordinators, nil
}

// saveMembership replaces the file in one step that survives a crash.
func saveMembership(dir string, m membership) error {
	raw, err := yaml.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, membershipFile), raw, 0o600)
}

// lockDir takes the data directory for this process, until unlock or its end.
func lockDir(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("another muster-agent uses %s: stop it first, or give this one another --data-dir", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

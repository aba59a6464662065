package coordinator

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/spheroseg/muster/internal/durable"
	"github.com/spheroseg/muster/internal/identity"
)

const (
	settingsFile  = "coordinator.yaml"
	unlockKeyFile = "unlock.key"
	unlockKeySize = 32
)

// Settings of a coordinator, kept in its data directory since init or join.
type Settings struct {
	// Name of the coordinator, its id in the raft cluster.
	Name string `yaml:"name"`
	// ClusterID of the cluster.
	ClusterID string `yaml:"cluster_id"`
	// Listen address of the one port.
	Listen string `yaml:"listen"`
	// Advertise is the address, host:port, at which others reach that port.
	Advertise string `yaml:"advertise"`
	// HTTPListen address of JSON, metrics and health; empty for none.
	HTTPListen string `yaml:"http_listen"`
}

func (s Settings) validate() error {
	if err := identity.ValidName(s.Name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if _, _, err := net.SplitHostPort(s.Listen); err != nil {
		return fmt.Errorf("--listen %q is no address like :7443: %w", s.Listen, err)
	}
	host, port, err := net.SplitHostPort(s.Advertise)
	if n, notNumber := strconv.ParseUint(port, 10, 16); err != nil || host == "" || notNumber != nil || n == 0 {
		return fmt.Errorf("--advertise %q must be the host:port at which the other coordinators and the agents reach this one", s.Advertise)
	}
	if s.HTTPListen != "" {
		if _, _, err := net.SplitHostPort(s.HTTPListen); err != nil {
			return fmt.Errorf("--http-listen %q is no address like :7480: %w", s.HTTPListen, err)
		}
	}
	return nil
}

// prepareDir makes the data directory, and refuses one that is in use.
func prepareDir(dir string) error {
	if dir == "" {
		return errors.New("--data-dir is empty")
	}
	if _, err := os.Stat(filepath.Join(dir, settingsFile)); err == nil {
		return fmt.Errorf("%s holds a coordinator already: start it with `muster-coordinator run --data-dir %s`, or give another directory", dir, dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// saveSettings writes the settings last: a directory that has them is complete.
func saveSettings(dir string, settings Settings) error {
	raw, err := yaml.Marshal(settings)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, settingsFile), raw, 0o600)
}

func loadSettings(dir string) (Settings, error) {
	path := filepath.Join(dir, settingsFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, fmt.Errorf("%s holds no coordinator: make one with `muster-coordinator init` or `muster-coordinator join`", dir)
	}
	if err != nil {
		return Settings{}, err
	}
	var settings Settings
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(&settings); err != nil {
		return Settings{}, fmt.Errorf("read %s: %w", path, err)
	}
	return settings, settings.validate()
}

// newUnlockKey makes the key that seals this coordinator's log and snapshots on its disk.
func newUnlockKey(path string) ([]byte, error) {
	key := make([]byte, unlockKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return key, durable.WriteFile(path, []byte(hex.EncodeToString(key)+"\n"), 0o600)
}

func loadUnlockKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the unlock key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the unlock key %s is readable by others (mode %o): run `chmod 600 %s`", path, info.Mode().Perm(), path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != unlockKeySize {
		return nil, fmt.Errorf("the unlock key %s is not %d bytes in hexadecimal", path, unlockKeySize)
	}
	return key, nil
}

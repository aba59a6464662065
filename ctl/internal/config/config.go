// Package config owns the file that names the clusters which an operator works with. Keys and certificates are identity's
// files; this file only says where they are.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/spheroseg/muster/internal/durable"
)

// Context is one cluster, as one identity.
type Context struct {
	// Name of the context.
	Name string `yaml:"name"`
	// Cluster is the cluster's id.
	Cluster string `yaml:"cluster"`
	// Identity is a SPIFFE id.
	Identity string `yaml:"identity"`
	// Coordinators by address, in the order in which they are tried.
	Coordinators []string `yaml:"coordinators"`
	// Credentials is the folder of the key and the certificates.
	Credentials string `yaml:"credentials"`
}

// File is the configuration.
type File struct {
	// Current is the context that is used unless another is named.
	Current string `yaml:"current"`
	// Contexts in order of their names.
	Contexts []Context `yaml:"contexts"`
}

// Paths are where musterctl keeps things.
type Paths struct {
	// Config is the configuration file.
	Config string
	// State is the folder of keys and certificates.
	State string
}

// Lookup returns an environment variable, as os.LookupEnv does.
type Lookup func(name string) (string, bool)

// Locate returns the paths that the environment asks for.
func Locate(env Lookup) (Paths, error) {
	base := func(variable, fallback string) (string, error) {
		if dir, ok := env(variable); ok && filepath.IsAbs(dir) { // the XDG specification ignores relative ones.
			return filepath.Join(dir, "musterctl"), nil
		}
		home, ok := env("HOME")
		if !ok || home == "" {
			return "", fmt.Errorf("neither %s nor HOME is set", variable)
		}
		return filepath.Join(home, fallback, "musterctl"), nil
	}
	state, err := base("XDG_STATE_HOME", ".local/state")
	if err != nil {
		return Paths{}, err
	}
	if file, ok := env("MUSTERCTL_CONFIG"); ok && file != "" {
		return Paths{Config: file, State: state}, nil
	}
	dir, err := base("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return Paths{}, err
	}
	return Paths{Config: filepath.Join(dir, "config.yaml"), State: state}, nil
}

// Load reads the configuration. A missing file is an empty configuration.
func Load(path string) (*File, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	f := &File{}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(f); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return f, nil
}

// Save writes the configuration as a whole or not at all.
func (f *File) Save(path string) error {
	raw, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save configuration: %w", err)
	}
	if err := durable.WriteFile(path, raw, 0o600); err != nil {
		return fmt.Errorf("save configuration: %w", err)
	}
	return nil
}

// Context returns the context of a name, or the current one for "".
func (f *File) Context(name string) (Context, bool) {
	if name == "" {
		name = f.Current
	}
	for _, c := range f.Contexts {
		if c.Name == name {
			return c, true
		}
	}
	return Context{}, false
}

// Put adds or replaces a context and makes it the current one.
func (f *File) Put(c Context) {
	f.Contexts = slices.DeleteFunc(f.Contexts, func(o Context) bool { return o.Name == c.Name })
	f.Contexts = append(f.Contexts, c)
	slices.SortFunc(f.Contexts, func(a, b Context) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	f.Current = c.Name
}

// Names returns the names of all contexts.
func (f *File) Names() []string {
	names := make([]string, 0, len(f.Contexts))
	for _, c := range f.Contexts {
		names = append(names, c.Name)
	}
	return names
}

package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spheroseg/muster/ctl/internal/config"
)

func TestLocate(t *testing.T) {
	tests := []struct {
		name          string
		env           map[string]string
		config, state string
		wrong         bool
	}{
		{"home", map[string]string{"HOME": "/h"}, "/h/.config/musterctl/config.yaml", "/h/.local/state/musterctl", false},
		{"xdg", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}, "/c/musterctl/config.yaml", "/s/musterctl", false},
		{"relative xdg is ignored", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "c"}, "/h/.config/musterctl/config.yaml", "/h/.local/state/musterctl", false},
		{"own variable", map[string]string{"MUSTERCTL_CONFIG": "/x.yaml", "XDG_STATE_HOME": "/s"}, "/x.yaml", "/s/musterctl", false},
		{"nothing", nil, "", "", true},
		{"no home for the state", map[string]string{"MUSTERCTL_CONFIG": "/x.yaml"}, "", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config.Locate(func(n string) (string, bool) { v, ok := tt.env[n]; return v, ok })
			if (err != nil) != tt.wrong {
				t.Fatalf("error %v", err)
			}
			if want := (config.Paths{Config: tt.config, State: tt.state}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestSaveLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "config.yaml")
	f, err := config.Load(path)
	if err != nil || len(f.Contexts) != 0 {
		t.Fatalf("a missing file gives %+v, %v", f, err)
	}
	f.Put(config.Context{Name: "b", Coordinators: []string{"x:1"}})
	f.Put(config.Context{Name: "a", Cluster: "1"})
	f.Put(config.Context{Name: "a", Cluster: "2", Coordinators: []string{"y:1"}})
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	got, err := config.Load(path)
	if err != nil || !reflect.DeepEqual(got, f) {
		t.Fatalf("got %+v, %v, want %+v", got, err, f)
	}
	if c, ok := got.Context(""); !ok || c.Name != "a" || c.Cluster != "2" || len(got.Contexts) != 2 {
		t.Errorf("current context %+v of %+v", c, got)
	}
	if _, ok := got.Context("c"); ok {
		t.Error("context c exists")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".config-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	for text, want := range map[string]string{
		"current: a\ncontxts: []\n": "line 2: field contxts not found",
		"current: [\n":              "yaml",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

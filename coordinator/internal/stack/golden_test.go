package stack_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spheroseg/muster/coordinator/internal/stack"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldens are the projects that are compared with what docker compose config prints.
var goldens = []struct {
	name     string
	files    []string
	profiles []string
	golden   string
}{
	{"production", production, nil, "config.golden.json"},
	{"one file", production[:1], nil, "config-base.golden.json"},
	{"managed, with a profile", managed, []string{"debug"}, "config-managed.golden.json"},
}

func TestProjectEqualsDockerComposeConfig(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			src := fixtureSource(t, tt.files...)
			src.Profiles = tt.profiles
			ours, err := stack.ComposeJSON(t.Context(), src)
			if err != nil {
				t.Fatal(err)
			}
			golden, err := os.ReadFile(filepath.Join(fixture, tt.golden))
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range differences("", normalize(t, ours, false), normalize(t, golden, true)) {
				t.Errorf("Load and docker compose config differ: %s", d)
			}
		})
	}
}

func TestGoldenIsWhatDockerComposePrints(t *testing.T) {
	compose := dockerCompose(t)
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			printed := composeConfig(t, compose, tt.files, tt.profiles)
			name := filepath.Join(fixture, tt.golden)
			if *update {
				if err := os.WriteFile(name, printed, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range differences("", normalize(t, printed, false), normalize(t, golden, false)) {
				t.Errorf("docker compose config and the golden file differ (-update rewrites it): %s", d)
			}
		})
	}
}

// dockerCompose finds the program, or skips.
func dockerCompose(t *testing.T) string {
	t.Helper()
	name := os.Getenv("MUSTER_DOCKER_COMPOSE")
	if name == "" {
		name = "../../../.cache/bin/docker-compose"
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(abs); err != nil {
		t.Skip("docker compose is not here, so the golden files were not compared with what it prints now: " +
			"set MUSTER_DOCKER_COMPOSE to its binary (built from github.com/docker/compose, package cmd)")
	}
	return abs
}

// composeConfig lets docker compose print the fixture. Its consistency check is off: it refuses container_name together with replicas,
// which the stack has and Muster takes.
func composeConfig(t *testing.T, compose string, files, profiles []string) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, f := range fixtureSource(t).GetFiles() {
		name := filepath.Join(dir, f.GetPath())
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.GetContent(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var args []string
	for _, f := range files {
		args = append(args, "-f", f)
	}
	for _, p := range profiles {
		args = append(args, "--profile", p)
	}
	cmd := exec.CommandContext(t.Context(), compose, append(args, "config", "--no-consistency", "--format", "json")...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker compose config: %v\n%s", err, stderr.Bytes())
	}
	return bytes.ReplaceAll(out, []byte(dir), []byte(projectDirectory))
}

// normalize decodes a project. Config prints "$" as "$$", so that its output can be read again.
func normalize(t *testing.T, text []byte, escaped bool) any {
	t.Helper()
	if escaped {
		text = []byte(strings.ReplaceAll(string(text), "$$", "$"))
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// differences lists where two decoded JSON values differ.
func differences(path string, got, want any) []string {
	gotMap, ok1 := got.(map[string]any)
	wantMap, ok2 := want.(map[string]any)
	if ok1 && ok2 {
		var out []string
		for k := range gotMap {
			if _, ok := wantMap[k]; !ok {
				out = append(out, fmt.Sprintf("%s.%s: got %v, want none", path, k, gotMap[k]))
			}
		}
		for k := range wantMap {
			if _, ok := gotMap[k]; !ok {
				out = append(out, fmt.Sprintf("%s.%s: got none, want %v", path, k, wantMap[k]))
				continue
			}
			out = append(out, differences(path+"."+k, gotMap[k], wantMap[k])...)
		}
		return out
	}
	if !reflect.DeepEqual(got, want) {
		return []string{fmt.Sprintf("%s: got %v, want %v", path, got, want)}
	}
	return nil
}

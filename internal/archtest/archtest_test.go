package archtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spheroseg/muster/internal/archtest"
)

// TestTree holds this tree to every rule.
func TestTree(t *testing.T) {
	tree, err := archtest.Load(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files) < 20 {
		t.Fatalf("read %d Go files: this is not the whole tree", len(tree.Files))
	}
	for _, rule := range archtest.Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			for _, finding := range rule.Check(tree) {
				t.Error(finding)
			}
		})
	}
}

// TestRules plants, one by one, what a rule must find into a tree that breaks none.
func TestRules(t *testing.T) {
	long := func(lines int) string { return strings.Repeat("\t_ = 0\n", lines) }
	tests := []struct {
		rule, name string
		file, text string
		want       string // part of the only finding; none is expected if it is empty
	}{
		{"top level", "a stray folder", "pkg/readme.txt", "x\n", "pkg: does not belong"},
		{"top level", "a dotfile", ".editorconfig", "x\n", ""},
		{"top level", "an ignored folder", "bin/muster", "x\n", ""},
		{"import direction", "agent to coordinator", "agent/a.go", importing("agent", Module+"/coordinator"), "agent/a.go:3: agent must not import coordinator"},
		{"import direction", "coordinator to agent", "coordinator/b_test.go", importing("coordinator", Module+"/agent/internal/container"), "coordinator must not import agent/internal/container"},
		{"import direction", "ctl to coordinator", "ctl/b.go", importing("ctl", Module+"/coordinator"), "ctl must not import coordinator"},
		{"import direction", "internal to ctl", "internal/mtls/b.go", importing("mtls", Module+"/ctl"), "internal must not import ctl"},
		{"import direction", "proto to internal", "proto/gen/b.go", importing("gen", Module+"/internal/mtls"), "proto must not import internal/mtls"},
		{"import direction", "agent to deploy", "agent/b.go", importing("agent", Module+"/deploy/demo"), "agent must not import deploy/demo"},
		{"import direction", "deploy to all", "deploy/demo/b.go", importing("main", Module+"/coordinator"), ""},
		{"import direction", "the root", "agent/b.go", importing("agent", Module), "agent must not import ."},
		{"import direction", "no component", "b.go", importing("muster", "fmt"), "belongs to no component"},
		{"layers of a component", "capability to api", "agent/internal/disk/b.go", importing("disk", Module+"/agent/internal/api"), "agent/internal/disk must not import agent/internal/api"},
		{"layers of a component", "api to root", "agent/internal/api/b.go", importing("api", Module+"/agent"), "must not import its component's root"},
		{"layers of a component", "a program", "ctl/b.go", importing("ctl", Module+"/ctl/cmd/musterctl"), "nothing imports a program"},
		{"layers of a component", "engine to runbook", "coordinator/internal/procedure/b.go", importing("procedure", Module+"/coordinator/internal/runbook"), "must not know a procedure"},
		{"layers of a component", "root to api", "agent/b.go", importing("agent", Module+"/agent/internal/api"), ""},
		{"libraries stay where they belong", "docker in coordinator", "coordinator/b.go", importing("coordinator", "github.com/docker/docker/client"), "must not import github.com/docker/docker/client"},
		{"libraries stay where they belong", "docker in another capability", "agent/internal/disk/b.go", importing("disk", "github.com/docker/docker/api/types"), "must not import github.com/docker/docker"},
		{"libraries stay where they belong", "docker at home", "agent/internal/container/b.go", importing("container", "github.com/docker/docker/client"), ""},
		{"libraries stay where they belong", "pgx in ctl", "ctl/b.go", importing("ctl", "github.com/jackc/pgx/v5"), "must not import github.com/jackc/pgx/v5"},
		{"libraries stay where they belong", "gopsutil in coordinator", "coordinator/b.go", importing("coordinator", "github.com/shirou/gopsutil/v3/mem"), "must not import github.com/shirou/gopsutil/v3/mem"},
		{"libraries stay where they belong", "nvml in the agent", "agent/internal/gpu/b.go", importing("gpu", "github.com/NVIDIA/go-nvml/pkg/nvml"), "must not import github.com/NVIDIA/go-nvml"},
		{"libraries stay where they belong", "compose-go in ctl", "ctl/b.go", importing("ctl", "github.com/compose-spec/compose-go/v2/loader"), "must not import github.com/compose-spec/compose-go"},
		{"libraries stay where they belong", "raft in the engine", "coordinator/internal/procedure/b.go", importing("procedure", "github.com/hashicorp/raft"), "must not import github.com/hashicorp/raft"},
		{"libraries stay where they belong", "raft-wal in the engine", "coordinator/internal/procedure/b.go", importing("procedure", "github.com/hashicorp/raft-wal"), "must not import github.com/hashicorp/raft-wal"},
		{"libraries stay where they belong", "raft at home", "coordinator/internal/cluster/b.go", importing("cluster", "github.com/hashicorp/raft"), ""},
		{"libraries stay where they belong", "archived yaml", "ctl/b.go", importing("ctl", "gopkg.in/yaml.v3"), "must not import gopkg.in/yaml.v3"},
		{"replicated state is deterministic", "the clock", "coordinator/internal/state/b.go", "package state\n\nimport \"time\"\n\nvar x = time.Now\n", "time.Now"},
		{"replicated state is deterministic", "the clock by another name", "coordinator/internal/state/b.go", "package state\n\nimport t \"time\"\n\nvar x = t.Since\n", "time.Since"},
		{"replicated state is deterministic", "a duration", "coordinator/internal/state/b.go", "package state\n\nimport \"time\"\n\nvar x = time.Second\n", ""},
		{"replicated state is deterministic", "chance", "coordinator/internal/state/b.go", importing("state", "math/rand/v2"), "must not import math/rand/v2"},
		{"replicated state is deterministic", "files", "coordinator/internal/state/b.go", importing("state", "os"), "must not import os"},
		{"replicated state is deterministic", "network", "coordinator/internal/state/b.go", importing("state", "net/http"), "must not import net/http"},
		{"replicated state is deterministic", "a test", "coordinator/internal/state/b_test.go", importing("state", "os"), ""},
		{"package names", "util", "agent/internal/util/b.go", "// Package util has a comment of five words.\npackage util\n", "called \"util\""},
		{"package names", "hidden behind a folder", "agent/internal/disk2/b.go", "// Package common has a comment of five words.\npackage common\n", "called \"common\""},
		{"package comments", "none", "agent/internal/disk2/b.go", "package disk2\n", "agent/internal/disk2: has no package comment"},
		{"package comments", "only tests", "deploy/e2e/b_test.go", "package e2e_test\n", "deploy/e2e: has no package comment"},
		{"package comments", "generated", "proto/gen/x/b.go", "// Code generated by x. DO NOT EDIT.\n\npackage x\n", ""},
		{"no init functions", "init", "agent/b.go", "package agent\n\nfunc init() {}\n", "agent/b.go:3: init function"},
		{"no init functions", "a method", "agent/b.go", "package agent\n\ntype a int\n\nfunc (a) init() {}\n", ""},
		{"size of main", "too long", "agent/cmd/x/main.go", "// Command x has a comment of five words.\npackage main\n\nfunc main() {\n" + long(56) + "}\n", "has 61 lines, 60 are allowed"},
		{"size of main", "just right", "agent/cmd/x/main.go", "// Command x has a comment of five words.\npackage main\n\nfunc main() {\n" + long(55) + "}\n", ""},
		{"size of files", "too long", "agent/b_test.go", "package agent\n" + strings.Repeat("//\n", 600), "agent/b_test.go: has 601 lines, 600 are allowed"},
		{"size of files", "generated", "proto/gen/b.go", "// Code generated by x. DO NOT EDIT.\n\npackage gen\n" + strings.Repeat("//\n", 600), ""},
		{"size of functions", "too long", "agent/b.go", "package agent\n\nfunc f() {\n" + long(79) + "}\n", "agent/b.go:3: func f has 81 lines, 80 are allowed"},
		{"size of functions", "just right", "agent/b.go", "package agent\n\nfunc f() {\n" + long(78) + "}\n", ""},
		{"words", "a folder", "deploy/x.sh", "cd /wo" + "rk/src\n", "deploy/x.sh:1: names"},
		{"words", "part of a path", "deploy/x.sh", "cd target/wo" + "rk/src\n", ""},
		{"words", "a tool", "README.md", "by Clau" + "de\n", "README.md:1: names"},
	}
	var tested []string
	for _, tt := range tests {
		tested = append(tested, tt.rule)
		t.Run(tt.rule+"/"+tt.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, ".gitignore", "/bin/\n*.test\n")
			write(t, root, "README.md", "A clean tree.\n")
			for _, pkg := range []string{"agent", "agent/internal/api", "agent/internal/container", "agent/internal/disk", "agent/internal/gpu", "coordinator",
				"coordinator/internal/cluster", "coordinator/internal/procedure", "coordinator/internal/state", "ctl", "internal/mtls"} {
				name := filepath.Base(pkg)
				write(t, root, pkg+"/doc.go", fmt.Sprintf("// Package %s has a comment of some words.\npackage %s\n", name, name))
			}
			write(t, root, tt.file, tt.text)
			tree, err := archtest.Load(root)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(archtest.Rules(), func(r archtest.Rule) bool { return r.Name == tt.rule })
			if i < 0 {
				t.Fatalf("no rule is called %q", tt.rule)
			}
			found := archtest.Rules()[i].Check(tree)
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("found %q, want nothing", found)
			case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0], tt.want)):
				t.Errorf("found %q, want one finding with %q", found, tt.want)
			}
		})
	}
	for _, rule := range archtest.Rules() {
		if !slices.Contains(tested, rule.Name) {
			t.Errorf("no test plants what breaks the rule %q", rule.Name)
		}
	}
}

// Module is the import path of the planted files' tree.
const Module = archtest.Module

func importing(pkg, path string) string {
	return fmt.Sprintf("package %s\n\nimport _ %q\n", pkg, path)
}

func write(t *testing.T, root, file, text string) {
	t.Helper()
	name := filepath.Join(root, filepath.FromSlash(file))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

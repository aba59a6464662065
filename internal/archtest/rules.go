package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
)

// The sizes that a reader can still hold in mind.
const (
	maxFileLines = 600
	maxFuncLines = 80
	maxMainLines = 60
)

// Rule is one thing that holds for the whole tree.
type Rule struct {
	Name  string
	Check func(*Tree) []string // what breaks it, one sentence each, with its place
}

// Rules returns all rules.
func Rules() []Rule {
	return []Rule{
		{"top level", topLevel},
		{"import direction", direction},
		{"layers of a component", layers},
		{"libraries stay where they belong", libraries},
		{"replicated state is deterministic", deterministic},
		{"package names", names},
		{"package comments", comments},
		{"no init functions", inits},
		{"size of main", mains},
		{"size of files", files},
		{"size of functions", functions},
		{"words", words},
	}
}

// topLevel: a newcomer reads the root first, so it holds the components and what tools insist on finding there.
func topLevel(t *Tree) []string {
	allowed := []string{
		"proto", "agent", "coordinator", "ctl", "internal", "deploy",
		"buf.yaml", "go.mod", "go.sum", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
	}
	var found []string
	for _, entry := range t.Entries {
		if !strings.HasPrefix(entry, ".") && !slices.Contains(allowed, entry) {
			found = append(found, entry+": does not belong at the top level")
		}
	}
	return found
}

// direction: proto <- internal <- agent, coordinator, ctl <- deploy.
func direction(t *Tree) []string {
	allowed := map[string][]string{
		"proto":       {"proto"},
		"internal":    {"internal", "proto"},
		"agent":       {"agent", "internal", "proto"},
		"coordinator": {"coordinator", "internal", "proto"},
		"ctl":         {"ctl", "internal", "proto"},
		"deploy":      {"deploy", "agent", "coordinator", "ctl", "internal", "proto"},
	}
	var found []string
	for _, f := range t.Files {
		may, known := allowed[f.Component()]
		if !known {
			found = append(found, fmt.Sprintf("%s: belongs to no component", f.Path))
			continue
		}
		for _, i := range f.Imports() {
			own, ok := i.Own()
			if !ok {
				continue
			}
			if first, _, _ := strings.Cut(own, "/"); !slices.Contains(may, first) {
				found = append(found, fmt.Sprintf("%s:%d: %s must not import %s", f.Path, i.Line, f.Component(), own))
			}
		}
	}
	return found
}

// layers: inside a component, cmd -> root -> internal/api -> internal/<noun>. The engine runs plans and knows no procedure by name.
func layers(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		c := f.Component()
		if !slices.Contains([]string{"agent", "coordinator", "ctl"}, c) {
			continue
		}
		for _, i := range f.Imports() {
			own, ok := i.Own()
			if !ok {
				continue
			}
			inside := strings.HasPrefix(f.Package, c+"/internal/")
			api := within(f.Package, c+"/internal/api")
			switch {
			case within(own, c+"/cmd"):
				found = append(found, fmt.Sprintf("%s:%d: nothing imports a program, not even %s", f.Path, i.Line, own))
			case inside && own == c:
				found = append(found, fmt.Sprintf("%s:%d: %s must not import its component's root %s", f.Path, i.Line, f.Package, own))
			case inside && !api && within(own, c+"/internal/api"):
				found = append(found, fmt.Sprintf("%s:%d: %s must not import %s: the api calls capabilities, not the other way", f.Path, i.Line, f.Package, own))
			case within(f.Package, "coordinator/internal/procedure") && within(own, "coordinator/internal/runbook"):
				found = append(found, fmt.Sprintf("%s:%d: the engine must not know a procedure by name", f.Path, i.Line))
			}
		}
	}
	return found
}

// ban keeps libraries out of the packages under some folders.
type ban struct {
	imports []string // import paths; what lies below them is meant too
	under   []string // folders that must not import them
	except  []string // folders below those that may
	why     string
}

func bans() []ban {
	everywhere := []string{"proto", "internal", "agent", "coordinator", "ctl", "deploy"}
	return []ban{
		{
			imports: []string{"github.com/docker/docker", "github.com/docker/go-connections", "github.com/moby/moby"},
			under:   everywhere,
			except:  []string{"agent/internal/container", "deploy"},
			why:     "the engine's types stay inside agent/internal/container, so that a new client library is a change in one package",
		},
		{
			imports: []string{"github.com/jackc/pgx", "github.com/jackc/pgconn", "github.com/shirou/gopsutil", "github.com/gomodule/redigo"},
			under:   []string{"proto", "internal", "coordinator", "ctl"},
			why:     "only agents touch a host's databases and counters",
		},
		{
			imports: []string{"github.com/NVIDIA/go-nvml"},
			under:   everywhere,
			except:  []string{"agent/cmd/muster-gpu-probe"},
			why:     "a driver that kills its process must not kill an agent",
		},
		{
			imports: []string{"github.com/compose-spec/compose-go"},
			under:   []string{"proto", "internal", "agent", "ctl"},
			why:     "stacks are read by the coordinator; the library costs every start of a program 12 ms",
		},
		{
			imports: []string{"github.com/hashicorp/raft", "github.com/hashicorp/raft-wal", "github.com/hashicorp/raft-boltdb"},
			under:   everywhere,
			except:  []string{"coordinator/internal/cluster", "coordinator/internal/state"},
			why:     "replication is the business of cluster and state",
		},
		{
			imports: []string{"gopkg.in/yaml.v2", "gopkg.in/yaml.v3"},
			under:   everywhere,
			why:     "it is archived; use go.yaml.in/yaml/v3",
		},
	}
}

// libraries: a dependency that everyone may import cannot be replaced.
func libraries(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		for _, b := range bans() {
			if !withinAny(f.Package, b.under) || withinAny(f.Package, b.except) {
				continue
			}
			for _, i := range f.Imports() {
				if withinAny(i.Path, b.imports) {
					found = append(found, fmt.Sprintf("%s:%d: must not import %s: %s", f.Path, i.Line, i.Path, b.why))
				}
			}
		}
	}
	return found
}

// deterministic: every member applies the same log and must come to the same state. Tests may read clocks and files.
func deterministic(t *Tree) []string {
	packages := []string{"math/rand", "crypto/rand", "os", "io/ioutil", "net", "syscall"}
	clock := []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}
	var found []string
	for _, f := range t.Files {
		if f.Test || !within(f.Package, "coordinator/internal/state") {
			continue
		}
		var time string
		for _, i := range f.Imports() {
			if withinAny(i.Path, packages) {
				found = append(found, fmt.Sprintf("%s:%d: replicated state must not import %s", f.Path, i.Line, i.Path))
			}
			if i.Path == "time" {
				time = i.Name
			}
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := selector.X.(*ast.Ident); ok && time != "" && x.Name == time && slices.Contains(clock, selector.Sel.Name) {
				found = append(found, fmt.Sprintf("%s:%d: replicated state must not read the clock with time.%s: the leader stamps the command", f.Path, f.Line(n.Pos()), selector.Sel.Name))
			}
			return true
		})
	}
	return found
}

// names: a package is one noun of the field; these say nothing.
func names(t *Tree) []string {
	banned := regexp.MustCompile(`^(utils?|helpers?|common|base|types|structs|misc|shared|lib|models?)$`)
	var found []string
	seen := map[string]bool{}
	for _, f := range t.Files {
		if f.Generated || seen[f.Package] {
			continue
		}
		seen[f.Package] = true
		for _, name := range []string{path.Base(f.Package), strings.TrimSuffix(f.AST.Name.Name, "_test")} {
			if banned.MatchString(name) {
				found = append(found, fmt.Sprintf("%s: a package called %q says nothing of what it owns", f.Package, name))
				break
			}
		}
	}
	return found
}

// comments: the package comment is the map of the tree. A folder of tests alone needs one too.
func comments(t *Tree) []string {
	documented := map[string]bool{}
	var order []string
	for _, f := range t.Files {
		if f.Generated {
			continue
		}
		if _, seen := documented[f.Package]; !seen {
			order = append(order, f.Package)
			documented[f.Package] = false
		}
		if f.AST.Doc != nil && len(strings.Fields(f.AST.Doc.Text())) >= 5 {
			documented[f.Package] = true
		}
	}
	var found []string
	for _, pkg := range order {
		if !documented[pkg] {
			found = append(found, pkg+": has no package comment that says what it owns and what it leaves to others")
		}
	}
	return found
}

// inits: code that runs before main cannot be given a logger, a context or an error to return.
func inits(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		if f.Generated {
			continue
		}
		for _, decl := range f.AST.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, fmt.Sprintf("%s:%d: init function", f.Path, f.Line(fn.Pos())))
			}
		}
	}
	return found
}

// mains: a program's main turns flags, environment and signals into a call of its component, which tests can make too.
func mains(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		if strings.Contains(f.Package, "/cmd/") && path.Base(f.Path) == "main.go" && f.Lines > maxMainLines {
			found = append(found, fmt.Sprintf("%s: has %d lines, %d are allowed", f.Path, f.Lines, maxMainLines))
		}
	}
	return found
}

func files(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		if !f.Generated && f.Lines > maxFileLines {
			found = append(found, fmt.Sprintf("%s: has %d lines, %d are allowed", f.Path, f.Lines, maxFileLines))
		}
	}
	return found
}

func functions(t *Tree) []string {
	var found []string
	for _, f := range t.Files {
		if f.Generated || f.Test {
			continue
		}
		for _, decl := range f.AST.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := f.Line(fn.End()) - f.Line(fn.Pos()) + 1; lines > maxFuncLines {
				found = append(found, fmt.Sprintf("%s:%d: func %s has %d lines, %d are allowed", f.Path, f.Line(fn.Pos()), fn.Name.Name, lines, maxFuncLines))
			}
		}
	}
	return found
}

// words: the tree reads the same on every machine, so it names no folder of the one that it was written on, and nobody's tools.
// The words are put together here, so that this file does not break its own rule.
func words(t *Tree) []string {
	folders := []string{"wo" + "rk", "fa" + "rm", "ro" + "ot/go", "tmp/" + "w"}
	tools := []string{"sub" + "agent", "before-" + "stop", "clau" + "de", "anthro" + "pic", "copi" + "lot", "chat" + "gpt"}
	banned := regexp.MustCompile(`(^|[^\w./-])/(` + strings.Join(folders, "|") + `)/|(?i:` + strings.Join(tools, "|") + `)`)
	var found []string
	for _, text := range t.Texts {
		if text.Path == "go.sum" || strings.HasSuffix(text.Path, "/go.sum") {
			continue
		}
		for n, line := range strings.Split(string(text.Bytes), "\n") {
			if word := banned.FindString(line); word != "" {
				found = append(found, fmt.Sprintf("%s:%d: names %q, which only its author's machine knows", text.Path, n+1, strings.TrimSpace(word)))
			}
		}
	}
	return found
}

// within says whether a slash-separated path is the folder or lies below it.
func within(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, folder+"/")
}

func withinAny(p string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return within(p, folder) })
}

package source_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spheroseg/muster/ctl/internal/source"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// tree writes files and returns the folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "My_App.1")
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func env(m map[string]string) func(string) (string, bool) {
	return func(n string) (string, bool) { v, ok := m[n]; return v, ok }
}

func paths(s *coordinatorv1.StackSource) []string {
	var out []string
	for _, f := range s.GetFiles() {
		out = append(out, f.GetPath())
	}
	slices.Sort(out)
	return out
}

// TestFiles says for a tree of files which of them are sent.
func TestFiles(t *testing.T) {
	tests := []struct {
		name    string
		files   map[string]string
		options source.Options
		env     map[string]string
		compose []string // nil means compose.yaml
		want    []string // beside the compose files
	}{
		{name: "nothing else", files: map[string]string{"compose.yaml": "services: {a: {image: x}}", "other": ""}},
		{name: "default names with override", files: map[string]string{"docker-compose.yml": "services: {}", "docker-compose.override.yml": "services: {}"},
			compose: []string{"docker-compose.yml", "docker-compose.override.yml"}},
		{name: "compose.yaml goes first", files: map[string]string{"compose.yaml": "{}", "docker-compose.yml": "{}", "compose.override.yaml": "{}"},
			compose: []string{"compose.yaml", "compose.override.yaml"}},
		{name: "given files are all", files: map[string]string{"compose.yaml": "{}", "compose.override.yaml": "{}"}, options: source.Options{Files: []string{"compose.yaml"}}},
		{name: "COMPOSE_FILE", files: map[string]string{"compose.yaml": "{}", "a.yaml": "{}", "b/b.yaml": "{}"},
			env: map[string]string{"COMPOSE_FILE": "a.yaml:b/b.yaml"}, compose: []string{"a.yaml", "b/b.yaml"}},
		{name: "files beside and above", files: map[string]string{"deploy/compose.yaml": "services: {a: {env_file: ../a.env}}", "deploy/over/x.yaml": "services: {a: {env_file: y.env}}",
			"a.env": "", "deploy/y.env": ""}, options: source.Options{Files: []string{"deploy/compose.yaml", "deploy/over/x.yaml"}},
			compose: []string{"compose.yaml", "over/x.yaml"}, want: []string{"../a.env", "y.env"}},
		{name: ".env", files: map[string]string{"compose.yaml": "{}", ".env": "A=1"}, want: []string{".env"}},
		{name: "env_file, every form", files: map[string]string{
			"compose.yaml": `services:
  a: {env_file: a.env}
  b: {env_file: [b.env, ./sub/b2.env]}
  c: {env_file: [{path: c.env}, {path: gone.env, required: false}, {path: here.env, required: false}]}
  d: {label_file: d.labels}`,
			"a.env": "", "b.env": "", "sub/b2.env": "", "c.env": "", "here.env": "", "d.labels": ""},
			want: []string{"a.env", "b.env", "c.env", "d.labels", "here.env", "sub/b2.env"}},
		{name: "anchors and merges", files: map[string]string{
			"compose.yaml": "x-common: &c {env_file: a.env}\nx-list: &l [b.env]\nservices:\n  a:\n    <<: *c\n  b: {env_file: *l}\n  c:\n    <<: [*c]\n    env_file: c.env\n",
			"a.env":        "", "b.env": "", "c.env": ""}, want: []string{"a.env", "b.env", "c.env"}},
		{name: "tags of compose", files: map[string]string{"compose.yaml": "services:\n  a:\n    env_file: !override [a.env]\n    ports: !reset []\n", "a.env": ""}, want: []string{"a.env"}},
		{name: "configs and secrets", files: map[string]string{
			"compose.yaml": "configs: {c: {file: ./c.conf}, d: {content: x}}\nsecrets: {s: {file: s.txt}, e: {external: true}}\n", "c.conf": "", "s.txt": ""},
			want: []string{"c.conf", "s.txt"}},
		{name: "variables in names", files: map[string]string{
			"compose.yaml": "services: {a: {env_file: '${WHICH:-default}.env'}}\nconfigs: {c: {file: '$DIR/c.conf'}, d: {file: '${NONE:-d}$${x}.conf'}}\n",
			".env":         "DIR=from-dotenv\nWHICH=overridden\n", "set.env": "", "from-dotenv/c.conf": "", "d${x}.conf": ""},
			env: map[string]string{"WHICH": "set"}, want: []string{".env", "d${x}.conf", "from-dotenv/c.conf", "set.env"}},
		{name: "extends looks at one service only", files: map[string]string{
			"compose.yaml":    "services: {a: {extends: {file: base/base.yaml, service: a}}}",
			"base/base.yaml":  "services: {a: {env_file: a.env, extends: {file: deep.yaml, service: z}}, b: {env_file: not-there.env}}\nconfigs: {c: {file: not-there}}",
			"base/deep.yaml":  "services: {z: {env_file: z.env}}",
			"base/a.env":      "",
			"base/z.env":      "",
			"base/unused.env": "",
		}, want: []string{"base/a.env", "base/base.yaml", "base/deep.yaml", "base/z.env"}},
		{name: "include, every form", files: map[string]string{
			"compose.yaml":     "include:\n  - one/compose.yaml\n  - {path: [two/a.yaml, two/b.yaml], env_file: two.env, project_directory: three}\n",
			"one/compose.yaml": "services: {a: {env_file: a.env}}", "one/.env": "", "one/a.env": "",
			"two/a.yaml": "services: {a: {env_file: x.env}}", "two/b.yaml": "{}", "two.env": "", "three/x.env": "", "three/.env": "",
		}, want: []string{"one/.env", "one/a.env", "one/compose.yaml", "three/x.env", "two.env", "two/a.yaml", "two/b.yaml"}},
		{name: "profiles that are off need no files", files: map[string]string{
			"compose.yaml": "services:\n  a: {profiles: [debug], env_file: gone.env}\n  b: {profiles: [on], env_file: b.env}\n", "b.env": ""},
			options: source.Options{Profiles: []string{"on"}}, want: []string{"b.env"}},
		{name: "the same file twice", files: map[string]string{"compose.yaml": "services: {a: {env_file: [a.env, ./a.env]}, b: {env_file: a.env}}", "a.env": ""}, want: []string{"a.env"}},
		{name: "files that include each other", files: map[string]string{"compose.yaml": "include: [b.yaml]", "b.yaml": "include: [compose.yaml]"}, want: []string{"b.yaml"}},
		{name: "--env-file takes the place of .env and is not sent", files: map[string]string{"compose.yaml": "{}", ".env": "A=1", "prod.env": "A=2"},
			options: source.Options{EnvFiles: []string{"prod.env"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := tt.options
			o.WorkingDirectory, o.Env = tree(t, tt.files), env(tt.env)
			got, err := source.Collect(o)
			if err != nil {
				t.Fatal(err)
			}
			compose := tt.compose
			if compose == nil {
				compose = []string{"compose.yaml"}
			}
			if !slices.Equal(got.GetComposeFiles(), compose) {
				t.Errorf("compose files %q, want %q", got.GetComposeFiles(), compose)
			}
			want := slices.Sorted(slices.Values(append(slices.Clone(compose), tt.want...)))
			if !slices.Equal(paths(got), want) {
				t.Errorf("files %q, want %q", paths(got), want)
			}
			for _, f := range got.GetFiles() {
				if text := tt.files[filepath.Join(filepath.Dir(strings.TrimPrefix(first(o.Files), "")), f.GetPath())]; string(f.GetContent()) != text {
					t.Errorf("%s has %q, want %q", f.GetPath(), f.GetContent(), text)
				}
			}
		})
	}
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// TestEnvironment says which variables are sent: those that the files name and the process has, and no others.
func TestEnvironment(t *testing.T) {
	process := map[string]string{"A": "1", "B": "2", "C": "3", "D": "4", "E": "5", "F": "6", "G": "", "HOME": "/h", "AWS_SECRET_ACCESS_KEY": "never"}
	tests := []struct {
		name, compose string
		files         map[string]string
		options       source.Options
		want          map[string]string
	}{
		{name: "none", compose: "services: {a: {image: x}}", want: map[string]string{}},
		{name: "braces and bare", compose: "services: {a: {image: '$A:${B}', command: '${C:-${D}} ${NOT_SET}'}}", want: map[string]string{"A": "1", "B": "2", "C": "3", "D": "4"}},
		{name: "dollar signs", compose: "services: {a: {command: 'echo $$A $${B} $$$C'}}", want: map[string]string{"C": "3"}},
		{name: "keys and comments are not values", compose: "# $A\nx-$B: 1\nservices: {a: {image: $C}}", want: map[string]string{"C": "3"}},
		{name: "empty is set", compose: "name: x$G", want: map[string]string{"G": ""}},
		{name: "handed on by name", compose: "services: {a: {environment: [A, B=$C]}, b: {environment: {D: , E: x}}, c: {build: {args: [F]}}}", want: map[string]string{"A": "1", "C": "3", "D": "4", "F": "6"}},
		{name: "a secret from the environment", compose: "secrets: {s: {environment: A}}", want: map[string]string{"A": "1"}},
		{name: "in .env and env_file", compose: "services: {a: {env_file: a.env}}", files: map[string]string{".env": "X=$A\n", "a.env": "Y=${B}\nC\n# D\n"}, want: map[string]string{"A": "1", "B": "2", "C": "3"}},
		{name: "not in config files", compose: "configs: {c: {file: c.conf}}", files: map[string]string{"c.conf": "$A"}, want: map[string]string{}},
		{name: "--env-file", compose: "name: $A$X$Y", files: map[string]string{"one.env": "A=from-file\nX='one'\nUNUSED=1\nY=1", "two.env": "export Y=\"t\\\"wo $X\" # comment\n"},
			options: source.Options{EnvFiles: []string{"one.env", "two.env"}}, want: map[string]string{"A": "1", "X": "one", "Y": `t"wo one`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"compose.yaml": tt.compose}
			maps.Copy(files, tt.files)
			o := tt.options
			o.WorkingDirectory, o.Env = tree(t, files), env(process)
			got, err := source.Collect(o)
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got.GetEnvironment(), tt.want) {
				t.Errorf("environment %v, want %v", got.GetEnvironment(), tt.want)
			}
		})
	}
}

func TestNameProfilesAndDirectory(t *testing.T) {
	files := map[string]string{"compose.yaml": "{}", "named.yaml": "name: own", ".env": "COMPOSE_PROFILES=a, b\n", "sub/compose.yaml": "services: {a: {env_file: x.env}}", "sub/x.env": "", "x.env": ""}
	root := tree(t, files)
	tests := []struct {
		title            string
		options          source.Options
		env              map[string]string
		name, directory  string
		profiles, wanted []string
	}{
		{"of the folder", source.Options{}, nil, "my_app1", root, []string{"a", "b"}, []string{".env", "compose.yaml"}},
		{"of the file", source.Options{Files: []string{"named.yaml"}}, nil, "", root, []string{"a", "b"}, []string{".env", "named.yaml"}},
		{"of the environment", source.Options{Files: []string{"named.yaml"}, Profiles: []string{"z"}}, map[string]string{"COMPOSE_PROJECT_NAME": "env", "COMPOSE_PROFILES": "y"}, "env", root, []string{"z"}, []string{".env", "named.yaml"}},
		{"given", source.Options{Name: "given"}, map[string]string{"COMPOSE_PROJECT_NAME": "env", "COMPOSE_PROFILES": "y"}, "given", root, []string{"y"}, []string{".env", "compose.yaml"}},
		{"a folder of the hosts", source.Options{Files: []string{"sub/compose.yaml"}, ProjectDirectory: "/srv/does-not-exist-here/"}, nil, "sub", "/srv/does-not-exist-here", nil, []string{"compose.yaml", "x.env"}},
		{"a folder here", source.Options{Files: []string{"sub/compose.yaml"}, ProjectDirectory: "."}, nil, "my_app1", root, []string{"a", "b"}, []string{".env", "sub/compose.yaml", "x.env"}},
	}
	for _, tt := range tests {
		t.Run(tt.title, func(t *testing.T) {
			o := tt.options
			o.WorkingDirectory, o.Env = root, env(tt.env)
			got, err := source.Collect(o)
			if err != nil {
				t.Fatal(err)
			}
			if got.GetName() != tt.name || got.GetProjectDirectory() != tt.directory || !slices.Equal(got.GetProfiles(), tt.profiles) || !slices.Equal(paths(got), tt.wanted) {
				t.Errorf("name %q, directory %q, profiles %q, files %q", got.GetName(), got.GetProjectDirectory(), got.GetProfiles(), paths(got))
			}
		})
	}
}

func TestDefaultFilesAreFoundFromBelow(t *testing.T) {
	root := tree(t, map[string]string{"compose.yaml": "{}", "a/b/other": ""})
	got, err := source.Collect(source.Options{WorkingDirectory: filepath.Join(root, "a", "b"), Env: env(nil)})
	if err != nil || got.GetProjectDirectory() != root {
		t.Errorf("directory %q, %v", got.GetProjectDirectory(), err)
	}
}

func TestRefusals(t *testing.T) {
	big := strings.Repeat("x", source.Limit/2)
	tests := []struct {
		name    string
		files   map[string]string
		options source.Options
		want    []string // parts of the error
	}{
		{"no compose file", map[string]string{"x": ""}, source.Options{}, []string{"there is no compose file", "ROOT"}},
		{"a given file is missing", map[string]string{"x": ""}, source.Options{Files: []string{"gone.yaml"}}, []string{"there is no file ROOT/gone.yaml", "the command line, -f"}},
		{"an env_file is missing", map[string]string{"compose.yaml": "services:\n  a:\n    env_file:\n      - gone.env\n"}, source.Options{},
			[]string{"there is no file ROOT/gone.env", "named in compose.yaml:4, services.a.env_file"}},
		{"in an included file", map[string]string{"compose.yaml": "include: [sub/x.yaml]", "sub/x.yaml": "configs:\n  c:\n    file: gone\n"}, source.Options{},
			[]string{"there is no file ROOT/sub/gone", "named in sub/x.yaml:3, configs.c.file"}},
		{"a folder", map[string]string{"compose.yaml": "secrets: {s: {file: sub}}", "sub/x": ""}, source.Options{}, []string{"ROOT/sub is a folder", "secrets.s.file"}},
		{"--env-file is missing", map[string]string{"compose.yaml": "{}"}, source.Options{EnvFiles: []string{"gone.env"}}, []string{"ROOT/gone.env cannot be read", "named by --env-file"}},
		{"not YAML", map[string]string{"compose.yaml": "services:\n  a: [\n"}, source.Options{}, []string{"compose.yaml is not valid YAML", "line "}},
		{"no mapping", map[string]string{"compose.yaml": "- a\n"}, source.Options{}, []string{"compose.yaml is not a compose file"}},
		{"remote", map[string]string{"compose.yaml": "include: ['https://example.org/x.yaml']"}, source.Options{}, []string{"https://example.org/x.yaml is not a local file", "compose.yaml:1, include"}},
		{"too large", map[string]string{"compose.yaml": "configs: {a: {file: a}, b: {file: b}, c: {file: c}}", "a": big, "b": big + "y", "c": big}, source.Options{},
			[]string{"1048628 bytes so far, more than the limit of 1048576 (1 MiB)", "the largest is b with 524289 bytes; nothing was sent"}},
		{"a relative project directory that is not there", map[string]string{"compose.yaml": "{}"}, source.Options{ProjectDirectory: "gone"}, []string{`project directory "gone" does not exist`, "absolute"}},
		{"standard input", map[string]string{"compose.yaml": "{}"}, source.Options{Files: []string{"-"}}, []string{`"-" is not the name of a compose file`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := tt.options
			o.WorkingDirectory, o.Env = tree(t, tt.files), env(nil)
			_, err := source.Collect(o)
			var e *source.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "ROOT", o.WorkingDirectory); !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %q", want, err)
				}
			}
		})
	}
}

// TestExtendingForEver makes sure that a chain of files ends.
func TestExtendingForEver(t *testing.T) {
	files := map[string]string{}
	for i := range 30 {
		files["f"+string(rune('a'+i))+".yaml"] = "include: [f" + string(rune('a'+i+1)) + ".yaml]"
	}
	o := source.Options{Files: []string{"fa.yaml"}, WorkingDirectory: tree(t, files), Env: env(nil)}
	if _, err := source.Collect(o); err == nil || !strings.Contains(err.Error(), "more than 16 deep") {
		t.Errorf("error %v", err)
	}
}

// TestMergingItself would take longer than anyone lives if every merge were followed.
func TestMergingItself(t *testing.T) {
	text := "services: &s\n  a: &a\n    <<: [" + strings.TrimSuffix(strings.Repeat("*a, *s, ", 20), ", ") + "]\n    env_file: a.env\n"
	o := source.Options{WorkingDirectory: tree(t, map[string]string{"compose.yaml": text, "a.env": ""}), Env: env(nil)}
	got, err := source.Collect(o)
	if err != nil || !slices.Equal(paths(got), []string{"a.env", "compose.yaml"}) {
		t.Errorf("files %q, %v", paths(got), err)
	}
}

func FuzzCollect(f *testing.F) {
	for _, s := range []string{"services: {a: {env_file: a.env, extends: {file: compose.yaml, service: a}}}", "x: &x {<<: *x}", "include: [compose.yaml]", "a: ${", "services: &s {a: *s}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "compose.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		// Whatever a file says, nothing but an answer or an error may come of it.
		_, _ = source.Collect(source.Options{WorkingDirectory: root, Env: env(nil)})
	})
}

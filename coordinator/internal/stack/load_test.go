package stack_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// load loads a stack that must be valid.
func load(t *testing.T, src *coordinatorv1.StackSource) *stack.Model {
	t.Helper()
	m, err := stack.Load(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// service loads a compose file of one service called web.
func service(t *testing.T, content string) *coordinatorv1.Service {
	t.Helper()
	return named(t, load(t, oneFile(content)), "web")
}

// named returns a service of a model.
func named(t *testing.T, m *stack.Model, name string) *coordinatorv1.Service {
	t.Helper()
	i := slices.IndexFunc(m.Services, func(s *coordinatorv1.Service) bool { return s.GetName() == name })
	if i < 0 {
		t.Fatalf("service %s is not in the model", name)
	}
	return m.Services[i]
}

func TestLoadRefuses(t *testing.T) {
	web := func(lines string) string { return "services:\n  web:\n    image: nginx\n" + lines }
	for _, tt := range []struct {
		name   string
		source *coordinatorv1.StackSource
		want   []string
	}{
		{"unknown key", oneFile(web("    enviroment: {A: b}\n")), []string{"compose.yaml:4: services.web: unknown key enviroment; did you mean environment?"}},
		{"unknown key deep down", oneFile(web("    deploy:\n      update_config:\n        paralelism: 2\n")), []string{"compose.yaml:6: services.web.deploy.update_config: unknown key paralelism; did you mean parallelism?"}},
		{"unknown key at the top", oneFile(web("service: {}\n")), []string{"compose.yaml:4: unknown key service; did you mean services?"}},
		{"unknown key in an anchor", oneFile("x-base: &base\n  imag: nginx\nservices:\n  web:\n    <<: *base\n    image: nginx\n"), []string{"compose.yaml:2: services.web: unknown key imag; did you mean image?"}},
		{"several problems at once", oneFile(web("    oom_score_adj: 5\n    cpu_shares: 5\n")), []string{"compose.yaml:4: service web: oom_score_adj: is not supported: ", "compose.yaml:5: service web: cpu_shares: is not supported: "}},
		{"unknown key of x-muster", oneFile(web("    x-muster:\n      gates: {}\n")), []string{"compose.yaml:5: service web: x-muster.gates: unknown key; did you mean gate?; there are gate, route, drain_limit, shared, job"}},
		{"unknown key of a probe", oneFile(web("    x-muster: {gate: {http: {prot: 80}}}\n")), []string{"x-muster.gate.http.prot: unknown key; did you mean port?"}},
		{"x-muster in the wrong place", oneFile(web("x-muster: {}\n")), []string{"compose.yaml:4: x-muster at the top of the file has no meaning"}},
		{"x-muster under deploy", oneFile(web("    deploy:\n      x-muster: {job: true}\n      replicas: 1\n")), []string{"compose.yaml:5: service web: deploy.x-muster: has no meaning here"}},
		{"x-muster misspelt", oneFile(web("    x-mustr: {job: true}\n")), []string{"compose.yaml:4: service web: x-mustr: is ignored by every tool; did you mean x-muster?"}},
		{"yaml syntax", oneFile("services:\n  web:\n   image: [a\n  b: c\n"), []string{"compose.yaml:"}},
		{"tab", oneFile("services:\n\tweb: {}\n"), []string{"compose.yaml:2: "}},
		{"key twice", oneFile("services:\n  web:\n    image: a\n    image: b\n"), []string{"compose.yaml:4: mapping key \"image\" already defined at line 3"}},
		{"wrong kind", oneFile(web("    ports: 80\n")), []string{"compose.yaml:4: services.web.ports must be a array"}},
		{"built", oneFile("services:\n  web:\n    build: .\n"), []string{"compose.yaml:3: service web is built: give it image: registry.example.com/web:1.0 (built and pushed once), then apply again"}},
		{"neither image nor build", oneFile("services:\n  web: {restart: always}\n"), []string{"compose.yaml:2: service \"web\" has neither an image nor a build context"}},
		{"bad image", oneFile("services:\n  web: {image: 'Nginx:latest:2'}\n"), []string{"\"Nginx:latest:2\" is not the name of an image"}},
		{"depends on nothing", oneFile(web("    depends_on: [db]\n")), []string{"service \"web\" depends on undefined service \"db\""}},
		{"circle", oneFile("services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n"), []string{"cycle"}},
		{"undefined volume", oneFile(web("    volumes: ['data:/data']\n")), []string{"service \"web\" refers to undefined volume data"}},
		{"undefined secret", oneFile(web("    secrets: [key]\n")), []string{"undefined secret key"}},
		{"required variable", oneFile(web("    user: ${WHO:?say who}\n")), []string{"required variable WHO is missing a value: say who"}},
		{"interpolation", oneFile(web("    user: ${\n")), []string{"compose.yaml:4: invalid interpolation format for services.web.user"}},
		{"file not sent", &coordinatorv1.StackSource{ComposeFiles: []string{"compose.yaml"}}, []string{"file compose.yaml is not among the files that were sent"}},
		{"no file", &coordinatorv1.StackSource{}, []string{"no compose file is named"}},
		{"no name", &coordinatorv1.StackSource{ComposeFiles: []string{"a.yaml"}, Files: []*coordinatorv1.StackFile{{Path: "a.yaml", Content: []byte(web(""))}}}, []string{"project name must not be empty"}},
		{"no service", oneFile("services: {}\nvolumes: {a: {}}\n"), []string{"no service is active: the files have none"}},
		{"inactive profile", oneFile(web("    profiles: [debug]\n")), []string{"the files have services only under the profiles debug"}},
		{"env_file not sent", oneFile(web("    env_file: web.env\n")), []string{"compose.yaml:4: service web: env_file web.env is not among the files that were sent"}},
		{"config not sent", oneFile(web("    configs: [c]\nconfigs: {c: {file: ./c.txt}}\n")), []string{"config c: file ./c.txt is not among the files that were sent"}},
		{"external config", oneFile(web("    configs: [c]\nconfigs: {c: {external: true}}\n")), []string{"config c is external, and there is no store of configs"}},
		{"overlay", oneFile(web("    networks: [n]\nnetworks: {n: {driver: overlay}}\n")), []string{"network n.driver: overlay: Muster creates bridge networks"}},
		{"fixed address", oneFile(web("    networks: {n: {ipv4_address: 172.28.0.5}}\nnetworks: {n: {}}\n")), []string{"networks.n.ipv4_address: is not supported: an address cannot be held by two instances"}},
		{"port range", oneFile(web("    ports: ['8000-8010:80']\n")), []string{"published 8000-8010: give one port"}},
		{"sctp", oneFile(web("    ports: ['80:80/sctp']\n")), []string{"protocol sctp"}},
		{"role constraint", oneFile(web("    deploy: {placement: {constraints: [node.role == manager]}}\n")), []string{"node.role is not known here; there are node.hostname, node.id, node.platform.os, node.platform.arch and node.labels.NAME"}},
		{"too many replicas", oneFile(web("    deploy: {replicas: 20000}\n")), []string{"20000: there may be 0 to 10000"}},
		{"global with replicas", oneFile(web("    deploy: {mode: global, replicas: 3}\n")), []string{"a global service runs one instance per host"}},
		{"global job", oneFile(web("    deploy: {mode: global-job}\n")), []string{"global-job: there are replicated, global and replicated-job"}},
		{"job with replicas", oneFile(web("    x-muster: {job: true}\n    deploy: {replicas: 2}\n")), []string{"2: a job runs once per release"}},
		{"job that restarts", oneFile(web("    x-muster: {job: true}\n    restart: always\n")), []string{"a job ends, and must not be started again"}},
		{"two probes", oneFile(web("    x-muster: {gate: {tcp: {port: 1}, http: {port: 2}}}\n")), []string{"give exactly one of http, tcp, grpc and exec"}},
		{"no probe", oneFile(web("    x-muster: {gate: {interval: 1s}}\n")), []string{"give exactly one of http, tcp, grpc and exec"}},
		{"probe without port", oneFile(web("    x-muster: {gate: {http: {path: /}}}\n")), []string{"x-muster.gate.http.port: give the port of the container, 1 to 65535"}},
		{"a reload that ends", oneFile(web("    x-muster: {reload: SIGTERM}\n")), []string{"x-muster.reload: SIGTERM ends the process", "`musterctl service restart`"}},
		{"unknown reload", oneFile(web("    x-muster: {reload: SIGHPU}\n")), []string{"x-muster.reload: there is no signal SIGHPU", "did you mean SIGHUP?"}},
		{"not a duration", oneFile(web("    x-muster: {drain_limit: soon}\n")), []string{"x-muster.drain_limit: soon is not a duration like 30s"}},
		{"exec as text", oneFile(web("    x-muster: {gate: {exec: pg_isready}}\n")), []string{"give the command as a list"}},
		{"route without port", oneFile(web("    x-muster: {route: {hosts: [a.example.com]}}\n")), []string{"x-muster.route.port: give the port of the container that serves"}},
		{"shared path that is not mounted", oneFile(web("    x-muster: {shared: [./models]}\n")), []string{"./models is neither a path nor a volume that the service mounts"}},
		{"gpu of another make", oneFile(web("    gpus: [{driver: other, count: 1}]\n")), []string{"driver other: only nvidia is supported"}},
		{"reservation above limit", oneFile(web("    deploy: {resources: {limits: {memory: 1G}, reservations: {memory: 2G}}}\n")), []string{"the memory reservation of 2 GiB is above the limit of 1 GiB"}},
		{"cleared command", oneFile(web("    command: []\n")), []string{"an empty command cannot clear the image's"}},
		{"jobs section", oneFile(web("jobs: {j: {image: a, triggers: {manual: true}}}\n")), []string{"jobs: is not supported: make each a service with x-muster: {job: true}"}},
		{"hook", oneFile(web("    pre_stop: [{command: [a]}]\n")), []string{"service web: pre_stop: is not supported"}},
		{"pre_start", oneFile(web("    pre_start: [{image: a, command: [a]}]\n")), []string{"service web: pre_start is not supported"}},
		{"tmpfs option", oneFile(web("    tmpfs: ['/run:uid=5']\n")), []string{"option uid is not supported"}},
		{"reserved label", oneFile(web("    labels: {muster.stack: x}\n")), []string{"labels that start with muster. are Muster's own"}},
		{"cpu_quota and cpus", oneFile(web("    cpus: 1\n    cpu_quota: 50000\n")), []string{"cpus says the same"}},
		{"network of another container", oneFile(web("    network_mode: container:x\n")), []string{"network_mode: container:x: there are host and none"}},
		{"file that is a number", oneFile(web("    extends: {file: 5, service: x}\n")), []string{"a value is of a kind that does not belong there"}},
		{"endless alias", oneFile("a: &a [*a]\n"), []string{"compose.yaml:1: nested deeper than 64 levels, or an alias that holds itself"}},
		{"nested defaults without end", oneFile(web("    user: \"" + strings.Repeat("${A:-", 5000) + strings.Repeat("}", 5000) + "\"\n")), []string{"compose.yaml:4: too many variables in long values"}},
		{"variables without end", files("compose.yaml", web(""), ".env", "A="+strings.Repeat("${A:-", 5000)+strings.Repeat("}", 5000)+"\n"), []string{".env: too many variables in a long file"}},
		{"deep", oneFile("x-a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100)), []string{"nested deeper than 64 levels"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := stack.Load(t.Context(), tt.source)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if got := status.Code(err); got != codes.InvalidArgument {
				t.Errorf("got code %v, want InvalidArgument", got)
			}
			if got := rpcerr.Reason(err); got != "STACK_INVALID" {
				t.Errorf("got reason %q, want STACK_INVALID", got)
			}
			for _, want := range tt.want {
				if !strings.Contains(rpcerr.Message(err), want) {
					t.Errorf("got %q, want it to contain %q", rpcerr.Message(err), want)
				}
			}
			if strings.Contains(err.Error(), os.TempDir()) {
				t.Errorf("the message shows a path of this machine: %v", err)
			}
		})
	}
}

func TestLoadBoundsTheSize(t *testing.T) {
	src := oneFile("services: {web: {image: nginx}}\n")
	src.Files = append(src.Files, &coordinatorv1.StackFile{Path: "big.yaml", Content: bytes.Repeat([]byte("# padding\n"), 5<<20/10)})
	_, err := stack.Load(t.Context(), src)
	want := "the files of the stack are 5 MiB together, and 1 MiB is the limit: the largest is big.yaml with 5 MiB; put data into a volume or an image"
	if rpcerr.Message(err) != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestLoadBoundsGrowth(t *testing.T) {
	doubling := "A=0123456789\n"
	for range 40 {
		doubling += "A=${A}${A}\n"
	}
	large := strings.Repeat("x", 200<<10)
	extending := "services:\n  a: {image: " + "a" + ", user: " + large + "}\n"
	for i := range 2000 {
		extending += fmt.Sprintf("  s%d: {extends: a}\n", i)
	}
	for _, tt := range []struct {
		name   string
		source *coordinatorv1.StackSource
		want   string
	}{
		{".env that doubles", files("compose.yaml", "services: {web: {image: a}}\n", ".env", doubling), ".env: its variables grow to more than 8 MiB"},
		{"env_file that doubles", files("compose.yaml", "services: {web: {image: a, env_file: a.env}}\n", "a.env", doubling), "a.env: its variables grow to more than 8 MiB"},
		{"variables", withEnv(oneFile("services: {web: {image: a}}\n"), "A", strings.Repeat(large, 2)), "the variables are 400 KiB together, and 256 KiB is the limit"},
		{"large variable often", withEnv(oneFile("services: {web: {image: a, environment: ["+strings.Repeat("'A=$A',", 100)+"]}}\n"), "A", large), "the file has more than 8 MiB"},
		{"large alias often", oneFile("x-a: &a " + large + "\nservices: {web: {image: a, environment: {" + aliases(100) + "}}}\n"), "the file has more than 8 MiB"},
		{"extends", oneFile(extending), "2000 services extend others"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := stack.Load(t.Context(), tt.source)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %.300v, want %q", err, tt.want)
			}
		})
	}
}

// aliases writes n keys with one alias.
func aliases(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "V%d: *a, ", i)
	}
	return b.String()
}

func TestLoadBoundsAliases(t *testing.T) {
	var b strings.Builder
	b.WriteString("x-a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n")
	for i := 1; i < 9; i++ {
		prev := string(rune('0' + i - 1))
		b.WriteString("x-a" + string(rune('0'+i)) + ": &a" + string(rune('0'+i)) + " [" + strings.Repeat("*a"+prev+",", 9) + "*a" + prev + "]\n")
	}
	_, err := stack.Load(t.Context(), oneFile(b.String()+"services: {web: {image: nginx}}\n"))
	if err == nil || !strings.Contains(err.Error(), "unfolds to more than 100000 values") {
		t.Errorf("got %v, want a refusal of a billion values", err)
	}
}

func TestLoadReadsNothingOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "private.yaml")
	if err := os.WriteFile(secret, []byte("SECRET_OF_THIS_MACHINE=1\nservices: {stolen: {image: stolen}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", dir)
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("MUSTER_TEST_VARIABLE", "from this machine")
	t.Setenv("COMPOSE_PROJECT_NAME", "stolen")
	t.Chdir(dir)
	up := strings.Repeat("../", 40)
	for _, tt := range []struct {
		name   string
		source *coordinatorv1.StackSource
	}{
		{"absolute env_file", oneFile("services: {web: {image: a, env_file: " + secret + "}}\n")},
		{"env_file above", oneFile("services: {web: {image: a, env_file: " + up + secret[1:] + "}}\n")},
		{"env_file in the working directory", oneFile("services: {web: {image: a, env_file: private.yaml}}\n")},
		{"env_file at home", oneFile("services: {web: {image: a, env_file: ~/private.yaml}}\n")},
		{"label_file", oneFile("services: {web: {image: a, label_file: " + secret + "}}\n")},
		{"absolute include", oneFile("include: [" + secret + "]\n")},
		{"include above", oneFile("include: [" + up + secret[1:] + "]\n")},
		{"include at home", oneFile("include: [~/private.yaml]\n")},
		{"include of a variable", withEnv(oneFile("include: [\"${FILE}\"]\n"), "FILE", secret)},
		{"include with env_file", files("compose.yaml", "include: [{path: b.yaml, env_file: "+secret+"}]\n", "b.yaml", "services: {b: {image: '${SECRET_OF_THIS_MACHINE}'}}\n")},
		{"include with project_directory", files("compose.yaml", "include: [{path: b.yaml, project_directory: "+dir+"}]\n", "b.yaml", "services: {b: {image: a}}\n")},
		{"nested include", files("compose.yaml", "include: [sub/b.yaml]\n", "sub/b.yaml", "include: ["+up+secret[1:]+"]\n")},
		{"extends", oneFile("services: {web: {extends: {file: " + secret + ", service: stolen}}}\n")},
		{"extends above", oneFile("services: {web: {extends: {file: " + up + secret[1:] + ", service: stolen}}}\n")},
		{"extends of an extended file", files("compose.yaml", "services: {web: {extends: {file: sub/b.yaml, service: b}}}\n",
			"sub/b.yaml", "services: {b: {image: a, extends: {file: "+up+secret[1:]+", service: stolen}}}\n")},
		{"extends through an anchor", oneFile("x-e: &e {file: " + secret + ", service: stolen}\nservices: {web: {extends: *e}}\n")},
		{"extends through a merge", oneFile("x-s: &s {extends: {file: " + secret + ", service: stolen}}\nservices: {web: {<<: *s, image: a}}\n")},
		{"secret", oneFile("services: {web: {image: a, secrets: [s]}}\nsecrets: {s: {file: " + secret + "}}\n")},
		{"config", oneFile("services: {web: {image: a, configs: [s]}}\nconfigs: {s: {file: " + secret + "}}\n")},
		{"secret from the environment", oneFile("services: {web: {image: a, secrets: [s]}}\nsecrets: {s: {environment: MUSTER_TEST_VARIABLE}}\n")},
		{"home of a bind", oneFile("services: {web: {image: a, volumes: ['~/data:/data']}}\n")},
		{"home of a bind from a variable", withEnv(oneFile("services: {web: {image: a, volumes: ['${W}/data:/data']}}\n"), "W", "~")},
		{"watched path", oneFile("services: {web: {image: a, develop: {watch: [{path: " + dir + ", action: rebuild}]}}}\n")},
		{"sent path above", files("compose.yaml", "services: {web: {image: a, env_file: /etc/hostname}}\n", "/etc/hostname", "")},
		{"remote include", oneFile("include: ['https://example.com/compose.yaml']\n")},
		{"git", oneFile("include: ['git@example.com:a/b.git']\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := stack.Load(t.Context(), tt.source)
			if err == nil {
				t.Fatalf("it was accepted: %v", m.Services)
			}
			if strings.Contains(err.Error(), "from this machine") || strings.Contains(err.Error(), "SECRET_OF") || strings.Contains(err.Error(), "muster-stack-") {
				t.Errorf("the message shows something of this machine: %v", err)
			}
		})
	}
	t.Run("environment", func(t *testing.T) {
		m := load(t, oneFile("services: {web: {image: a, environment: [MUSTER_TEST_VARIABLE], user: \"u${MUSTER_TEST_VARIABLE}\"}}\n"))
		if s := m.Services[0].GetTemplate(); len(s.GetEnv()) > 0 || s.GetUser() != "u" {
			t.Errorf("a variable of this machine came in: env %q, user %q", s.GetEnv(), s.GetUser())
		}
		if m.Name != "demo" {
			t.Errorf("got name %s, want demo", m.Name)
		}
	})
	t.Run("left over", func(t *testing.T) {
		left, err := filepath.Glob(filepath.Join(os.TempDir(), "muster-stack-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left over: %q, %v", left, err)
		}
	})
}

// withEnv adds a variable.
func withEnv(src *coordinatorv1.StackSource, name, value string) *coordinatorv1.StackSource {
	if src.Environment == nil {
		src.Environment = map[string]string{}
	}
	src.Environment[name] = value
	return src
}

func TestLoadFollowsSentFiles(t *testing.T) {
	src := files(
		"compose.yaml", "include:\n  - parts/cache.yaml\nservices:\n  web:\n    extends: {file: parts/base.yaml, service: base}\n    env_file: [a.env, {path: none.env, required: false}]\n    environment: {B: from-file}\n    label_file: web.labels\n    depends_on: [cache]\n",
		"parts/base.yaml", "services:\n  base:\n    extends: {file: deeper/root.yaml, service: root}\n    image: web:1\n    volumes: ['./conf:/conf:ro']\n",
		"parts/deeper/root.yaml", "services:\n  root:\n    image: root\n    user: nobody\n",
		"parts/cache.yaml", "services:\n  cache:\n    image: redis:${CACHE_VERSION}\n    volumes: ['./data:/data']\n",
		"parts/.env", "CACHE_VERSION=7\n",
		"a.env", "A=1\nB=2\nC=${TAG}\n",
		"web.labels", "team=core\n",
		".env", "TAG=from-dotenv\nOVER=dotenv\n",
	)
	m := load(t, withEnv(src, "TAG", "from-client"))
	web, cache := named(t, m, "web").GetTemplate(), named(t, m, "cache").GetTemplate()
	if got, want := web.GetEnv(), []string{"A=1", "B=from-file", "C=from-client"}; !slices.Equal(got, want) {
		t.Errorf("got env %q, want %q", got, want)
	}
	if web.GetUser() != "nobody" || web.GetImage() != "web:1" || web.GetLabels()["team"] != "core" {
		t.Errorf("got user %q, image %q, labels %v", web.GetUser(), web.GetImage(), web.GetLabels())
	}
	if got := web.GetMounts()[0].GetSource(); got != "/srv/demo/parts/conf" {
		t.Errorf("got bind %s, want /srv/demo/parts/conf", got)
	}
	if cache.GetImage() != "redis:7" || cache.GetMounts()[0].GetSource() != "/srv/demo/parts/data" {
		t.Errorf("got image %s, bind %s", cache.GetImage(), cache.GetMounts()[0].GetSource())
	}
}

func TestLoadTakesThePathsOfTheHosts(t *testing.T) {
	for _, tt := range []struct{ name, dir, source, want, pinned string }{
		{"relative", "/srv/demo", "./data", "/srv/demo/data", "directory /srv/demo/data"},
		{"above", "/srv/demo", "../common", "/srv/common", "directory /srv/common"},
		{"far above", "/srv/demo", "../../../../common", "/common", "directory /common"},
		{"absolute", "/srv/demo", "/proc", "/proc", ""},
		{"absolute without a project", "", "/proc", "/proc", ""},
		{"root", "/srv/demo", "/", "/", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := oneFile("services: {web: {image: a, volumes: ['" + tt.source + ":/data']}}\n")
			src.ProjectDirectory = tt.dir
			s := load(t, src).Services[0]
			if got := s.GetTemplate().GetMounts()[0].GetSource(); got != tt.want {
				t.Errorf("got source %s, want %s", got, tt.want)
			}
			if s.GetPinned() != tt.pinned {
				t.Errorf("got pinned %q, want %q", s.GetPinned(), tt.pinned)
			}
		})
	}
	src := oneFile("services: {web: {image: a, volumes: ['../data:/data']}}\n")
	src.ProjectDirectory = ""
	if _, err := stack.Load(t.Context(), src); err == nil || !strings.Contains(err.Error(), "../data is relative, and the stack has no project directory on the hosts") {
		t.Errorf("got %v, want a refusal of a relative path", err)
	}
}

func TestLoadNames(t *testing.T) {
	for _, tt := range []struct {
		name, given, top, dotenv, dir, want string
	}{
		{"given", "given", "top", "env", "/srv/dir", "given"},
		{"environment", "", "top", "env", "/srv/dir", "env"},
		{"file", "", "top", "", "/srv/dir", "top"},
		{"directory", "", "", "", "/srv/My.Dir", "mydir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := "services: {web: {image: a}}\n"
			if tt.top != "" {
				content += "name: " + tt.top + "\n"
			}
			src := oneFile(content)
			src.Name, src.ProjectDirectory = tt.given, tt.dir
			if tt.dotenv != "" {
				src.Files = append(src.Files, &coordinatorv1.StackFile{Path: ".env", Content: []byte("COMPOSE_PROJECT_NAME=" + tt.dotenv + "\n")})
			}
			if got := load(t, src).Name; got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestLoadIsDeterministic(t *testing.T) {
	first := load(t, fixtureSource(t, managed...))
	for range 5 {
		again := load(t, fixtureSource(t, managed...))
		if first.Digest != again.Digest || !slices.Equal(first.Warnings, again.Warnings) || !slices.Equal(first.ExternalSecrets, again.ExternalSecrets) {
			t.Fatal("two loads of one source differ in digest, warnings or secrets")
		}
		for i, s := range first.Services {
			if !proto.Equal(s, again.Services[i]) {
				t.Fatalf("two loads of one source differ in service %s", s.GetName())
			}
		}
	}
	changed := fixtureSource(t, managed...)
	changed.Files[0].Content = append(changed.Files[0].Content, '\n')
	if load(t, changed).Digest == first.Digest {
		t.Error("the digest does not see a change of a file")
	}
}

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"services: {web: {image: nginx, ports: ['80:80'], x-muster: {gate: {http: {port: 80}}}}}\n",
		"include: [a.yaml]\nservices: {web: {extends: {file: b.yaml, service: x}, <<: {image: a}}}\n",
		"services: {web: {image: a, deploy: {mode: global, update_config: {order: start-first, monitor: 9999h}}, healthcheck: {interval: 8760h, retries: 4000000000}}}\n",
		"a: &a [*a]\n", "services: !reset null\n", "services:\n  web: !override {image: a}\n", "version: '3'\nservices: []\n",
		"services: {web: {image: a, tmpfs: ':', volumes: [':/a'], devices: ['a:b'], ulimits: {a: 1}, secrets: [{source: s, mode: -1}]}}\nsecrets: {s: {external: true}}\n",
		"services: {web: {image: '${A:-${B:?c}}', environment: {A: , B: 1}, configs: [c]}}\nconfigs: {c: {content: x}}\nnetworks: {default: {ipam: {config: [{subnet: x}]}}}\n",
		"---\nservices: {a: {image: a}}\n---\nservices: {b: {image: b, depends_on: {a: {condition: service_completed_successfully}}}}\n",
	} {
		f.Add([]byte(seed), []byte("A=1\n"))
	}
	f.Fuzz(func(t *testing.T, content, env []byte) {
		src := oneFile("")
		src.Files[0].Content = content
		src.Files = append(src.Files, &coordinatorv1.StackFile{Path: ".env", Content: env}, &coordinatorv1.StackFile{Path: "a.yaml", Content: content})
		m, err := stack.Load(t.Context(), src)
		if err == nil && (len(m.Services) == 0 || m.Name == "") {
			t.Errorf("accepted, and there is nothing: %+v", m)
		}
		if err != nil && rpcerr.Reason(err) != "STACK_INVALID" {
			t.Errorf("got %v, want STACK_INVALID", err)
		}
	})
}

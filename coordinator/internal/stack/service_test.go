package stack_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestTemplate(t *testing.T) {
	got := service(t, `
services:
  web:
    image: example.com/web:1
    platform: linux/amd64
    hostname: web
    domainname: ""
    user: "1000:1000"
    working_dir: /app
    entrypoint: ["/init", "--"]
    command: sh -c 'echo "$$HOME" $${X}'
    environment: {B: two, A: "1", EMPTY: "", UNSET: null}
    labels: [traefik.enable=true]
    cap_add: [SYS_TIME, NET_ADMIN]
    cap_drop: [ALL]
    security_opt: [no-new-privileges:true]
    group_add: [video]
    dns: 1.1.1.1
    extra_hosts: ["b:10.0.0.2", "a:10.0.0.1"]
    devices: [/dev/snd, "/dev/kvm:/dev/kvm:rw"]
    init: true
    tty: true
    read_only: true
    ipc: shareable
    pid: host
    shm_size: 64m
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nproc: 100, nofile: {soft: 1, hard: 2}}
    tmpfs: ["/run:size=1m,mode=1777", /tmp]
    logging: {driver: local, options: {max-size: 1m}}
    cpus: 0.1
    mem_limit: 100m
    mem_reservation: 50m
    pids_limit: 10
    restart: on-failure:4
    ports: ["8080:80", "127.0.0.1:53:53/udp", "90", {target: 443, published: "8443", mode: host}]
    volumes:
      - data:/data
      - cache:/cache:ro
      - /anonymous
      - {type: tmpfs, target: /scratch, tmpfs: {size: 10}}
      - {type: bind, source: ./conf, target: /conf, read_only: true, bind: {propagation: rslave, create_host_path: false}}
volumes:
  data: {driver: local, driver_opts: {type: nfs, o: "addr=10.0.0.9", device: ":/x"}}
  cache: {external: true, name: shared-cache}
`)
	want := &agentv1.ContainerSpec{}
	if err := protojson.Unmarshal([]byte(`{
  "image": "example.com/web:1", "hostname": "web", "user": "1000:1000", "workingDir": "/app",
  "entrypoint": ["/init", "--"], "command": ["sh", "-c", "echo \"$HOME\" ${X}"],
  "env": ["A=1", "B=two", "EMPTY="], "labels": {"traefik.enable": "true"},
  "capAdd": ["NET_ADMIN", "SYS_TIME"], "capDrop": ["ALL"], "securityOpt": ["no-new-privileges:true"], "groupAdd": ["video"],
  "dns": ["1.1.1.1"], "extraHosts": ["a:10.0.0.1", "b:10.0.0.2"], "devices": ["/dev/kvm:/dev/kvm:rw", "/dev/snd:/dev/snd:rwm"],
  "init": true, "tty": true, "readOnly": true, "ipcMode": "shareable", "pidMode": "host", "shmSizeBytes": 67108864,
  "stopSignal": "SIGINT", "stopGrace": "90s", "sysctls": {"net.core.somaxconn": "1024"},
  "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}, {"name": "nproc", "soft": 100, "hard": 100}],
  "log": {"driver": "local", "options": {"max-size": "1m"}},
  "resources": {"nanoCpuLimit": 100000000, "memoryLimitBytes": 104857600, "memoryReservationBytes": 52428800, "pidsLimit": 10},
  "restart": {"name": "on-failure", "maxRetries": 4},
  "ports": [{"hostIp": "127.0.0.1", "hostPort": 53, "containerPort": 53, "protocol": "udp"}, {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"containerPort": 90, "protocol": "tcp"}, {"hostPort": 8443, "containerPort": 443, "protocol": "tcp"}],
  "mounts": [{"type": "volume", "target": "/anonymous"},
             {"type": "volume", "source": "shared-cache", "target": "/cache", "readOnly": true, "external": true},
             {"type": "bind", "source": "/srv/demo/conf", "target": "/conf", "readOnly": true, "propagation": "rslave"},
             {"type": "volume", "source": "demo_data", "target": "/data", "volumeDriver": "local", "volumeOptions": {"type": "nfs", "o": "addr=10.0.0.9", "device": ":/x"}},
             {"type": "tmpfs", "target": "/run", "tmpfsSizeBytes": 1048576},
             {"type": "tmpfs", "target": "/scratch", "tmpfsSizeBytes": 10}, {"type": "tmpfs", "target": "/tmp"}],
  "networks": [{"name": "demo_default", "aliases": ["web"]}]
}`), want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.GetTemplate(), want) {
		t.Errorf("got\n%s\nwant\n%s", protojson.Format(got.GetTemplate()), protojson.Format(want))
	}
	if want := "directory /srv/demo/conf, external volume shared-cache"; got.GetPinned() != want {
		t.Errorf("got pinned %q, want %q: the other volume is on the network", got.GetPinned(), want)
	}
	if c := got.GetPlacement().GetConstraints(); !slices.Equal(c, []string{"node.platform.arch==amd64", "node.platform.os==linux"}) {
		t.Errorf("got constraints %q", c)
	}
}

func TestNetworks(t *testing.T) {
	m := load(t, oneFile(`
services:
  web:
    image: a
    container_name: the-web
    networks:
      back: {priority: 10, aliases: [api]}
      front: {use_service_name_alias: false}
      other:
    links: ["db:database"]
  db:
    image: b
    networks: [back]
  agent: {image: c, network_mode: host, ports: ["1:1"]}
  batch: {image: d, network_mode: none}
networks:
  back: {internal: true, ipam: {config: [{subnet: 10.9.0.0/24}]}, labels: {a: b}}
  front: {name: front-net}
  other: {external: true, name: other_net}
`))
	for service, want := range map[string]string{
		"web":   `[{"name":"demo_back","aliases":["api","the-web","web"],"subnet":"10.9.0.0/24","internal":true,"labels":{"a":"b"}},{"name":"front-net","aliases":["the-web"]},{"name":"other_net","aliases":["the-web","web"],"external":true}]`,
		"db":    `[{"name":"demo_back","aliases":["database","db"],"subnet":"10.9.0.0/24","internal":true,"labels":{"a":"b"}}]`,
		"agent": `[]`,
		"batch": `[]`,
	} {
		spec, expected := named(t, m, service).GetTemplate(), &agentv1.ContainerSpec{}
		if err := protojson.Unmarshal([]byte(`{"networks":`+want+`}`), expected); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&agentv1.ContainerSpec{Networks: spec.GetNetworks()}, expected) {
			t.Errorf("%s: got %v, want %v", service, spec.GetNetworks(), expected.GetNetworks())
		}
	}
	var names []string
	for _, n := range m.Networks {
		names = append(names, n.GetName())
		if len(n.GetAliases()) > 0 {
			t.Errorf("network %s of the stack has aliases %q, which belong to its services", n.GetName(), n.GetAliases())
		}
	}
	if !slices.Equal(names, []string{"demo_back", "front-net", "other_net"}) {
		t.Errorf("got networks %q", names)
	}
	if got := named(t, m, "agent").GetTemplate(); got.GetNetworkMode() != "host" || len(got.GetPorts()) > 0 {
		t.Errorf("got network mode %q with ports %v, want host without", got.GetNetworkMode(), got.GetPorts())
	}
	if d := named(t, m, "web").GetDependsOn(); len(d) != 1 || d[0].GetService() != "db" || d[0].GetCondition() != "service_started" {
		t.Errorf("got dependencies %v, want that the link makes one", d)
	}
}

func TestFilesInContainers(t *testing.T) {
	src := files("compose.yaml", `
services:
  web:
    image: a
    secrets:
      - db_password
      - {source: api, target: /etc/api.key, uid: "5", gid: "6", mode: 0400}
      - local
      - from_env
    configs: [conf, {source: inline, target: etc/inline}]
secrets:
  db_password: {external: true}
  api: {external: true, name: api_key}
  local: {file: ./local.txt}
  from_env: {environment: TOKEN}
configs:
  conf: {file: ./web.conf}
  inline: {content: "a=${A}"}
`, "local.txt", "local", "web.conf", "conf")
	m := load(t, withEnv(withEnv(src, "TOKEN", "token"), "A", "b"))
	got := &agentv1.ContainerSpec{Secrets: m.Services[0].GetTemplate().GetSecrets(), Configs: m.Services[0].GetTemplate().GetConfigs()}
	want := &agentv1.ContainerSpec{
		Secrets: []*agentv1.SecretMount{
			{Secret: &agentv1.SecretValue{Name: "api_key"}, Target: "/etc/api.key", Uid: 5, Gid: 6, Mode: 0o400},
			{Secret: &agentv1.SecretValue{Name: "db_password"}, Target: "/run/secrets/db_password"},
		},
		Configs: []*agentv1.ConfigFile{
			{Target: "/conf", Content: []byte("conf")},
			{Target: "/etc/inline", Content: []byte("a=b")},
			{Target: "/run/secrets/from_env", Content: []byte("token")},
			{Target: "/run/secrets/local", Content: []byte("local")},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if !slices.Equal(m.ExternalSecrets, []string{"api_key", "db_password"}) {
		t.Errorf("got external secrets %q", m.ExternalSecrets)
	}
	if !hasWarning(m, "the value of secret local comes with the files") {
		t.Errorf("no warning about a secret in a file: %q", m.Warnings)
	}
}

// hasWarning says that a model warns so.
func hasWarning(m *stack.Model, text string) bool {
	return slices.ContainsFunc(m.Warnings, func(w string) bool { return strings.Contains(w, text) })
}

func TestPolicies(t *testing.T) {
	for _, tt := range []struct {
		name, lines string
		want        *coordinatorv1.UpdatePolicy
		monitor     time.Duration
		stopFirst   string
		warning     string
	}{
		{name: "defaults", want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 5 * time.Second},
		{name: "all together", lines: "    deploy: {update_config: {parallelism: 0, failure_action: pause, max_failure_ratio: 0.3, monitor: 60s, order: stop-first}}\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 0, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE, MaxFailureRatio: 0.3, Order: "stop-first"},
			monitor: time.Minute},
		{name: "health check lengthens the watch", lines: "    healthcheck: {test: [CMD, a], interval: 10s, retries: 4, start_period: 20s}\n    deploy: {update_config: {monitor: 60s}}\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 100 * time.Second},
		{name: "Docker's own interval and retries", lines: "    healthcheck: {test: [CMD, a]}\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 180 * time.Second},
		{name: "disabled health check", lines: "    healthcheck: {disable: true}\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 5 * time.Second},
		{name: "host port", lines: "    ports: ['80:80']\n    deploy: {update_config: {order: start-first}}\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "host port 80 can be bound once per host", warning: "start-first is not possible, stop-first is used: host port 80"},
		{name: "single writer of a volume", lines: "    volumes: ['data:/d']\nvolumes: {data: {}}\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "one instance writes to volume demo_data"},
		{name: "single writer of a directory", lines: "    volumes: ['./d:/d']\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "one instance writes to ./d"},
		{name: "several writers", lines: "    volumes: ['./d:/d']\n    deploy: {replicas: 2}\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 5 * time.Second},
		{name: "reader", lines: "    volumes: ['./d:/d:ro']\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 5 * time.Second},
		{name: "shared", lines: "    volumes: ['./d:/d']\n    x-muster: {shared: [./d]}\n",
			want: &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"}, monitor: 5 * time.Second},
		{name: "single writer over the network", lines: "    volumes: ['data:/d']\nvolumes: {data: {driver: local, driver_opts: {type: nfs, o: addr=a, device: ':/x'}}}\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "one instance writes to volume demo_data"},
		{name: "GPU", lines: "    gpus: all\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "its GPU is reserved for one instance"},
		{name: "host network", lines: "    network_mode: host\n",
			want:    &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "stop-first"},
			monitor: 5 * time.Second, stopFirst: "it uses the host's network, where each port can be bound once"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := load(t, oneFile("services:\n  web:\n    image: a\n"+tt.lines))
			s := m.Services[0]
			got := proto.CloneOf(s.GetUpdate())
			if d := got.GetMonitor().AsDuration(); d != tt.monitor {
				t.Errorf("got monitor %v, want %v", d, tt.monitor)
			}
			got.Monitor = nil
			if !proto.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if s.GetStopFirst() != tt.stopFirst {
				t.Errorf("got stop_first %q, want %q", s.GetStopFirst(), tt.stopFirst)
			}
			if tt.warning != "" && !hasWarning(m, tt.warning) {
				t.Errorf("got warnings %q, want %q", m.Warnings, tt.warning)
			}
			if s.GetRollback().GetFailureAction() != coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE || s.GetRollback().GetOrder() != s.GetUpdate().GetOrder() && tt.stopFirst != "" {
				t.Errorf("got rollback %v, want one that pauses, in an order that is possible", s.GetRollback())
			}
		})
	}
}

func TestGates(t *testing.T) {
	for _, tt := range []struct{ name, lines, want, hint string }{
		{"none", "", "", "x-muster: {gate: {http: {port: 8080, path: /health}}}"},
		{"health check", "    healthcheck: {test: [CMD, a], interval: 1s}\n", `{"health":{}}`, ""},
		{"slow health check", "    healthcheck: {test: [CMD, a], interval: 60s, retries: 3, start_period: 10m}\n", `{"health":{},"deadline":"960s"}`, ""},
		{"disabled", "    healthcheck: {disable: true}\n    ports: ['80']\n", "", "http: {port: 80, path: /}"},
		{"NONE", "    healthcheck: {test: [NONE]}\n", "", ""},
		{"http wins", "    healthcheck: {test: [CMD, a]}\n    x-muster: {gate: {http: {port: 80, path: /up, status: 204, host: a.b}, interval: 1s, timeout: 2s, consecutive: 4, deadline: 3m}}\n",
			`{"http":{"port":80,"path":"/up","status":204,"host":"a.b"},"interval":"1s","timeout":"2s","consecutive":4,"deadline":"180s"}`, ""},
		{"tcp by variable", "    x-muster: {gate: {tcp: {port: \"${PORT:-6379}\"}}}\n", `{"tcp":{"port":6379}}`, ""},
		{"grpc", "    x-muster: {gate: {grpc: {port: 50051, service: a.B}}}\n", `{"grpc":{"port":50051,"service":"a.B"}}`, ""},
		{"exec", "    x-muster: {gate: {exec: [pg_isready, -U, app]}}\n", `{"exec":{"argv":["pg_isready","-U","app"]}}`, ""},
		{"database", "    ports: ['5432:5432']\n", "", "tcp: {port: 5432}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := service(t, "services:\n  web:\n    image: a\n"+tt.lines)
			var want *agentv1.Gate
			if tt.want != "" {
				want = &agentv1.Gate{}
				if err := protojson.Unmarshal([]byte(tt.want), want); err != nil {
					t.Fatal(err)
				}
			}
			if !proto.Equal(s.GetGate(), want) {
				t.Errorf("got %v, want %v", s.GetGate(), want)
			}
			if hint := stack.GateHint(s); !strings.Contains(hint, tt.hint) || !strings.HasPrefix(hint, "add a gate under web, like x-muster: {gate:") {
				t.Errorf("got hint %q, want %q in it", hint, tt.hint)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, content, want string }{
		{"container_name with replicas", "services: {web: {image: a, container_name: web, deploy: {replicas: 3}}}\n", "compose.yaml:1: service web: container_name: instances are named <stack>.<service>.<slot>.rN"},
		{"version", "version: '3.8'\nservices: {web: {image: a}}\n", "compose.yaml:1: version is obsolete"},
		{"unset variable", "services: {web: {image: a, user: \"${WHO}\"}}\n", "variable WHO is not set and counts as empty"},
		{"restart always", "services: {web: {image: a, restart: always}}\n", "always becomes unless-stopped"},
		{"no restart", "services: {web: {image: a}}\n", "no restart policy"},
		{"nginx -t", "services: {web: {image: a, ports: ['80'], healthcheck: {test: nginx -t}}}\n", "nginx -t says nothing about serving requests; better: x-muster: {gate: {http: {port: 80, path: /}}}"},
		{"build beside image", "services: {web: {image: a, build: .}}\n", "Muster does not build: a must be in its registry"},
		{"links", "services: {web: {image: a, links: [db]}, db: {image: b}}\n", "links: services of a stack find each other by name"},
		{"expose", "services: {web: {image: a, expose: [80]}}\n", "expose: "},
		{"deploy.labels", "services: {web: {image: a, deploy: {labels: {a: b}}}}\n", "deploy.labels: they are labels of a Swarm service"},
		{"endpoint_mode", "services: {web: {image: a, deploy: {endpoint_mode: dnsrr}}}\n", "deploy.endpoint_mode: "},
		{"privileged", "services: {web: {image: a, privileged: true}}\n", "only on hosts whose own policy allows it"},
		{"pull_policy", "services: {web: {image: a, pull_policy: always}}\n", "pull_policy: images are pinned by digest"},
		{"port on all addresses", "services: {web: {image: a, ports: ['80:80']}, db: {image: b, ports: ['127.0.0.1:5432:5432']}, api: {image: c, ports: ['90']}}\n", "ports of web: without an address they are bound on the host's advertised one"},
		{"develop", "services: {web: {image: a, develop: {watch: [{path: ./src, action: rebuild}]}}}\n", "develop: "},
		{"depends_on restart", "services: {web: {image: a, depends_on: {db: {condition: service_started, restart: true}}}, db: {image: b}}\n", "service web: depends_on.db.restart: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if m := load(t, oneFile(tt.content)); !hasWarning(m, tt.want) {
				t.Errorf("got warnings %q, want %q", m.Warnings, tt.want)
			}
		})
	}
	quiet := load(t, oneFile("x-note: {a: b}\nservices: {web: {image: a, restart: unless-stopped, x-other: 1, depends_on: [db]}, db: {image: b, restart: unless-stopped}}\n"))
	if len(quiet.Warnings) > 0 {
		t.Errorf("got warnings %q for a file that means the same here as with compose", quiet.Warnings)
	}
}

func TestJobsAndGlobals(t *testing.T) {
	m := load(t, oneFile(`
services:
  migrate: {image: a, restart: "no"}
  seed: {image: a, x-muster: {job: true}}
  batch: {image: a, deploy: {mode: replicated-job, restart_policy: {condition: none}}}
  web: {image: a, depends_on: {migrate: {condition: service_completed_successfully}}}
  node: {image: a, deploy: {mode: global, placement: {constraints: ["node.labels.zone != b"], preferences: [{spread: node.labels.rack}], max_replicas_per_node: 1}}}
  three: {image: a, scale: 3}
  none: {image: a, deploy: {replicas: 0}}
`))
	for name, want := range map[string]struct {
		job      bool
		replicas uint32
	}{"migrate": {true, 1}, "seed": {true, 1}, "batch": {true, 1}, "web": {false, 1}, "node": {false, 0}, "three": {false, 3}, "none": {false, 0}} {
		s := named(t, m, name)
		if s.GetJob() != want.job || s.GetReplicas() != want.replicas {
			t.Errorf("%s: got job %v with %d replicas, want %v with %d", name, s.GetJob(), s.GetReplicas(), want.job, want.replicas)
		}
	}
	p := named(t, m, "node").GetPlacement()
	want := &coordinatorv1.Placement{Global: true, Constraints: []string{"node.labels.zone!=b"}, Spread: []string{"node.labels.rack"}, MaxReplicasPerHost: 1}
	if !proto.Equal(p, want) {
		t.Errorf("got placement %v, want %v", p, want)
	}
}

func TestFixture(t *testing.T) {
	_, err := stack.Load(t.Context(), fixtureSource(t, production...))
	for _, built := range []string{"backend", "ml", "frontend", "backup"} {
		if err == nil || !strings.Contains(err.Error(), "service "+built+" is built: give it image: ") {
			t.Errorf("got %v, want that %s is refused because it is built", err, built)
		}
	}
	m := load(t, fixtureSource(t, managed...))
	if m.Name != "spheroseg" || len(m.Services) != 13 || len(m.ExternalSecrets) != 10 {
		t.Errorf("got stack %s with %d services and %d secrets, want spheroseg with 13 and 10", m.Name, len(m.Services), len(m.ExternalSecrets))
	}
	backend := named(t, m, "backend")
	if backend.GetReplicas() != 2 || backend.GetUpdate().GetMonitor().AsDuration() != 220*time.Second || backend.GetStopFirst() != "" || backend.GetPinned() == "" {
		t.Errorf("got backend %v", backend)
	}
	for name, want := range map[string]string{
		"db": "host port 5432 can be bound once per host", "nginx": "host port 80 can be bound once per host", "backup": "one instance writes to ./backup", "assets": "", "frontend": "",
	} {
		if got := named(t, m, name).GetStopFirst(); got != want {
			t.Errorf("%s: got stop_first %q, want %q", name, got, want)
		}
	}
	if c := backend.GetTemplate().GetCommand(); len(c) != 3 || !strings.Contains(c[2], `"$(cat /run/secrets/database_url)"`) {
		t.Errorf("got command %q, want one dollar sign where the file has two", c)
	}
}

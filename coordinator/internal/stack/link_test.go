package stack_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func env(kv ...string) func(*coordinatorv1.Service) {
	return func(s *coordinatorv1.Service) { s.Template.Env = append(s.Template.Env, kv...) }
}

func route(port uint32) func(*coordinatorv1.Service) {
	return func(s *coordinatorv1.Service) { s.Route = &coordinatorv1.ServiceRoute{Port: port} }
}

func TestLink(t *testing.T) {
	for _, tt := range []struct {
		name     string
		services []*coordinatorv1.Service
		at       []*coordinatorv1.Assignment
		proxies  map[string]string
		want     map[string][]string // extra_hosts of web, by host
		warning  string
		problem  string
	}{
		{name: "same host", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h1", 1)}, want: map[string][]string{"h1": nil}},
		{name: "published port", services: []*coordinatorv1.Service{svc("web", 2, needs("db")), svc("db", 1)},
			at:   []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("web", 2, "h2", 1), at("db", 1, "h2", 1, 5432, 5432)},
			want: map[string][]string{"h1": {"db:10.0.0.2"}, "h2": nil}},
		{name: "published on one address", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), func() *coordinatorv1.Assignment {
				a := at("db", 1, "h2", 1, 5432, 5432)
				a.Ports[0].HostIp = "192.168.5.5"
				return a
			}()}, want: map[string][]string{"h1": {"db:192.168.5.5"}}},
		{name: "route", services: []*coordinatorv1.Service{svc("web", 1, needs("api")), svc("api", 2, route(8080))},
			at:      []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("api", 1, "h2", 1), at("api", 2, "h3", 1)},
			proxies: map[string]string{"api": "10.0.0.9"}, want: map[string][]string{"h1": {"api:10.0.0.9"}}},
		{name: "one of several is here", services: []*coordinatorv1.Service{svc("web", 1, needs("api")), svc("api", 2)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("api", 1, "h1", 1), at("api", 2, "h3", 1)}, want: map[string][]string{"h1": nil}},
		{name: "mentioned in a URL", services: []*coordinatorv1.Service{svc("web", 1, env("CACHE=redis://:pw@cache:6379/0")), svc("cache", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("cache", 1, "h2", 1, 6379, 6379)}, want: map[string][]string{"h1": {"cache:10.0.0.2"}}},
		{name: "mentioned as a host", services: []*coordinatorv1.Service{svc("web", 1, env("CACHE_HOST=cache")), svc("cache", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("cache", 1, "h2", 1, 6379, 6379)}, want: map[string][]string{"h1": {"cache:10.0.0.2"}}},
		{name: "mentioned, and not reachable", services: []*coordinatorv1.Service{svc("web", 1, env("ML=http://ml:5002")), svc("ml", 1, port(0, 5002))},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("ml", 1, "h2", 1, 20000, 5002)}, want: map[string][]string{"h1": nil},
			warning: `service web on host h1 mentions ml, which runs on h2 and will not be found by that name: it publishes no port under its own number: add ports: ["5002:5002"] under ml`},
		{name: "a word is no mention", services: []*coordinatorv1.Service{svc("web", 1, env("POSTGRES_DB=db", "TEXT=a db is here", "URL=http://my-db:1/", "X=http://db.example.com:80")), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h2", 1, 5432, 5432)}, want: map[string][]string{"h1": nil}},
		{name: "no port", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 1, func(s *coordinatorv1.Service) { s.Image = "docker.io/library/postgres:16@sha256:ab" })},
			at:      []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h2", 1)},
			problem: `service web on host h1 depends on db, which runs on h2: it publishes no port under its own number: add ports: ["5432:5432"] under db; or keep them together with deploy: {placement: {constraints: ["node.hostname==h2"]}} under web`},
		{name: "port of another number", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 1, port(15432, 5432))},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h2", 1, 15432, 5432)}, problem: `add ports: ["5432:5432"] under db`},
		{name: "only for its own host", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), func() *coordinatorv1.Assignment {
				a := at("db", 1, "h2", 1, 5432, 5432)
				a.Ports[0].HostIp = "127.0.0.1"
				return a
			}()}, problem: "it publishes no port under its own number"},
		{name: "several without a route", services: []*coordinatorv1.Service{svc("web", 1, needs("api")), svc("api", 2, port(0, 3000))},
			at:      []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("api", 1, "h2", 1, 20000, 3000), at("api", 2, "h3", 1, 20000, 3000)},
			problem: "it has 2 instances, to which one name leads only through the route proxy: add x-muster: {route: {port: 3000}} under api"},
		{name: "route without a proxy", services: []*coordinatorv1.Service{svc("web", 1, needs("api")), svc("api", 1, route(3000))},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("api", 1, "h2", 1)}, problem: "it has a route, and no host has a route proxy"},
		{name: "a job serves nobody", services: []*coordinatorv1.Service{svc("web", 1, needs("migrate")), svc("migrate", 1, func(s *coordinatorv1.Service) { s.Job = true })},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("migrate", 1, "h2", 1)}, want: map[string][]string{"h1": nil}},
		{name: "no network in common", services: []*coordinatorv1.Service{svc("web", 1, needs("db"), func(s *coordinatorv1.Service) { s.Template.Networks[0].Name = "x" }), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h1", 1, 5432, 5432)}, want: map[string][]string{"h1": {"db:10.0.0.1"}}},
		{name: "on the host's network", services: []*coordinatorv1.Service{svc("web", 1, needs("db"), func(s *coordinatorv1.Service) { s.Template.NetworkMode, s.Template.Networks = "host", nil }), svc("db", 1)},
			at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("db", 1, "h1", 1, 5432, 5432)}, want: map[string][]string{"h1": {"db:10.0.0.1"}}},
		{name: "nothing runs", services: []*coordinatorv1.Service{svc("web", 1, needs("db")), svc("db", 0)}, at: []*coordinatorv1.Assignment{at("web", 1, "h1", 1)}, want: map[string][]string{"h1": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			links, err := stack.Link(stack.LinkRequest{Services: tt.services, Assignments: tt.at, Proxies: tt.proxies})
			if tt.problem != "" {
				if rpcerr.Reason(err) != "PLACEMENT" || !strings.Contains(rpcerr.Message(err), tt.problem) {
					t.Errorf("got  %v\nwant %s", err, tt.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for h, want := range tt.want {
				if got := links.ExtraHosts("web", h); !slices.Equal(got, want) {
					t.Errorf("got %q on %s, want %q", got, h, want)
				}
			}
			if got := strings.Join(links.Warnings, "\n"); got != tt.warning {
				t.Errorf("got warning  %s\nwant %s", got, tt.warning)
			}
		})
	}
}

func TestSpec(t *testing.T) {
	s := svc("web", 2, needs("db"), port(0, 80), port(443, 443), func(s *coordinatorv1.Service) {
		s.Template.Labels = map[string]string{"team": "core"}
		s.Template.ExtraHosts = []string{"cache:10.9.9.9"}
		s.Template.Ports[1].HostIp = "127.0.0.1"
	})
	a := at("web", 2, "h1", 7, 20001, 80, 443, 443)
	a.Ports[1].HostIp = "127.0.0.1"
	links, err := stack.Link(stack.LinkRequest{
		Services:    []*coordinatorv1.Service{s, svc("db", 1), svc("cache", 1)},
		Assignments: []*coordinatorv1.Assignment{a, at("db", 1, "h2", 1, 5432, 5432)},
	})
	if err != nil {
		t.Fatal(err)
	}
	before := proto.CloneOf(s)
	want := &agentv1.ContainerSpec{}
	if err := protojson.Unmarshal([]byte(`{
  "name": "app.web.2.r7", "image": "web:1", "resources": {}, "networks": [{"name": "app_default", "aliases": ["web"]}],
  "labels": {"team": "core", "muster.stack": "app", "muster.service": "web", "muster.slot": "2", "muster.release": "7",
             "com.docker.compose.project": "app", "com.docker.compose.service": "web", "com.docker.compose.container-number": "2", "com.docker.compose.oneoff": "False"},
  "ports": [{"hostIp": "10.0.0.1", "hostPort": 20001, "containerPort": 80, "protocol": "tcp"}, {"hostIp": "127.0.0.1", "hostPort": 443, "containerPort": 443, "protocol": "tcp"}],
  "extraHosts": ["cache:10.9.9.9", "db:10.0.0.2"]
}`), want); err != nil {
		t.Fatal(err)
	}
	if got := stack.Spec("app", s, a, links); !proto.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", protojson.Format(got), protojson.Format(want))
	}
	if !proto.Equal(s, before) {
		t.Error("Spec changed the service")
	}
	if got := stack.Spec("app", s, a, nil).GetExtraHosts(); !slices.Equal(got, []string{"cache:10.9.9.9"}) {
		t.Errorf("got extra_hosts %q without links", got)
	}
}

// TestFixtureEndToEnd takes the real shape through the whole package: load, place on three hosts, link, spec.
func TestFixtureEndToEnd(t *testing.T) {
	m := load(t, fixtureSource(t, managed...))
	hosts := []*coordinatorv1.Host{host("h1", label("role", "main")), host("h2", label("gpu", "true"), gpus(1)), host("h3")}
	for _, h := range hosts {
		h.Inventory.MemoryBytes = 16 * gib
	}
	req := stack.PlaceRequest{Stack: m.Name, Release: 1, Services: m.Services, Hosts: hosts, Proxies: map[string]string{"backend": "10.0.0.1"}}
	if _, err := stack.Place(req); err == nil || !strings.Contains(err.Error(), "use data of one host") {
		t.Fatalf("got %v, want that someone must say where the project directory is", err)
	}
	named(t, m, "db").Placement.Constraints = []string{"node.labels.role==main"}
	got, err := stack.Place(req)
	if err != nil {
		t.Fatal(err)
	}
	where := map[string][]string{}
	for _, a := range got {
		where[a.GetService()] = append(where[a.GetService()], a.GetHost())
	}
	for service, want := range map[string][]string{
		"db": {"h1"}, "backend": {"h1", "h1"}, "backup": {"h1"}, "nginx": {"h1"}, "assets": {"h1"}, "prometheus": {"h1"}, "frontend": {"h1"}, "ml": {"h2"}, "node-exporter": {"h1", "h2", "h3"},
	} {
		if !slices.Equal(where[service], want) {
			t.Errorf("%s is on %q, want %q", service, where[service], want)
		}
	}
	links, err := stack.Link(stack.LinkRequest{Services: m.Services, Assignments: got, Proxies: map[string]string{"backend": "10.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if hosts := links.ExtraHosts("backend", "h1"); !slices.Contains(hosts, "ml:10.0.0.2") {
		t.Errorf("backend has extra_hosts %q, want ml among them: ML_SERVICE_URL names it", hosts)
	}
	byName := map[string]*coordinatorv1.Service{}
	for _, s := range m.Services {
		byName[s.GetName()] = s
	}
	names := map[string]bool{}
	for _, a := range got {
		spec := stack.Spec(m.Name, byName[a.GetService()], a, links)
		if names[spec.GetName()] || !strings.HasPrefix(spec.GetName(), "spheroseg."+a.GetService()+".") {
			t.Errorf("container %s is not a name of its own", spec.GetName())
		}
		names[spec.GetName()] = true
	}
	// Nothing to do the second time.
	again, err := stack.Place(stack.PlaceRequest{Stack: m.Name, Release: 2, Services: m.Services, Hosts: hosts, Before: m.Services, Current: got, Proxies: map[string]string{"backend": "10.0.0.1"}})
	if err != nil || !equalAssignments(got, again) {
		t.Errorf("a second placement of the same moved something (%v): %s", err, short(again))
	}
}

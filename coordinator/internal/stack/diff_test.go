package stack_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func release(services ...*coordinatorv1.Service) *coordinatorv1.Release {
	return &coordinatorv1.Release{Stack: "app", Services: services}
}

// changes writes a diff as lines.
func changes(list []*coordinatorv1.ServiceChange) string {
	var lines []string
	for _, c := range list {
		kind := strings.ToLower(strings.TrimPrefix(c.GetKind().String(), "CHANGE_KIND_"))
		lines = append(lines, fmt.Sprintf("%s %s %d->%d", kind, c.GetService(), c.GetInstancesBefore(), c.GetInstancesAfter()))
		for _, f := range c.GetFields() {
			lines = append(lines, fmt.Sprintf("  %s: %s -> %s", f.GetPath(), f.GetBefore(), f.GetAfter()))
		}
	}
	return strings.Join(lines, "\n")
}

func TestDiff(t *testing.T) {
	secret := func(version uint64) func(*coordinatorv1.Service) {
		return func(s *coordinatorv1.Service) {
			s.Template.Secrets = []*agentv1.SecretMount{{Secret: &agentv1.SecretValue{Name: "db", Version: version}, Target: "/run/secrets/db"}}
		}
	}
	config := func(content string) func(*coordinatorv1.Service) {
		return func(s *coordinatorv1.Service) {
			s.Template.Configs = []*agentv1.ConfigFile{{Target: "/etc/x", Content: []byte(content)}}
		}
	}
	command := func(argv ...string) func(*coordinatorv1.Service) {
		return func(s *coordinatorv1.Service) { s.Template.Command = argv }
	}
	for _, tt := range []struct {
		name          string
		before, after *coordinatorv1.Release
		want          string
	}{
		{"first", nil, release(svc("web", 2), svc("db", 1)), "create db 0->1\n  image:  -> db:1\ncreate web 0->2\n  image:  -> web:1"},
		{"last", release(svc("web", 2)), nil, "remove web 2->0\n  image: web:1 -> "},
		{"nothing", release(svc("web", 2)), release(svc("web", 2)), "none web 2->2"},
		{"image", release(svc("web", 2)), release(svc("web", 2, image("web@sha256:2"))), "update web 2->2\n  image: web:1 -> web@sha256:2\n  image_name:  -> web:1"},
		{"scale", release(svc("web", 2)), release(svc("web", 3)), "update web 2->3\n  replicas: 2 -> 3"},
		{"environment", release(svc("web", 1, env("A=1", "B=2"))), release(svc("web", 1, env("A=3", "C=4"))), "update web 1->1\n  env.A: 1 -> 3\n  env.B: 2 -> \n  env.C:  -> 4"},
		{"secret variables", release(svc("web", 1, env("DB_PASSWORD=a", "API_KEY=b", "TOKEN_FILE=/a"))), release(svc("web", 1, env("DB_PASSWORD=b", "MY_SECRET=c", "TOKEN_FILE=/b"))),
			"update web 1->1\n  env.API_KEY: ••• -> \n  env.DB_PASSWORD: ••• -> •••\n  env.MY_SECRET:  -> •••\n  env.TOKEN_FILE: /a -> /b"},
		{"password in a URL", release(svc("web", 1, env("U=redis://:first@cache:6379"))), release(svc("web", 1, env("U=redis://:second@cache:6379"))),
			"update web 1->1\n  env.U: redis://:•••@cache:6379 -> redis://:•••@cache:6379"},
		{"password in a command", release(svc("web", 1, command("redis-server", "--requirepass", "first"))), release(svc("web", 1, command("redis-server", "--requirepass", "second"))),
			"update web 1->1\n  command: redis-server --requirepass ••• -> redis-server --requirepass •••"},
		{"ports", release(svc("web", 1, port(0, 80))), release(svc("web", 1, port(8080, 80))), "update web 1->1\n  ports.80/tcp: dynamic:80/tcp -> \n  ports.80/tcp@:8080:  -> 8080:80/tcp"},
		{"secret version", release(svc("web", 1, secret(1))), release(svc("web", 1, secret(2))), "update web 1->1\n  secrets./run/secrets/db: db v1 -> db v2"},
		{"config", release(svc("web", 1, config("a"))), release(svc("web", 1, config("bb"))), "update web 1->1\n  configs./etc/x: 1 B sha256:ca978112ca1b -> 2 B sha256:3b64db95cb55"},
		{"gate and policy", release(svc("web", 1)), release(svc("web", 1, func(s *coordinatorv1.Service) {
			s.Gate = &agentv1.Gate{Probe: &agentv1.Gate_Health{Health: &agentv1.HealthProbe{}}, Deadline: durationpb.New(9e9)}
			s.Update.FailureAction = coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE
		})), "update web 1->1\n  gate.deadline:  -> 9s\n  gate.health:  -> yes\n  update.failure_action:  -> pause"},
		{"limits", release(svc("web", 1)), release(svc("web", 1, memory(512))), "update web 1->1\n  resources.memory_reservation_bytes:  -> 512"},
		{"dependencies", release(svc("web", 1, needs("a"))), release(svc("web", 1, needs("b"))), "update web 1->1\n  depends_on.a: service_started -> \n  depends_on.b:  -> service_started"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := changes(stack.Diff(tt.before, tt.after)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestDiffTellsTheRollout(t *testing.T) {
	after := release(svc("web", 1, image("web:2"), func(s *coordinatorv1.Service) { s.Update.Parallelism, s.Update.Order = 3, "stop-first" }))
	after.Assignments = []*coordinatorv1.Assignment{at("web", 1, "h1", 1), at("web", 2, "h1", 1)}
	c := stack.Diff(release(svc("web", 1)), after)[0]
	if c.GetOrder() != "stop-first" || c.GetParallelism() != 3 || c.GetInstancesAfter() != 2 {
		t.Errorf("got %v, want stop-first by 3 with the 2 assigned instances", c)
	}
}

func TestReplace(t *testing.T) {
	base := svc("web", 1, env("A=1"))
	for _, tt := range []struct {
		name   string
		change func(*coordinatorv1.Service)
		want   bool
	}{
		{"nothing", func(*coordinatorv1.Service) {}, false},
		{"replicas", func(s *coordinatorv1.Service) { s.Replicas = 5 }, false},
		{"gate", func(s *coordinatorv1.Service) {
			s.Gate = &agentv1.Gate{Probe: &agentv1.Gate_Tcp{Tcp: &agentv1.TcpProbe{Port: 1}}}
		}, false},
		{"policy", func(s *coordinatorv1.Service) { s.Update.Parallelism = 5 }, false},
		{"route", route(80), false},
		{"placement", on("node.hostname==a"), false},
		{"image", image("web:2"), true},
		{"environment", env("B=2"), true},
		{"job", func(s *coordinatorv1.Service) { s.Job = true }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := proto.CloneOf(base)
			tt.change(after)
			if got := stack.Replace(base, after); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if !stack.Replace(nil, base) || !stack.Replace(base, nil) {
		t.Error("a service that comes or goes needs other containers")
	}
}

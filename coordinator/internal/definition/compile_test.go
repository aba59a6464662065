package definition_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/definition"
	"github.com/spheroseg/muster/coordinator/internal/expression"
	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// fleet is a state with two hosts, the first of which drives a proxy, and the release of a stack: backend twice, ml once, frontend twice.
type fleet struct {
	t     *testing.T
	state *state.State
	index uint64
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, state: state.New()}
	for _, host := range []string{"h1", "h2"} {
		f.join(host)
	}
	release := &coordinatorv1.Release{Stack: "spheroseg", Number: 1}
	for _, service := range []string{"backend", "frontend", "ml"} {
		f.add(release, service, map[string]int{"backend": 2, "frontend": 2, "ml": 1}[service])
	}
	f.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan:    &coordinatorv1.Plan{Procedure: "rolling-update", Stack: "spheroseg", ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)},
		Release: release,
	}}})
	f.apply(&raftv1.Command{Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: "db_password", Value: []byte("s")}}})
	return f
}

func (f *fleet) add(release *coordinatorv1.Release, name string, instances int) {
	service := &coordinatorv1.Service{
		Name: name, Replicas: uint32(instances), Image: name, Update: &coordinatorv1.UpdatePolicy{Parallelism: 1},
		Gate: &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 8080}}, Deadline: durationpb.New(time.Minute)},
		Template: &agentv1.ContainerSpec{
			Image: "registry.test/" + name + "@sha256:1", Env: []string{"MODE=live", "LEVEL=info"}, Restart: &agentv1.RestartPolicy{Name: "always"},
			Networks: []*agentv1.NetworkAttachment{{Name: "spheroseg_default", Aliases: []string{name}}}, Entrypoint: []string{"/entry"}, Hostname: name,
		},
	}
	if name != "ml" {
		service.Route = &coordinatorv1.ServiceRoute{Port: 8080}
	}
	release.Services = append(release.Services, service)
	for slot := range instances {
		release.Assignments = append(release.Assignments, &coordinatorv1.Assignment{
			Service: name, Slot: uint32(slot + 1), Host: fmt.Sprintf("h%d", slot%2+1), HostAddress: fmt.Sprintf("10.0.0.%d", slot%2+1), Release: 1,
			Container: fmt.Sprintf("spheroseg.%s.%d.r1", name, slot+1),
			Ports:     []*agentv1.PortBinding{{HostPort: uint32(21000 + 10*len(release.GetAssignments())), ContainerPort: 8080, Protocol: "tcp"}},
		})
	}
}

func (f *fleet) apply(c *raftv1.Command) *raftv1.Result {
	f.t.Helper()
	f.index++
	c.Version, c.Actor, c.Now = state.CommandVersion, "user/ada", timestamppb.New(time.Date(2026, 11, 23, 3, 0, int(f.index), 0, time.UTC))
	result := f.state.Apply(f.index, c)
	if result.GetError() != nil {
		f.t.Fatal(result.GetError().GetMessage())
	}
	return result
}

func (f *fleet) join(host string) {
	f.apply(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: host, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, ExpiresAt: timestamppb.New(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)),
	}}}})
	f.apply(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: host, SecretHash: []byte("s"), Identity: &raftv1.Identity{
		Id: "spiffe://agent.test.muster/" + host, Role: accessv1.Role_ROLE_AGENT, Name: host,
	}}}})
	f.set(host, coordinatorv1.HostState_HOST_STATE_UP)
}

func (f *fleet) set(host string, to coordinatorv1.HostState) {
	inventory := &agentv1.Inventory{Address: "10.0.0." + host[1:], Hostname: host, Labels: map[string]string{"role": "app", "number": host[1:]}}
	if host == "h1" {
		inventory.RouteDrivers = []string{"caddy"}
	}
	f.apply(&raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: []*raftv1.HostUpdate{{Host: host, State: to, Inventory: inventory}}}}})
}

// Invoke answers what a planner asks a host: every assigned container runs.
func (f *fleet) Invoke(_ context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	switch r := request.(type) {
	case *agentv1.ListContainersRequest:
		answer := &agentv1.ListContainersResponse{}
		for _, a := range f.state.View().CurrentRelease(r.GetStack()).GetAssignments() {
			answer.Containers = append(answer.Containers, &agentv1.Container{Name: a.GetContainer(), State: "running"})
		}
		proto.Merge(response.(proto.Message), answer)
	case *agentv1.ResolveImageRequest:
		if strings.HasSuffix(r.GetImage(), ":gone") {
			return status.Errorf(codes.NotFound, "no registry has %s", r.GetImage())
		}
		proto.Merge(response.(proto.Message), &agentv1.ResolveImageResponse{Pinned: r.GetImage() + "@sha256:2", Present: true})
	default:
		return status.Errorf(codes.Unimplemented, "the test's agent has no %s", method)
	}
	return nil
}

// NewStream is not needed by planners.
func (f *fleet) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func (f *fleet) compile(text string, inputs map[string]string) (*runbook.Proposal, error) {
	planner := &runbook.Planner{Conn: func(context.Context, string) (grpc.ClientConnInterface, error) { return f, nil }}
	return definition.Compile(f.t.Context(), definition.Load("test.yaml", []byte(text)), inputs, definition.Fleet{View: f.state.View(), Planner: planner})
}

func (f *fleet) plan(text string, inputs map[string]string) *coordinatorv1.Plan {
	f.t.Helper()
	proposal, err := f.compile(text, inputs)
	if err != nil {
		f.t.Fatal(err)
	}
	return proposal.Plan
}

// procedure makes a procedure of steps.
func procedure(steps string) string {
	return `api: procedure/v1
name: test
title: A test
max_duration: 24h
inputs:
  text: {type: string, default: plain}
  names: {type: list, default: [backend, ml]}
  on: {type: bool, default: true}
targets:
  app: {labels: {role: app}}
  first: {labels: {role: app, number: "1"}}
  backend: {stack: spheroseg, service: backend}
  each: {stack: spheroseg, service: "${each}"}
guard: {risk: disruptive, locks: [stack/spheroseg]}
steps:
` + steps
}

func step(t *testing.T, plan *coordinatorv1.Plan, id string) *coordinatorv1.Step {
	t.Helper()
	var ids []string
	for _, s := range plan.GetSteps() {
		if s.GetId() == id {
			return s
		}
		ids = append(ids, s.GetId())
	}
	t.Fatalf("the plan has no step %s: it has %s", id, strings.Join(ids, " "))
	return nil
}

// request unpacks the request of an action.
func request[T proto.Message](t *testing.T, action *coordinatorv1.Action, into T) T {
	t.Helper()
	if err := proto.Unmarshal(action.GetRequest(), into); err != nil {
		t.Fatal(err)
	}
	return into
}

func TestShippedMaintenanceCompiles(t *testing.T) {
	f := newFleet(t)
	source, err := os.ReadFile(filepath.Join(shipped, "maintenance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string]string{"schema": "2026-11"}
	plan := f.plan(string(source), inputs)
	if again := f.plan(string(source), inputs); again.GetHash() != plan.GetHash() || plan.GetHash() == "" {
		t.Errorf("the same procedure gives the plans %q and %q", plan.GetHash(), again.GetHash())
	}
	if other := f.plan(string(source), map[string]string{"schema": "2026-12"}); other.GetHash() == plan.GetHash() {
		t.Error("another input gives the same hash, to which approvals are bound")
	}
	if plan.GetStack() != "spheroseg" || !slices.Equal(plan.GetLocks(), []string{"stack/spheroseg"}) {
		t.Errorf("stack %q, locks %v", plan.GetStack(), plan.GetLocks())
	}
	on := step(t, plan, "maintenance_on/h1")
	if !slices.Equal(on.GetAfter(), []string{"approve_start"}) || !step(t, plan, "approve_start").GetApproval().ProtoReflect().IsValid() {
		t.Errorf("the page comes after %v", on.GetAfter())
	}
	page := request(t, on.GetAction(), &agentv1.SetMaintenanceRequest{})
	if !page.GetEnabled() || page.GetLimit().AsDuration() != 4*time.Hour || on.GetAction().GetEffect() != accessv1.Effect_EFFECT_IDEMPOTENT {
		t.Errorf("the page is asked for with %v", page)
	}
	if back := request(t, on.GetUndo()[0].GetAction(), &agentv1.SetMaintenanceRequest{}); back.GetEnabled() {
		t.Error("the way back shows the page")
	}
	migrate := step(t, plan, "migrate")
	if probe := request(t, migrate.GetDoneIf().GetProbe(), &agentv1.ProbeHttpRequest{}); probe.GetUrl() != "http://10.0.0.1:21000/schema" {
		t.Errorf("done_if asks %s", probe.GetUrl())
	}
	if want := `result.status == 200 && result.body == "2026-11"`; migrate.GetDoneIf().GetExpression() != want {
		t.Errorf("done_if is %s, want %s", migrate.GetDoneIf().GetExpression(), want)
	}
	// One service after the other: whatever is done to ml comes, over any number of steps, after all that is done to the backend.
	before := ancestors(plan, "restart.ml/ml.1/stop")
	for _, id := range []string{"restart.backend/backend.1/stop", "restart.backend/backend.2/ready", "migrate", "maintenance_on/h1"} {
		if !before[id] {
			t.Errorf("ml is stopped without waiting for %s", id)
		}
	}
	if off := ancestors(plan, "maintenance_off/h1"); !off["ready.frontend/frontend.2"] || !off["restart.frontend/frontend.2/route@h1"] {
		t.Error("the page ends before the frontend is back")
	}
	f.start(plan)
}

// start gives a plan to the state, which refuses one that the engine could not run.
func (f *fleet) start(plan *coordinatorv1.Plan) {
	f.t.Helper()
	f.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan, StackRevision: f.state.View().Stack(plan.GetStack()).GetRevision()}}})
}

// ancestors are the steps that must have settled before one.
func ancestors(plan *coordinatorv1.Plan, id string) map[string]bool {
	after := map[string][]string{}
	for _, s := range plan.GetSteps() {
		after[s.GetId()] = s.GetAfter()
	}
	found := map[string]bool{}
	var visit func(id string)
	visit = func(id string) {
		for _, before := range after[id] {
			if !found[before] {
				found[before] = true
				visit(before)
			}
		}
	}
	visit(id)
	return found
}

func TestWavesAndBudget(t *testing.T) {
	f := newFleet(t)
	for n := 3; n <= 10; n++ {
		f.join(fmt.Sprintf("h%d", n))
	}
	plan := f.plan(procedure(`  - id: look
    on: app
    use: probe.tcp
    with: {address: "${target.address}:22"}
    rollout: {waves: [1, "25%", "100%"], max_failed: 20%, pause: 30s}
  - {id: rest, wait: 1m}
  - {id: last, on: first, use: probe.tcp, with: {address: "x:1"}}
`), nil)
	first, third, fourth := step(t, plan, "look/h1"), step(t, plan, "look/h2"), step(t, plan, "look/h5")
	if len(first.GetAfter()) != 0 || !slices.Equal(third.GetAfter(), []string{"look/h1"}) || third.GetDelay().AsDuration() != 30*time.Second {
		t.Errorf("first wave after %v, second after %v and %s", first.GetAfter(), third.GetAfter(), third.GetDelay().AsDuration())
	}
	// Hosts are in the order of their names: h1, h10, h2, h3, …
	if want := []string{"look/h10", "look/h2"}; !slices.Equal(fourth.GetAfter(), want) {
		t.Errorf("the third wave comes after %v, want %v", fourth.GetAfter(), want)
	}
	if len(plan.GetBudgets()) != 1 || len(plan.GetBudgets()[0].GetGroups()) != 10 || plan.GetBudgets()[0].GetMaxFailed() != 2 {
		t.Errorf("budgets %v", plan.GetBudgets())
	}
	last := step(t, plan, "last/h1")
	if last.GetDelay().AsDuration() != time.Minute || !slices.Contains(last.GetAfter(), "look/h9") {
		t.Errorf("the last step comes after %v and %s", last.GetAfter(), last.GetDelay().AsDuration())
	}
	if r := request(t, third.GetAction(), &agentv1.ProbeTcpRequest{}); r.GetAddress() != "10.0.0.2:22" {
		t.Errorf("h2 is asked for %s", r.GetAddress())
	}
	f.start(plan)
}

func TestNeeds(t *testing.T) {
	plan := newFleet(t).plan(procedure(`  - {id: a, on: first, use: probe.tcp, with: {address: "x:1"}}
  - {id: b, on: first, use: probe.tcp, with: {address: "x:2"}, needs: [a]}
  - {id: c, on: first, use: probe.tcp, with: {address: "x:3"}, needs: [a]}
  - {id: d, on: first, use: probe.tcp, with: {address: "x:4"}}
`), nil)
	if after := step(t, plan, "c/h1").GetAfter(); !slices.Equal(after, []string{"a/h1"}) {
		t.Errorf("c comes after %v", after)
	}
	if before := ancestors(plan, "d/h1"); !before["b/h1"] || !before["c/h1"] {
		t.Errorf("d comes after %v, want all", slices.Sorted(maps.Keys(before)))
	}
}

func TestJob(t *testing.T) {
	f := newFleet(t)
	plan := f.plan(strings.Replace(procedure(`  - id: job
    on: backend
    use: job.run
    with: {argv: [migrate, "${inputs.text}"], env: {LEVEL: debug}, secrets: {password: "${inputs.key}"}, image: "registry.test/tool:2"}
    timeout: 5m
    retry: {attempts: 3, delay: 5s, backoff: 2}
    if_unknown: probe
    done_if: {use: probe.http, with: {url: "http://${target.port.8080}/"}, expression: "result.body == inputs.text"}
    undo: [{use: job.run, with: {argv: [back]}, timeout: 1m}]
`), "  on: {type: bool", "  key: {type: secret, required: true}\n  on: {type: bool", 1), map[string]string{"key": "db_password", "text": `a"b ${inputs.names} \`})
	job := step(t, plan, "job")
	spec := request(t, job.GetAction(), &agentv1.RunJobRequest{}).GetSpec()
	if want := []string{"migrate", `a"b ${inputs.names} \`}; !slices.Equal(spec.GetCommand(), want) {
		t.Errorf("command %q, want the input as it was given: %q", spec.GetCommand(), want)
	}
	if want := `result.body == "a\"b ${inputs.names} \\"`; job.GetDoneIf().GetExpression() != want {
		t.Errorf("expression %s, want %s", job.GetDoneIf().GetExpression(), want)
	}
	if len(spec.GetPorts()) > 0 || spec.GetRestart().GetName() != "no" || len(spec.GetNetworks()[0].GetAliases()) > 0 || spec.GetHostname() != "" ||
		spec.GetHealthcheck().GetTest()[0] != "NONE" || spec.GetLabels()["com.docker.compose.service"] != "" {
		t.Errorf("the job could be taken for the service: %v", spec)
	}
	if spec.GetName() != "spheroseg.backend.job-job" || spec.GetImage() != "registry.test/tool:2@sha256:2" || job.GetHost() != "h1" {
		t.Errorf("job %s of %s on %s", spec.GetName(), spec.GetImage(), job.GetHost())
	}
	if want := []string{"MODE=live", "LEVEL=debug"}; !slices.Equal(spec.GetEnv(), want) {
		t.Errorf("env %v, want %v", spec.GetEnv(), want)
	}
	if m := spec.GetSecrets(); len(m) != 1 || m[0].GetTarget() != "/run/secrets/password" || m[0].GetSecret().GetVersion() == 0 || len(m[0].GetSecret().GetValue()) > 0 {
		t.Errorf("secrets %v", m)
	}
	if job.GetMaxAttempts() != 3 || job.GetRetryBackoff() != 2 || job.GetIfUnknown() != coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE {
		t.Errorf("attempts %d, backoff %v, if unknown %v", job.GetMaxAttempts(), job.GetRetryBackoff(), job.GetIfUnknown())
	}
	var methods []string
	for _, undo := range job.GetUndo() {
		methods = append(methods, strings.TrimPrefix(undo.GetAction().GetMethod(), "muster.agent.v1.ContainerService/"))
	}
	if want := []string{"RemoveContainer", "RunJob", "RemoveContainer", "RemoveContainer"}; !slices.Equal(methods, want) {
		t.Errorf("undo %v, want %v", methods, want)
	}
	if !step(t, plan, "job/remove").GetCleanUp() {
		t.Error("the job's container is removed before the run is over")
	}
	f.start(plan)
}

func TestRefused(t *testing.T) {
	restart := procedure("  - {id: restart, for_each: \"${inputs.names}\", on: each, use: service.restart}\n")
	job := func(with string) string {
		return procedure("  - {id: job, on: backend, use: job.run, timeout: 1m, with: {argv: [a], " + with + "}}\n")
	}
	for _, tc := range []struct {
		name   string
		text   string
		inputs map[string]string
		down   string
		reason coordinatorv1.ErrorReason
		has    string
	}{
		{name: "lint", text: "api: procedure/v2", reason: coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_INVALID, has: "test.yaml:1:6"},
		{name: "unknown input", text: restart, inputs: map[string]string{"nams": "a"}, reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "did you mean names?"},
		{name: "input of another type", text: restart, inputs: map[string]string{"on": "yes"}, reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "neither true nor false"},
		{name: "nothing to repeat for", text: restart, inputs: map[string]string{"names": ""}, reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "nothing to repeat"},
		{name: "too much to repeat for", text: restart, inputs: map[string]string{"names": strings.Repeat("a,", 101)}, reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "more than 100"},
		{name: "no such service", text: restart, inputs: map[string]string{"names": "beckend"}, reason: coordinatorv1.ErrorReason_ERROR_REASON_SERVICE_NOT_FOUND, has: "backend"},
		{name: "host down", text: restart, down: "h2", reason: coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN, has: "h2"},
		{name: "no host", text: strings.Replace(restart, "role: app}", "role: db}", 1) + "  - {id: x, on: app, use: probe.tcp, with: {address: 'a:1'}}\n",
			reason: coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT, has: "role=db"},
		{name: "expression too long", text: procedure("  - {id: x, on: first, use: probe.tcp, with: {address: 'a:1'}, verify: 'result.error != inputs.text', verify_for: 1m}\n"),
			inputs: map[string]string{"text": strings.Repeat("x", 3000)}, reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "more than 2048"},
		{name: "no such secret", text: job("secrets: {a: gone}"), reason: coordinatorv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND, has: "gone"},
		{name: "no such image", text: job("image: 'registry.test/tool:gone'"), reason: coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, has: "tool:gone"},
		{name: "port that the service has not", text: procedure("  - {id: x, on: backend, use: probe.tcp, with: {address: '${target.port.9090}'}}\n"),
			reason: coordinatorv1.ErrorReason_ERROR_REASON_INVALID, has: "port.8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFleet(t)
			if tc.down != "" {
				f.set(tc.down, coordinatorv1.HostState_HOST_STATE_DOWN)
			}
			_, err := f.compile(tc.text, tc.inputs)
			if err == nil {
				t.Fatal("it was taken")
			}
			if want := strings.TrimPrefix(tc.reason.String(), "ERROR_REASON_"); rpcerr.Reason(err) != want || !strings.Contains(err.Error(), tc.has) {
				t.Errorf("%s: %v, want %s with %q", rpcerr.Reason(err), err, want, tc.has)
			}
		})
	}
}

// FuzzLiterals: whatever an input holds, the expression that is kept in the plan compares with exactly that, and the argument is exactly that.
func FuzzLiterals(f *testing.F) {
	for _, seed := range []string{"", "plain", `a"b`, `a\`, "a\nb\tc", `" || true || "`, `'`, `${inputs.text}`, "$${", "\u2028 \u00e9 \U0001F600", "inputs.text", "\x7f\x01"} {
		f.Add(seed)
	}
	text := procedure(`  - id: look
    on: first
    use: probe.http
    with: {url: "http://x/${inputs.text}", host_header: "${inputs.text}"}
    verify: result.body == inputs.text && 'inputs.text' != "a" && result.status == 7
    verify_for: 1m
`)
	f.Fuzz(func(t *testing.T, given string) {
		if !utf8.ValidString(given) || strings.ContainsRune(given, 0) || len(given) > 1000 { // no such text comes in a request, or is taken.
			t.Skip()
		}
		fleet := newFleet(t)
		look := step(t, fleet.plan(text, map[string]string{"text": given}), "look/h1")
		probe := request(t, look.GetAction(), &agentv1.ProbeHttpRequest{})
		if probe.GetHostHeader() != given || probe.GetUrl() != "http://x/"+given {
			t.Errorf("%q became %q in %q", given, probe.GetHostHeader(), probe.GetUrl())
		}
		program, err := expression.Compile((&agentv1.ProbeHttpResponse{}).ProtoReflect().Descriptor(), look.GetVerify().GetExpression())
		if err != nil {
			t.Fatalf("%q: %v", given, err)
		}
		for body, want := range map[string]bool{given: true, given + "x": false} {
			if holds, err := program.Eval(&agentv1.ProbeHttpResponse{Body: body, Status: 7}); err != nil || holds != want {
				t.Errorf("%s over %q: %v, %v", look.GetVerify().GetExpression(), body, holds, err)
			}
		}
	})
}

// TestTypedLiterals: an input is in an expression what it is, however it was written.
func TestTypedLiterals(t *testing.T) {
	text := strings.Replace(procedure(`  - id: look
    for_each: "${inputs.names}"
    on: first
    use: probe.http
    with: {url: "http://x/"}
    verify: int(result.status)-inputs.n == 2 && inputs.on && result.latency < inputs.d && each in inputs.names
    verify_for: 1m
`), "inputs:\n", "inputs:\n  n: {type: int, default: 1}\n  d: {type: duration, default: 1s}\n", 1)
	plan := newFleet(t).plan(text, map[string]string{"n": "-007", "d": "1m30s", "names": `a b,"`, "on": "true"})
	want := `int(result.status)-(-7) == 2 && true && result.latency < duration("90s") && "\"" in ["a b", "\""]`
	if got := step(t, plan, "look.2/h1").GetVerify().GetExpression(); got != want {
		t.Errorf("expression %s, want %s", got, want)
	}
	// What cannot be in an id of a step is counted instead. What is asked again is the action, which has no effect.
	if look := step(t, plan, "look.1/h1"); !proto.Equal(look.GetVerify().GetProbe(), look.GetAction()) {
		t.Errorf("after the first answer, %v is asked", look.GetVerify().GetProbe())
	}
}

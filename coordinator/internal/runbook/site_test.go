package runbook_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// site is a fleet whose release is in the state, with hosts that answer a planner.
type site struct {
	*fleet
	state   *state.State
	index   uint64
	release *coordinatorv1.Release
	ended   map[string]bool // containers that ended by themselves under a restart policy
}

// newSite puts a release in place on two hosts, the first of which drives the proxy.
func newSite(t *testing.T, services ...service) *site {
	t.Helper()
	r := release(1, nil, services...)
	for _, s := range r.GetServices() {
		s.Template.Image = strings.Replace(s.GetTemplate().GetImage(), "app@", "registry.test/app@", 1)
		s.Template.Ports = []*agentv1.PortBinding{{ContainerPort: 8080, Protocol: "tcp"}}
	}
	s := &site{fleet: newFleet(t, r), state: state.New(), release: r, ended: map[string]bool{}}
	s.put(r)
	for _, host := range []string{"h1", "h2"} {
		s.join(host)
	}
	s.apply(&raftv1.Command{Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{
		Plan:    &coordinatorv1.Plan{Procedure: "rolling-update", Stack: "shop", ActivateRelease: 1, MaxDuration: durationpb.New(time.Hour)},
		Release: r,
	}}})
	if s.state.View().CurrentRelease("shop").GetNumber() != 1 {
		t.Fatal("the release is not in place")
	}
	return s
}

func (s *site) apply(c *raftv1.Command) *raftv1.Result {
	s.t.Helper()
	s.index++
	c.Version, c.Now = state.CommandVersion, timestamppb.New(time.Date(2026, 11, 23, 3, 0, int(s.index), 0, time.UTC))
	result := s.state.Apply(s.index, c)
	if result.GetError() != nil {
		s.t.Fatal(result.GetError().GetMessage())
	}
	return result
}

func (s *site) join(host string) {
	s.apply(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: host, SecretHash: []byte("s"), Role: accessv1.Role_ROLE_AGENT, ExpiresAt: timestamppb.New(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)),
	}}}})
	s.apply(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: host, SecretHash: []byte("s"), Identity: &raftv1.Identity{
		Id: "spiffe://agent.test.muster/" + host, Role: accessv1.Role_ROLE_AGENT, Name: host,
	}}}})
	s.set(host, coordinatorv1.HostState_HOST_STATE_UP)
}

func (s *site) set(host string, to coordinatorv1.HostState) {
	inventory := &agentv1.Inventory{Address: "10.0.0.1", Hostname: host, PortFirst: 25000, PortLast: 26000, NanoCpus: 64e9, MemoryBytes: 64 << 30}
	if host == "h1" {
		inventory.RouteDrivers = []string{"caddy"}
	}
	s.apply(&raftv1.Command{Op: &raftv1.Command_UpdateHosts{UpdateHosts: &raftv1.UpdateHosts{Hosts: []*raftv1.HostUpdate{{Host: host, State: to, Inventory: inventory}}}}})
}

// planner asks the fleet.
func (s *site) planner() *runbook.Planner {
	return &runbook.Planner{Conn: func(_ context.Context, host string) (grpc.ClientConnInterface, error) { return agent{s, host}, nil }}
}

// agent answers what a planner asks a host.
type agent struct {
	site *site
	host string
}

// Invoke answers a call.
func (a agent) Invoke(_ context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	switch r := request.(type) {
	case *agentv1.ListContainersRequest:
		answer := &agentv1.ListContainersResponse{}
		for _, assigned := range a.site.release.GetAssignments() {
			running, exists := a.site.running[assigned.GetContainer()]
			if !exists || assigned.GetHost() != a.host || r.GetService() != "" && r.GetService() != assigned.GetService() {
				continue
			}
			container := &agentv1.Container{Name: assigned.GetContainer(), State: "running"}
			if !running {
				container.State, container.Stopped = "exited", !a.site.ended[assigned.GetContainer()]
			}
			answer.Containers = append(answer.Containers, container)
		}
		proto.Merge(response.(proto.Message), answer)
	case *agentv1.ResolveImageRequest:
		proto.Merge(response.(proto.Message), &agentv1.ResolveImageResponse{Pinned: r.GetImage(), Present: true})
	case *agentv1.CheckContainersRequest:
	default:
		return status.Errorf(codes.Unimplemented, "the test's agent has no %s", method)
	}
	return nil
}

// NewStream is not needed by planners.
func (agent) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func request(verb coordinatorv1.ServiceVerb, slots ...uint32) *coordinatorv1.OperateServiceRequest {
	return &coordinatorv1.OperateServiceRequest{Stack: "shop", Service: "web", Verb: verb, Slots: slots}
}

// operate plans, and fails the test if that cannot be done.
func (s *site) operate(req *coordinatorv1.OperateServiceRequest) *coordinatorv1.Plan {
	s.t.Helper()
	proposal, err := s.planner().Operate(s.t.Context(), s.state.View(), req)
	if err != nil {
		s.t.Fatal(err)
	}
	return proposal.Plan
}

const (
	restart  = coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART
	recreate = coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE
	stop     = coordinatorv1.ServiceVerb_SERVICE_VERB_STOP
	begin    = coordinatorv1.ServiceVerb_SERVICE_VERB_START
	reload   = coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD
	send     = coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL

	succeeded  = coordinatorv1.RunState_RUN_STATE_SUCCEEDED
	rolledBack = coordinatorv1.RunState_RUN_STATE_ROLLED_BACK
	paused     = coordinatorv1.RunState_RUN_STATE_PAUSED
)

func stepsOf(p *coordinatorv1.Plan, suffix string) []string {
	var ids []string
	for _, step := range p.GetSteps() {
		if strings.HasSuffix(step.GetId(), suffix) || strings.Contains(step.GetId(), suffix+"@") {
			ids = append(ids, step.GetId())
		}
	}
	return ids
}

// know lets the fleet tell the addresses of containers that a plan creates.
func (s *site) know(p *coordinatorv1.Plan) {
	for _, step := range p.GetSteps() {
		if !strings.HasSuffix(step.GetId(), "/create") {
			continue
		}
		var req agentv1.CreateContainerRequest
		if err := proto.Unmarshal(step.GetAction().GetRequest(), &req); err != nil {
			s.t.Fatal(err)
		}
		for _, port := range req.GetSpec().GetPorts() {
			s.at[req.GetSpec().GetName()] = fmt.Sprintf("10.0.0.1:%d", port.GetHostPort())
		}
	}
}

// serves checks that the instance of a failed step serves.
func (s *site) serves(t *testing.T, step *coordinatorv1.Step) {
	t.Helper()
	for _, a := range s.release.GetAssignments() {
		routed := serviceOf(s.release, a.GetService()).GetRoute() != nil
		if state.GroupOf(a) == step.GetGroup() && (!s.running[a.GetContainer()] || !s.ready[a.GetContainer()] || routed && !s.upstream[s.at[a.GetContainer()]]) {
			t.Fatalf("after %s failed, %s does not serve", step.GetId(), a.GetContainer())
		}
	}
}

package command_test

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const alice = "spiffe://user.demo.muster/operator/alice"

func hosts() []*coordinatorv1.Host {
	return []*coordinatorv1.Host{
		{Name: "web-1", State: coordinatorv1.HostState_HOST_STATE_UP, StateSince: ago(3 * time.Hour), JoinedAt: ago(72 * time.Hour), Labels: map[string]string{"zone": "a", "gpu": ""},
			Inventory: &agentv1.Inventory{AgentVersion: "v1.2.0", Address: "10.0.0.1", Hostname: "web-1.example.org", Platform: "linux/amd64", Kernel: "6.1.0", NanoCpus: 4e9, MemoryBytes: 16 << 30,
				Engine:       &agentv1.EngineStatus{Up: true, Version: "20.10.24", ApiVersion: "1.41", StorageDriver: "overlay2"},
				RouteDrivers: []string{"caddy"}, PortFirst: 20000, PortLast: 29999, Gpus: 1}},
		{Name: "web-2", State: coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN, StateSince: ago(14 * time.Second), JoinedAt: ago(72 * time.Hour),
			Inventory: &agentv1.Inventory{AgentVersion: "v1.2.0", Address: "10.0.0.2", Engine: &agentv1.EngineStatus{Error: "no socket\x1b[2J"}}},
		{Name: "web-3", State: coordinatorv1.HostState_HOST_STATE_JOINED, StateSince: ago(time.Minute), JoinedAt: ago(time.Minute)},
	}
}

func service(name string) *coordinatorv1.Service {
	return &coordinatorv1.Service{
		Name: name, Replicas: 2, Image: "registry.example.org/" + name + ":2",
		Template: &agentv1.ContainerSpec{Image: "registry.example.org/" + name + "@sha256:abc", Ports: []*agentv1.PortBinding{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}},
			Mounts:    []*agentv1.Mount{{Type: "volume", Source: "data", Target: "/data"}},
			Networks:  []*agentv1.NetworkAttachment{{Name: "demo_default"}},
			Resources: &agentv1.Resources{MemoryLimitBytes: 512 << 20, NanoCpuLimit: 15e8},
			Secrets:   []*agentv1.SecretMount{{Secret: &agentv1.SecretValue{Name: "jwt", Version: 3}, Target: "/run/secrets/jwt"}}},
		Gate: &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 80, Path: "/healthz"}}},
		Update: &coordinatorv1.UpdatePolicy{Parallelism: 1, Delay: durationpb.New(10 * time.Second), Monitor: durationpb.New(time.Minute), MaxFailureRatio: 0.3,
			FailureAction: coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK, Order: "start-first"},
		Placement: &coordinatorv1.Placement{Constraints: []string{"node.labels.zone==a"}},
		DependsOn: []*coordinatorv1.Dependency{{Service: "db", Condition: "service_healthy"}},
		Route:     &coordinatorv1.ServiceRoute{Hosts: []string{"demo.example.org"}, PathPrefix: "/api", Port: 80},
	}
}

func release() *coordinatorv1.Release {
	return &coordinatorv1.Release{Stack: "demo", Number: 2, State: coordinatorv1.ReleaseState_RELEASE_STATE_CURRENT, Services: []*coordinatorv1.Service{service("api")},
		Assignments: []*coordinatorv1.Assignment{
			{Service: "api", Slot: 1, Host: "web-1", Container: "demo.api.1.r2", Release: 2, Ports: []*agentv1.PortBinding{{HostPort: 20001, ContainerPort: 80}}},
			{Service: "api", Slot: 2, Host: "web-2", Container: "demo.api.2.r1", Release: 1},
		},
		CreatedAt: ago(5 * time.Minute), CreatedBy: alice, Reason: "new logo", RunId: "r-2", SourceDigest: "0123456789abcdef0123"}
}

func runs() []*coordinatorv1.Run {
	return []*coordinatorv1.Run{
		{Id: "r-3", Procedure: "rolling-update", Title: "apply demo, release 3", Stack: "demo", State: coordinatorv1.RunState_RUN_STATE_RUNNING, StepsTotal: 12, StepsSettled: 5,
			CreatedAt: ago(14 * time.Second), CreatedBy: alice, Deadline: ago(-time.Hour), Locks: []string{"stack/demo"}, PlanHash: "3f9c", Reason: "new logo"},
		{Id: "r-2", Procedure: "rolling-update", Title: "apply demo, release 2", Stack: "demo", State: coordinatorv1.RunState_RUN_STATE_ROLLED_BACK, StepsTotal: 20, StepsSettled: 20,
			CreatedAt: ago(3 * time.Hour), FinishedAt: ago(3*time.Hour - 90*time.Second), CreatedBy: alice, Cause: "group web.1 failed: not ready", FailedGroups: []string{"web.1"}},
	}
}

func runDetail() *coordinatorv1.GetRunResponse {
	return &coordinatorv1.GetRunResponse{
		Run: runs()[0],
		Steps: []*coordinatorv1.StepStatus{
			{StepId: "web.1/pull", Host: "web-1", State: coordinatorv1.StepState_STEP_STATE_DONE, Attempt: 1, Title: "pull the image", StartedAt: ago(12 * time.Second), FinishedAt: ago(10 * time.Second)},
			{StepId: "web.1/ready", Host: "web-1", State: coordinatorv1.StepState_STEP_STATE_FAILED, Attempt: 2, Title: "wait until ready", StartedAt: ago(10 * time.Second), FinishedAt: ago(5 * time.Second),
				Failure: &agentv1.OperationFailure{Reason: agentv1.FailureReason_FAILURE_REASON_NOT_READY, Message: "HTTP 500 from /healthz", Evidence: "starting\npanic: \x1b[31mno config\x1b[0m\n"}},
			{StepId: "web.2/pull", Host: "web-2", State: coordinatorv1.StepState_STEP_STATE_UNKNOWN, Attempt: 1, Title: "pull the image", StartedAt: ago(12 * time.Second)},
			{StepId: "web.2/start", Host: "web-2", State: coordinatorv1.StepState_STEP_STATE_PENDING, Title: "start"},
		},
		Blockers: []*coordinatorv1.Blocker{{Summary: "host web-2 does not answer", Since: ago(11 * time.Second), Unblocks: "start its agent", Next: "the run is rolled back", NextAt: ago(-time.Minute)}},
	}
}

// plan has one change of each kind.
func plan() *coordinatorv1.Plan {
	return &coordinatorv1.Plan{
		Procedure: "rolling-update", Title: "apply demo, release 2", Stack: "demo", Hash: "3f9c0000", Locks: []string{"stack/demo"}, MaxDuration: durationpb.New(20 * time.Minute), ActivateRelease: 2,
		Changes: []*coordinatorv1.ServiceChange{
			{Service: "api", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_UPDATE, InstancesBefore: 2, InstancesAfter: 3, Order: "start-first", Parallelism: 1,
				Fields: []*coordinatorv1.FieldChange{{Path: "image", Before: "api:1", After: "api:2"}, {Path: "env.LOG_LEVEL", After: "debug"}}},
			{Service: "cache", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_CREATE, InstancesAfter: 1, Order: "stop-first"},
			{Service: "db", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_NONE, InstancesBefore: 1, InstancesAfter: 1},
		},
		Notes: []string{"db stays on web-1: volume data is there"},
		Steps: []*coordinatorv1.Step{
			{Id: "api.1/pull", Title: "pull api:2", Host: "web-1"},
			{Id: "api.1/start", Title: "start demo.api.1.r2", Host: "web-1", Delay: durationpb.New(10 * time.Second)},
			{Id: "cache.1/start", Title: "start demo.cache.1.r2", Host: "web-2"},
		},
	}
}

// removal is a plan that removes a service.
func removal() *coordinatorv1.Plan {
	p := plan()
	p.Changes = append(p.Changes, &coordinatorv1.ServiceChange{Service: "legacy", Kind: coordinatorv1.ChangeKind_CHANGE_KIND_REMOVE, InstancesBefore: 2})
	return p
}

// fill lets every coordinator of a desk know the fleet.
func (d *desk) fill() {
	for _, n := range d.cluster.Nodes {
		fillCluster(n)
		fillHosts(n)
		fillStacks(n)
		fillRuns(n)
	}
}

func fillCluster(n *coordinatortest.Node) {
	peers := []*coordinatorv1.Peer{
		{Id: "c1", Address: "10.0.1.1:7443", Voter: true, Leader: true, CommitIndex: 42, Version: "v1.2.0", Reachable: true, Term: 3},
		{Id: "c2", Address: "10.0.1.2:7443", Voter: true, CommitIndex: 40, TrailsLeaderBy: 2, Version: "v1.2.0", Reachable: true, LastContact: durationpb.New(12 * time.Millisecond), Term: 3},
		{Id: "c3", Address: "10.0.1.3:7443", Voter: true},
	}
	coordinatortest.On(n, "GetStatus", func(context.Context, *coordinatorv1.GetStatusRequest) (*coordinatorv1.GetStatusResponse, error) {
		return &coordinatorv1.GetStatusResponse{ClusterId: "cluster-1", ClusterName: "demo", AnsweredBy: "c2", Leader: "c1", Peers: peers, Hosts: map[string]uint32{"up": 2, "down": 1},
			Stacks: 1, ActiveRuns: 2, BlockedRuns: 1, Version: "v1.2.0", EngineEpoch: 17, AgentVersions: map[string]uint32{"v1.2.0": 2, "v1.1.9": 1}}, nil
	})
	coordinatortest.On(n, "ListPeers", func(context.Context, *coordinatorv1.ListPeersRequest) (*coordinatorv1.ListPeersResponse, error) {
		return &coordinatorv1.ListPeersResponse{Peers: peers, Stale: true}, nil
	})
	token := "mjt1.0123456789ab.secret.pin"
	coordinatortest.On(n, "CreateCoordinatorToken", func(context.Context, *coordinatorv1.CreateCoordinatorTokenRequest) (*coordinatorv1.CreateCoordinatorTokenResponse, error) {
		return &coordinatorv1.CreateCoordinatorTokenResponse{Token: token, ExpiresAt: ago(-15 * time.Minute)}, nil
	})
	coordinatortest.On(n, "CreateUserToken", func(context.Context, *coordinatorv1.CreateUserTokenRequest) (*coordinatorv1.CreateUserTokenResponse, error) {
		return &coordinatorv1.CreateUserTokenResponse{Token: token, ExpiresAt: ago(-15 * time.Minute)}, nil
	})
	coordinatortest.On(n, "CreateHostToken", func(context.Context, *coordinatorv1.CreateHostTokenRequest) (*coordinatorv1.CreateHostTokenResponse, error) {
		return &coordinatorv1.CreateHostTokenResponse{Token: token, ExpiresAt: ago(-15 * time.Minute)}, nil
	})
	secret := &coordinatorv1.SecretInfo{Name: "jwt", Version: 3, CreatedAt: ago(time.Hour), CreatedBy: alice}
	coordinatortest.On(n, "PutSecret", func(context.Context, *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
		return &coordinatorv1.PutSecretResponse{Secret: secret}, nil
	})
	coordinatortest.On(n, "ListSecrets", func(context.Context, *coordinatorv1.ListSecretsRequest) (*coordinatorv1.ListSecretsResponse, error) {
		return &coordinatorv1.ListSecretsResponse{Secrets: []*coordinatorv1.SecretInfo{secret}}, nil
	})
}

func fillHosts(n *coordinatortest.Node) {
	coordinatortest.On(n, "ListHosts", func(_ context.Context, q *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
		if q.GetSelector() == "zone=none" {
			return &coordinatorv1.ListHostsResponse{}, nil
		}
		return &coordinatorv1.ListHostsResponse{Hosts: hosts()}, nil
	})
	coordinatortest.On(n, "GetHost", func(_ context.Context, q *coordinatorv1.GetHostRequest) (*coordinatorv1.GetHostResponse, error) {
		for _, h := range hosts() {
			if h.GetName() == q.GetHost() {
				return &coordinatorv1.GetHostResponse{Host: h}, nil
			}
		}
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q", q.GetHost())
	})
}

func fillStacks(n *coordinatortest.Node) {
	stack := &coordinatorv1.Stack{Name: "demo", CurrentRelease: 2, PreviousRelease: 1, LastRelease: 3, ActiveRun: "r-3"}
	missing := func(name string) error {
		return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q", name)
	}
	coordinatortest.On(n, "ListStacks", func(context.Context, *coordinatorv1.ListStacksRequest) (*coordinatorv1.ListStacksResponse, error) {
		return &coordinatorv1.ListStacksResponse{Stacks: []*coordinatorv1.Stack{stack, {Name: "fresh"}}}, nil
	})
	coordinatortest.On(n, "GetStack", func(_ context.Context, q *coordinatorv1.GetStackRequest) (*coordinatorv1.GetStackResponse, error) {
		if q.GetStack() != "demo" {
			return nil, missing(q.GetStack())
		}
		return &coordinatorv1.GetStackResponse{Stack: stack, Release: release()}, nil
	})
	coordinatortest.On(n, "ListReleases", func(_ context.Context, q *coordinatorv1.ListReleasesRequest) (*coordinatorv1.ListReleasesResponse, error) {
		if q.GetStack() != "demo" {
			return nil, missing(q.GetStack())
		}
		old := release()
		old.Number, old.State, old.Reason, old.RunId, old.RollbackOf = 1, coordinatorv1.ReleaseState_RELEASE_STATE_FORMER, "", "r-1", 0
		return &coordinatorv1.ListReleasesResponse{Releases: []*coordinatorv1.Release{release(), old}}, nil
	})
	coordinatortest.On(n, "ListServices", func(context.Context, *coordinatorv1.ListServicesRequest) (*coordinatorv1.ListServicesResponse, error) {
		return &coordinatorv1.ListServicesResponse{Services: []*coordinatorv1.ServiceStatus{
			{Stack: "demo", Service: service("api"), Running: 2, Ready: 1, Release: 2}, {Stack: "other", Service: service("web"), Running: 2, Ready: 2, Release: 1},
			{Stack: "demo", Service: service("web"), Running: 2, Ready: 2, Release: 2},
		}}, nil
	})
	coordinatortest.On(n, "ListInstances", func(context.Context, *coordinatorv1.ListInstancesRequest) (*coordinatorv1.ListInstancesResponse, error) {
		return &coordinatorv1.ListInstancesResponse{
			Instances: []*coordinatorv1.Instance{
				{Stack: "demo", Service: "api", Slot: 1, Host: "web-1", Release: 2, Expected: true, StartedAt: ago(5 * time.Minute), Container: &agentv1.Container{Name: "demo.api.1.r2", State: "running",
					Health: "healthy", Image: "api:2", Ports: []*agentv1.PortBinding{{HostIp: "10.0.0.1", HostPort: 20001, ContainerPort: 80, Protocol: "tcp"}}}},
				{Stack: "demo", Service: "api", Slot: 2, Host: "web-1", Release: 1, Container: &agentv1.Container{Name: "demo.api.2.r1", State: "exited", RestartCount: 3, Image: "api:1"}},
			},
			Missing:     []*coordinatorv1.Assignment{{Service: "api", Slot: 3, Host: "web-2", Container: "demo.api.3.r2", Release: 2}},
			Unreachable: []*coordinatorv1.HostError{{Host: "web-3", Message: "not connected for 14s"}},
		}, nil
	})
}

func fillRuns(n *coordinatortest.Node) {
	coordinatortest.On(n, "ListRuns", func(_ context.Context, q *coordinatorv1.ListRunsRequest) (*coordinatorv1.ListRunsResponse, error) {
		if q.GetPageSize() == 1 {
			return &coordinatorv1.ListRunsResponse{Runs: runs()[:1], NextPageToken: "next"}, nil
		}
		if q.GetActive() {
			return &coordinatorv1.ListRunsResponse{Runs: runs()[:1]}, nil
		}
		return &coordinatorv1.ListRunsResponse{Runs: runs()}, nil
	})
	coordinatortest.On(n, "GetRun", func(_ context.Context, q *coordinatorv1.GetRunRequest) (*coordinatorv1.GetRunResponse, error) {
		if q.GetRunId() != "r-3" {
			return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_RUN_NOT_FOUND, "there is no run %q", q.GetRunId())
		}
		detail := runDetail()
		if q.GetPlan() {
			detail.Plan = plan()
		}
		return detail, nil
	})
}

// planning lets every coordinator plan p and start a run of it, which is over when it is watched.
func (d *desk) planning(p *coordinatorv1.Plan, warnings ...string) {
	for _, n := range d.cluster.Nodes {
		coordinatortest.On(n, "ApplyStack", func(_ context.Context, q *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
			a := &coordinatorv1.ApplyStackResponse{Plan: p, Release: release(), Warnings: warnings}
			if q.GetPlanHash() != "" && q.GetPlanHash() != p.GetHash() {
				return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLAN_CHANGED, "the plan has hash %s, not %s", p.GetHash(), q.GetPlanHash())
			}
			if !q.GetDryRun() && len(p.GetSteps()) > 0 {
				a.Run = runs()[0]
			}
			return a, nil
		})
		coordinatortest.On(n, "RollbackStack", func(_ context.Context, q *coordinatorv1.RollbackStackRequest) (*coordinatorv1.RollbackStackResponse, error) {
			if q.GetStack() != "demo" {
				return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_STACK_NOT_FOUND, "there is no stack %q", q.GetStack())
			}
			a := &coordinatorv1.RollbackStackResponse{Plan: p, Release: release()}
			if !q.GetDryRun() {
				a.Run = runs()[0]
			}
			return a, nil
		})
		n.OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
			return s.Send(ended(coordinatorv1.RunState_RUN_STATE_SUCCEEDED))
		})
	}
}

// ended is the last answer of a watched run.
func ended(s coordinatorv1.RunState) *coordinatorv1.WatchRunResponse {
	r := runs()[0]
	r.State, r.FinishedAt, r.StepsSettled, r.Revision = s, ago(0), 12, 9
	if s == coordinatorv1.RunState_RUN_STATE_SUCCEEDED {
		r.ActivateRelease = 3
	} else {
		r.Cause = "group api.1 failed: not ready"
	}
	return &coordinatorv1.WatchRunResponse{Index: 9, Run: r}
}

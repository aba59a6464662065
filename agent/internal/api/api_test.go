package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/api"
	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// engine is a container engine that counts its calls and fails on demand.
type engine struct {
	mu    sync.Mutex
	calls []string
	fail  error
	block chan struct{} // Watch and Stop return when it is closed, or when their context ends.
}

func (e *engine) call(format string, args ...any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, fmt.Sprintf(format, args...))
	return e.fail
}

func (e *engine) called() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.calls, "; ")
}

func (e *engine) wait(ctx context.Context) error {
	if e.block == nil {
		return nil
	}
	select {
	case <-e.block:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *engine) List(_ context.Context, req *agentv1.ListContainersRequest) ([]*agentv1.Container, error) {
	return []*agentv1.Container{{Name: "web.app.1.r1"}}, e.call("list %s", req.GetStack())
}

func (e *engine) ResolveImage(_ context.Context, image string) (*agentv1.ResolveImageResponse, error) {
	return &agentv1.ResolveImageResponse{Pinned: image + "@sha256:1"}, e.call("resolve %s", image)
}

func (e *engine) Check(_ context.Context, req *agentv1.CheckContainersRequest) ([]*agentv1.ContainerProblem, error) {
	return []*agentv1.ContainerProblem{{Container: req.GetSpecs()[0].GetName()}}, e.call("check")
}

func (e *engine) Pull(_ context.Context, image string) (bool, error) {
	return true, e.call("pull %s", image)
}

func (e *engine) Create(_ context.Context, id string, spec *agentv1.ContainerSpec) (string, error) {
	return "c0ffee", e.call("create %s %s", id, spec.GetName())
}

func (e *engine) Start(_ context.Context, name string) error { return e.call("start %s", name) }

func (e *engine) AwaitReady(_ context.Context, req *agentv1.AwaitReadyRequest) (*agentv1.AwaitReadyResponse, error) {
	return &agentv1.AwaitReadyResponse{Probes: 3}, e.call("await %s", req.GetName())
}

func (e *engine) Watch(ctx context.Context, req *agentv1.WatchContainerRequest) (*agentv1.WatchContainerResponse, error) {
	return &agentv1.WatchContainerResponse{Probes: 9}, errors.Join(e.call("watch %s", req.GetName()), e.wait(ctx))
}

func (e *engine) Drain(_ context.Context, req *agentv1.DrainContainerRequest) (*agentv1.DrainContainerResponse, error) {
	return &agentv1.DrainContainerResponse{Left: 2}, e.call("drain %s", req.GetName())
}

func (e *engine) Stop(ctx context.Context, name string, grace time.Duration) (int32, error) {
	return 143, errors.Join(e.call("stop %s %s", name, grace), e.wait(ctx))
}

func (e *engine) Remove(_ context.Context, id, name string, ownRunOnly bool) error {
	return e.call("remove %s %s %t", id, name, ownRunOnly)
}

func (e *engine) Signal(_ context.Context, name, signal string) error {
	return e.call("signal %s %s", name, signal)
}

func (e *engine) RunJob(_ context.Context, id string, spec *agentv1.ContainerSpec) (*agentv1.RunJobResponse, error) {
	return &agentv1.RunJobResponse{Output: "done"}, e.call("job %s %s", id, spec.GetName())
}

func (e *engine) Inspect(_ context.Context, name string) (*agentv1.InspectContainerResponse, error) {
	return &agentv1.InspectContainerResponse{State: "gone"}, e.call("inspect %s", name)
}

// prober answers with what it was asked.
type prober struct{}

func (prober) HTTP(_ context.Context, req *agentv1.ProbeHttpRequest) (*agentv1.ProbeHttpResponse, error) {
	return &agentv1.ProbeHttpResponse{Status: 204, Body: req.GetUrl()}, nil
}

func (prober) TCP(_ context.Context, req *agentv1.ProbeTcpRequest) (*agentv1.ProbeTcpResponse, error) {
	return &agentv1.ProbeTcpResponse{Error: req.GetAddress()}, nil
}

// proxy is a route driver.
type proxy struct{}

func (proxy) List(context.Context) ([]*agentv1.RouteState, error) {
	return []*agentv1.RouteState{{Route: &agentv1.Route{Name: "web.app"}}}, nil
}

func (proxy) Update(_ context.Context, _ *agentv1.Route, add, _ []string) ([]string, error) {
	return add, nil
}

func (proxy) SetMaintenance(_ context.Context, req *agentv1.SetMaintenanceRequest) ([]string, error) {
	return req.GetRoutes(), nil
}

// machine is a host whose inventory changes when told.
type machine struct {
	mu        sync.Mutex
	inventory *agentv1.Inventory
	changed   chan struct{}
}

func (m *machine) Inventory() (*agentv1.Inventory, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inventory, m.changed
}

func (m *machine) set(i *agentv1.Inventory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inventory = i
	close(m.changed)
	m.changed = make(chan struct{})
}

// learner records what it is told, and what is not stood by any more.
type learner struct {
	mu           sync.Mutex
	told, forgot [][]string
}

func (l *learner) Learn(addresses []string) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, addresses)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.forgot = append(l.forgot, addresses)
	}
}

func (l *learner) counts() (told, forgot int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.told), len(l.forgot)
}

// serve starts a server and returns a connection to it.
func serve(t *testing.T, o api.Options) *grpc.ClientConn {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	l, err := ledger.Open(ledger.Options{Path: filepath.Join(t.TempDir(), "ledger"), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	o.Ledger, o.Logger, o.Prober = l, logger, prober{}
	if o.Host == nil {
		o.Host = &machine{changed: make(chan struct{})}
	}
	if o.Coordinators == nil {
		o.Coordinators = &learner{}
	}
	server := grpc.NewServer()
	if err := api.Register(server, o); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	cc, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := errors.Join(cc.Close(), l.Close(ctx))
		server.Stop()
		if err = errors.Join(err, <-done); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return cc
}

func operation(id string) *agentv1.Operation {
	return &agentv1.Operation{Id: id, Epoch: 7, Digest: "d", Timeout: durationpb.New(30 * time.Second)}
}

func TestEveryOperationIsPerformedOnceAndAnsweredAgain(t *testing.T) {
	gate := &agentv1.Gate{Probe: &agentv1.Gate_Tcp{Tcp: &agentv1.TcpProbe{Port: 80}}}
	tests := []struct {
		method string
		req    proto.Message
		resp   proto.Message
		calls  string
	}{
		{agentv1.ContainerService_PullImage_FullMethodName, &agentv1.PullImageRequest{Operation: operation("a"), Image: "i"}, &agentv1.PullImageResponse{Pulled: true}, "pull i"},
		{
			agentv1.ContainerService_CreateContainer_FullMethodName,
			&agentv1.CreateContainerRequest{Operation: operation("a"), Spec: &agentv1.ContainerSpec{Name: "n", Image: "i"}},
			&agentv1.CreateContainerResponse{Id: "c0ffee"}, "create a n",
		},
		{agentv1.ContainerService_StartContainer_FullMethodName, &agentv1.StartContainerRequest{Operation: operation("a"), Name: "n"}, &agentv1.StartContainerResponse{}, "start n"},
		{agentv1.ContainerService_AwaitReady_FullMethodName, &agentv1.AwaitReadyRequest{Operation: operation("a"), Name: "n", Gate: gate}, &agentv1.AwaitReadyResponse{Probes: 3}, "await n"},
		{
			agentv1.ContainerService_WatchContainer_FullMethodName,
			&agentv1.WatchContainerRequest{Operation: operation("a"), Name: "n", Window: durationpb.New(time.Second)},
			&agentv1.WatchContainerResponse{Probes: 9}, "watch n",
		},
		{agentv1.ContainerService_DrainContainer_FullMethodName, &agentv1.DrainContainerRequest{Operation: operation("a"), Name: "n"}, &agentv1.DrainContainerResponse{Left: 2}, "drain n"},
		{
			agentv1.ContainerService_StopContainer_FullMethodName,
			&agentv1.StopContainerRequest{Operation: operation("a"), Name: "n", Grace: durationpb.New(3 * time.Second)},
			&agentv1.StopContainerResponse{ExitCode: 143}, "stop n 3s",
		},
		{agentv1.ContainerService_RemoveContainer_FullMethodName, &agentv1.RemoveContainerRequest{Operation: operation("a"), Name: "n"}, &agentv1.RemoveContainerResponse{}, "remove a n false"},
		{
			agentv1.ContainerService_RemoveContainer_FullMethodName,
			&agentv1.RemoveContainerRequest{Operation: operation("a"), Name: "n", OwnRunOnly: true}, &agentv1.RemoveContainerResponse{}, "remove a n true",
		},
		{
			agentv1.ContainerService_SignalContainer_FullMethodName,
			&agentv1.SignalContainerRequest{Operation: operation("a"), Name: "n", Signal: "SIGHUP"}, &agentv1.SignalContainerResponse{}, "signal n SIGHUP",
		},
		{
			agentv1.ContainerService_RunJob_FullMethodName,
			&agentv1.RunJobRequest{Operation: operation("a"), Spec: &agentv1.ContainerSpec{Name: "n", Image: "i"}},
			&agentv1.RunJobResponse{Output: "done"}, "job a n",
		},
		{
			agentv1.ContainerService_InspectContainer_FullMethodName,
			&agentv1.InspectContainerRequest{Operation: operation("a"), Name: "n"}, &agentv1.InspectContainerResponse{State: "gone"}, "inspect n",
		},
		{
			agentv1.ProbeService_ProbeHttp_FullMethodName,
			&agentv1.ProbeHttpRequest{Operation: operation("a"), Url: "http://a/"}, &agentv1.ProbeHttpResponse{Status: 204, Body: "http://a/"}, "",
		},
		{
			agentv1.ProbeService_ProbeTcp_FullMethodName,
			&agentv1.ProbeTcpRequest{Operation: operation("a"), Address: "a:1"}, &agentv1.ProbeTcpResponse{Error: "a:1"}, "",
		},
		{
			agentv1.RouteService_UpdateRoute_FullMethodName,
			&agentv1.UpdateRouteRequest{Operation: operation("a"), Route: &agentv1.Route{Name: "r"}, Add: []string{"127.0.0.1:80"}},
			&agentv1.UpdateRouteResponse{Upstreams: []string{"127.0.0.1:80"}}, "",
		},
		{
			agentv1.RouteService_SetMaintenance_FullMethodName,
			&agentv1.SetMaintenanceRequest{Operation: operation("a"), Routes: []string{"web.*"}, Enabled: true},
			&agentv1.SetMaintenanceResponse{Routes: []string{"web.*"}}, "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.method, func(t *testing.T) {
			e := &engine{}
			cc := serve(t, api.Options{Containers: e, Routes: proxy{}})
			for range 2 {
				got := tt.resp.ProtoReflect().New().Interface()
				if err := cc.Invoke(t.Context(), tt.method, tt.req, got); err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(got, tt.resp) {
					t.Fatalf("got %v, want %v", got, tt.resp)
				}
			}
			if got := e.called(); got != tt.calls {
				t.Fatalf("got calls %q, want %q", got, tt.calls)
			}
		})
	}
}

// A request without what it needs fails for good, by an outcome that the engine understands, and reaches no capability.
func TestAnOperationThatLacksSomethingIsInvalid(t *testing.T) {
	tests := []struct {
		method  string
		req     proto.Message
		missing string
	}{
		{agentv1.ContainerService_StopContainer_FullMethodName, &agentv1.StopContainerRequest{Name: "n"}, "operation.id"},
		{agentv1.ContainerService_StopContainer_FullMethodName, &agentv1.StopContainerRequest{Name: "n", Operation: operation(strings.Repeat("x", 201))}, "201 bytes"},
		{agentv1.ContainerService_PullImage_FullMethodName, &agentv1.PullImageRequest{Operation: operation("a")}, "image"},
		{agentv1.ContainerService_CreateContainer_FullMethodName, &agentv1.CreateContainerRequest{Operation: operation("a")}, "spec.name"},
		{agentv1.ContainerService_StartContainer_FullMethodName, &agentv1.StartContainerRequest{Operation: operation("a")}, "name"},
		{agentv1.ContainerService_AwaitReady_FullMethodName, &agentv1.AwaitReadyRequest{Operation: operation("a"), Name: "n", Gate: &agentv1.Gate{}}, "gate.probe"},
		{agentv1.ContainerService_WatchContainer_FullMethodName, &agentv1.WatchContainerRequest{Operation: operation("a"), Name: "n"}, "window"},
		{agentv1.ContainerService_DrainContainer_FullMethodName, &agentv1.DrainContainerRequest{Operation: operation("a")}, "name"},
		{agentv1.ContainerService_StopContainer_FullMethodName, &agentv1.StopContainerRequest{Operation: operation("a")}, "name"},
		{agentv1.ContainerService_RemoveContainer_FullMethodName, &agentv1.RemoveContainerRequest{Operation: operation("a")}, "name"},
		{agentv1.ContainerService_SignalContainer_FullMethodName, &agentv1.SignalContainerRequest{Operation: operation("a"), Name: "n"}, "signal"},
		{agentv1.ContainerService_RunJob_FullMethodName, &agentv1.RunJobRequest{Operation: operation("a"), Spec: &agentv1.ContainerSpec{Name: "n"}}, "spec.image"},
		{agentv1.ContainerService_InspectContainer_FullMethodName, &agentv1.InspectContainerRequest{Operation: operation("a")}, "name"},
		{agentv1.ProbeService_ProbeHttp_FullMethodName, &agentv1.ProbeHttpRequest{Operation: operation("a")}, "url"},
		{agentv1.ProbeService_ProbeTcp_FullMethodName, &agentv1.ProbeTcpRequest{Operation: operation("a")}, "address"},
		{agentv1.RouteService_SetMaintenance_FullMethodName, &agentv1.SetMaintenanceRequest{Operation: operation("a")}, "routes"},
		{agentv1.RouteService_UpdateRoute_FullMethodName, &agentv1.UpdateRouteRequest{Operation: operation("a")}, "route.name"},
		{
			agentv1.RouteService_UpdateRoute_FullMethodName,
			&agentv1.UpdateRouteRequest{Operation: operation("a"), Route: &agentv1.Route{Name: "r"}, Remove: []string{"nowhere"}}, `"nowhere"`,
		},
	}
	e := &engine{}
	cc := serve(t, api.Options{Containers: e, Routes: proxy{}})
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.missing, func(t *testing.T) {
			err := cc.Invoke(t.Context(), tt.method, tt.req, &agentv1.StopContainerResponse{})
			f, ok := rpcerr.Failure(err)
			if !ok || f.GetReason() != agentv1.FailureReason_FAILURE_REASON_INVALID || !f.GetPermanent() || !strings.Contains(f.GetMessage(), tt.missing) {
				t.Fatalf("got %v, want a permanent INVALID that names %s", err, tt.missing)
			}
		})
	}
	if got := e.called(); got != "" {
		t.Fatalf("got calls %q", got)
	}
}

func TestFailuresAndRefusalsAreToldApart(t *testing.T) {
	e := &engine{fail: rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true, "port 80 is taken").WithEvidence("nginx")}
	cc := serve(t, api.Options{Containers: e})
	containers := agentv1.NewContainerServiceClient(cc)
	for range 2 {
		_, err := containers.StartContainer(t.Context(), &agentv1.StartContainerRequest{Operation: operation("run/1"), Name: "n"})
		want := &agentv1.OperationFailure{
			OperationId: "run/1", Reason: agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, Message: "port 80 is taken", Permanent: true, Evidence: "nginx",
		}
		if f, ok := rpcerr.Failure(err); !ok || !proto.Equal(f, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	if got := e.called(); got != "start n" {
		t.Fatalf("got calls %q, want one", got)
	}

	stale := operation("run/2")
	stale.Epoch = 6
	_, err := containers.StartContainer(t.Context(), &agentv1.StartContainerRequest{Operation: stale, Name: "n"})
	if _, definite := rpcerr.Failure(err); definite || status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("got %v for an old epoch, want FAILED_PRECONDITION without an outcome", err)
	}

	_, err = agentv1.NewRouteServiceClient(cc).UpdateRoute(t.Context(), &agentv1.UpdateRouteRequest{Operation: operation("run/3"), Route: &agentv1.Route{Name: "r"}})
	_, errPage := agentv1.NewRouteServiceClient(cc).SetMaintenance(t.Context(), &agentv1.SetMaintenanceRequest{Operation: operation("run/4"), Routes: []string{"r"}})
	for _, err := range []error{err, errPage} {
		if f, ok := rpcerr.Failure(err); !ok || !f.GetPermanent() || !strings.Contains(f.GetMessage(), "--route-driver") {
			t.Fatalf("got %v without a proxy, want a permanent failure that names the flag", err)
		}
	}
}

func TestReads(t *testing.T) {
	e := &engine{}
	cc := serve(t, api.Options{Containers: e, Routes: proxy{}})
	containers := agentv1.NewContainerServiceClient(cc)
	if got, err := containers.ListContainers(t.Context(), &agentv1.ListContainersRequest{Stack: "web"}); err != nil || len(got.GetContainers()) != 1 {
		t.Errorf("list: got %v, %v", got, err)
	}
	if got, err := containers.ResolveImage(t.Context(), &agentv1.ResolveImageRequest{Image: "i"}); err != nil || got.GetPinned() != "i@sha256:1" {
		t.Errorf("resolve: got %v, %v", got, err)
	}
	check := &agentv1.CheckContainersRequest{Specs: []*agentv1.ContainerSpec{{Name: "n"}}}
	if got, err := containers.CheckContainers(t.Context(), check); err != nil || got.GetProblems()[0].GetContainer() != "n" {
		t.Errorf("check: got %v, %v", got, err)
	}
	if got, err := agentv1.NewRouteServiceClient(cc).ListRoutes(t.Context(), &agentv1.ListRoutesRequest{}); err != nil || len(got.GetRoutes()) != 1 {
		t.Errorf("routes: got %v, %v", got, err)
	}
	if _, err := containers.ResolveImage(t.Context(), &agentv1.ResolveImageRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("resolve of no image: got %v", err)
	}
	errs := map[error]codes.Code{
		rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, "no such image"): codes.NotFound,
		rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, "not a reference"):       codes.InvalidArgument,
		rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ENGINE, false, "engine is down"):        codes.Unavailable,
		errors.New("a secret detail"): codes.Internal,
	}
	for fail, want := range errs {
		e.fail = fail
		_, err := containers.ResolveImage(t.Context(), &agentv1.ResolveImageRequest{Image: "i"})
		if status.Code(err) != want || strings.Contains(err.Error(), "secret detail") {
			t.Errorf("%v: got %v, want %v", fail, err, want)
		}
		if _, definite := rpcerr.Failure(err); definite {
			t.Errorf("%v: a read has told the outcome of an operation", fail)
		}
	}
}

func TestCancelAndList(t *testing.T) {
	e := &engine{block: make(chan struct{})}
	cc := serve(t, api.Options{Containers: e})
	operations := agentv1.NewOperationServiceClient(cc)
	ended := make(chan error, 1)
	go func() {
		_, err := agentv1.NewContainerServiceClient(cc).WatchContainer(context.Background(),
			&agentv1.WatchContainerRequest{Operation: operation("run/1"), Name: "n", Window: durationpb.New(time.Hour)})
		ended <- err
	}()
	for running := false; !running; {
		got, err := operations.ListOperations(t.Context(), &agentv1.ListOperationsRequest{Prefix: "run/"})
		if err != nil {
			t.Fatal(err)
		}
		running = len(got.GetOperations()) == 1 && got.GetOperations()[0].GetState() == agentv1.OperationState_OPERATION_STATE_RUNNING
	}
	if _, err := operations.CancelOperation(t.Context(), &agentv1.CancelOperationRequest{OperationId: "run/1", Epoch: 7}); err != nil {
		t.Fatal(err)
	}
	if f, ok := rpcerr.Failure(<-ended); !ok || f.GetReason() != agentv1.FailureReason_FAILURE_REASON_CANCELLED {
		t.Fatalf("got %v, want CANCELLED", f)
	}
	_, err := operations.CancelOperation(t.Context(), &agentv1.CancelOperationRequest{OperationId: "run/9", Epoch: 7})
	if status.Code(err) != codes.NotFound {
		t.Fatalf("got %v, want NOT_FOUND", err)
	}
	got, err := operations.ListOperations(t.Context(), &agentv1.ListOperationsRequest{Prefix: "other/"})
	if err != nil || len(got.GetOperations()) != 0 {
		t.Fatalf("got %v, %v for another prefix", got, err)
	}
}

func TestWatchHost(t *testing.T) {
	m := &machine{changed: make(chan struct{}), inventory: &agentv1.Inventory{Hostname: "one"}}
	cc := serve(t, api.Options{Containers: &engine{}, Host: m})
	stream, err := agentv1.NewHostServiceClient(cc).WatchHost(t.Context(), &agentv1.WatchHostRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetInventory().GetHostname() != "one" || first.GetSentAt() == nil {
		t.Fatalf("got %v, %v, want the inventory at once", first, err)
	}
	m.set(&agentv1.Inventory{Hostname: "two"})
	second, err := stream.Recv()
	if err != nil || second.GetInventory().GetHostname() != "two" {
		t.Fatalf("got %v, %v, want the changed inventory", second, err)
	}
	beat, err := stream.Recv()
	if err != nil || beat.GetInventory() != nil || beat.GetSentAt().AsTime().Sub(first.GetSentAt().AsTime()) < 4*time.Second {
		t.Fatalf("got %v, %v, want a bare beat 5 s after the start", beat, err)
	}
}

func TestWatchHostTellsOfCoordinatorsWhileItIsOpen(t *testing.T) {
	l := &learner{}
	cc := serve(t, api.Options{Containers: &engine{}, Host: &machine{changed: make(chan struct{})}, Coordinators: l})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, list := range [][]string{{"c1.example:7443", "c2.example:7443"}, nil} {
		stream, err := agentv1.NewHostServiceClient(cc).WatchHost(ctx, &agentv1.WatchHostRequest{Coordinators: list})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if told, forgot := l.counts(); told != 1 || forgot != 0 || strings.Join(l.told[0], " ") != "c1.example:7443 c2.example:7443" {
		t.Fatalf("got %d lists told and %d forgotten, want the one that is not empty", told, forgot)
	}
	cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for {
		if _, forgot := l.counts(); forgot == 1 {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("a watch that has ended still stands by its list")
		}
	}
}

// Whatever takes an operation declares what its repetition means; nothing else does.
func TestEffectsAreDeclared(t *testing.T) {
	files := []protoreflect.FileDescriptor{
		agentv1.File_muster_agent_v1_container_service_proto, agentv1.File_muster_agent_v1_route_service_proto,
		agentv1.File_muster_agent_v1_probe_service_proto, agentv1.File_muster_agent_v1_host_service_proto, agentv1.File_muster_agent_v1_operation_service_proto,
	}
	operations := 0
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				rule, _ := proto.GetExtension(m.Options(), accessv1.E_Rule).(*accessv1.Rule)
				takes := m.Input().Fields().ByName("operation") != nil
				if takes != (rule.GetEffect() != accessv1.Effect_EFFECT_UNSPECIFIED) {
					t.Errorf("%s: takes an operation: %v, effect: %v", m.FullName(), takes, rule.GetEffect())
				}
				if takes {
					operations++
				}
			}
		}
	}
	if operations != 15 {
		t.Errorf("got %d methods that take an operation; TestEveryOperationIsPerformedOnceAndAnsweredAgain knows 15", operations)
	}
}

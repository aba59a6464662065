package container_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/container"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// server is a spec of the test server, published on a free port.
func server(t *testing.T, h *host, env ...string) *agentv1.ContainerSpec {
	t.Helper()
	return &agentv1.ContainerSpec{
		Name:   "t." + h.name + ".r1",
		Image:  testImage,
		Env:    env,
		Labels: map[string]string{"muster.stack": h.name, "muster.service": "web"},
		Ports:  []*agentv1.PortBinding{{HostPort: freePort(t), ContainerPort: 8080, Protocol: "tcp"}},
	}
}

func freePort(t *testing.T) uint32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

func url(spec *agentv1.ContainerSpec, path string) string {
	return fmt.Sprintf("http://127.0.0.1:%d%s", spec.GetPorts()[0].GetHostPort(), path)
}

func healthz() *agentv1.Gate {
	return &agentv1.Gate{Probe: &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: 8080, Path: "/healthz"}}}
}

func run(t *testing.T, h *host, spec *agentv1.ContainerSpec) {
	t.Helper()
	if _, err := h.Create(t.Context(), "run/create/1", spec); err != nil {
		t.Fatalf("create: %v", err)
	}
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatalf("start: %v", err)
	}
}

func ready(t *testing.T, h *host, spec *agentv1.ContainerSpec) {
	t.Helper()
	if _, err := h.AwaitReady(t.Context(), &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: healthz()}); err != nil {
		t.Fatalf("await ready: %v", err)
	}
}

// wantFailure checks that err is a definite failure of that reason whose message holds all of the texts.
func wantFailure(t *testing.T, err error, reason agentv1.FailureReason, permanent bool, texts ...string) *agentv1.OperationFailure {
	t.Helper()
	f, ok := rpcerr.Failure(err)
	if !ok {
		t.Fatalf("got %v, want a definite failure %s", err, reason)
	}
	if f.GetReason() != reason || f.GetPermanent() != permanent {
		t.Errorf("got %s permanent=%t (%s), want %s permanent=%t", f.GetReason(), f.GetPermanent(), f.GetMessage(), reason, permanent)
	}
	for _, text := range texts {
		if !strings.Contains(f.GetMessage(), text) {
			t.Errorf("got message %q, want %q in it", f.GetMessage(), text)
		}
	}
	return f
}

// wantFailureReason checks that err is a definite failure of that reason.
func wantFailureReason(t *testing.T, err error, reason agentv1.FailureReason) *agentv1.OperationFailure {
	t.Helper()
	f, ok := rpcerr.Failure(err)
	if !ok || f.GetReason() != reason {
		t.Fatalf("got %v, want a definite failure %s", err, reason)
	}
	return f
}

func list(t *testing.T, h *host) []*agentv1.Container {
	t.Helper()
	all, err := h.List(t.Context(), &agentv1.ListContainersRequest{Stack: h.name})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCreateHappensOnce(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	spec.Networks = []*agentv1.NetworkAttachment{{Name: h.name + "-a", Aliases: []string{"web"}}, {Name: h.name + "-b"}}
	ids := make([]string, 8)
	var g errgroup.Group
	for i := range ids {
		g.Go(func() (err error) {
			// A lost outcome: the same step is attempted again.
			ids[i], err = h.Create(t.Context(), fmt.Sprintf("run/step/%d", i+1), spec)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("got ids %q, want one", ids)
		}
	}
	all := list(t, h)
	if len(all) != 1 || all[0].GetState() != "created" || all[0].GetLabels()["muster.host"] != h.name ||
		!strings.HasPrefix(all[0].GetLabels()["muster.operation"], "run/step/") {
		t.Errorf("got %v, want one created container of this host and step", all)
	}
	_, err := h.Create(t.Context(), "another/step/1", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_NAME_TAKEN, true, spec.GetName(), "run/step/", "docker rename")

	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatal(err)
	}
	ready(t, h, spec)
}

func TestHostsOfOneEngineAreApart(t *testing.T) {
	a, b := newHost(t, container.Policy{}), newHost(t, container.Policy{})
	spec := server(t, a)
	run(t, a, spec)
	got, err := b.List(t.Context(), &agentv1.ListContainersRequest{})
	if err != nil || len(got) != 0 {
		t.Errorf("the other host lists %v, %v; want nothing", got, err)
	}
	if got, err = b.List(t.Context(), &agentv1.ListContainersRequest{All: true, Stack: a.name}); err != nil || len(got) != 1 {
		t.Errorf("the other host lists of all %v, %v; want one", got, err)
	}
	_, err = b.Stop(t.Context(), spec.GetName(), 0)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_REFUSED, true, spec.GetName())
	wantFailure(t, b.Remove(t.Context(), "run/remove/1", spec.GetName(), false), agentv1.FailureReason_FAILURE_REASON_REFUSED, true)
}

func TestNetworkIsMadeOnceByManyAgents(t *testing.T) {
	hosts := []*host{newHost(t, container.Policy{}), newHost(t, container.Policy{}), newHost(t, container.Policy{})}
	name := hosts[0].name + "-shared"
	var g errgroup.Group
	var specs []*agentv1.ContainerSpec
	for _, h := range hosts {
		spec := server(t, h)
		specs = append(specs, spec)
		spec.Networks = []*agentv1.NetworkAttachment{{Name: name}}
		g.Go(func() error {
			_, err := h.Create(t.Context(), "run/step/1", spec)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts { // a second network of that name would make it ambiguous.
		if err := h.Start(t.Context(), specs[i].GetName()); err != nil {
			t.Error(err)
		}
	}
}

func TestStartStopRemoveRepeat(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h, "STOP_CODE=7")
	run(t, h, spec)
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Errorf("second start: %v", err)
	}
	ready(t, h, spec)
	for i := range 2 {
		code, err := h.Stop(t.Context(), spec.GetName(), 0)
		if err != nil || code != 7 {
			t.Errorf("stop %d: got %d, %v; want 7", i+1, code, err)
		}
	}
	for i := range 2 {
		if err := h.Remove(t.Context(), "run/remove/1", spec.GetName(), false); err != nil {
			t.Errorf("remove %d: %v", i+1, err)
		}
	}
	if code, err := h.Stop(t.Context(), spec.GetName(), 0); err != nil || code != 0 {
		t.Errorf("stop of nothing: got %d, %v", code, err)
	}
	wantFailure(t, h.Start(t.Context(), spec.GetName()), agentv1.FailureReason_FAILURE_REASON_CONTAINER_NOT_FOUND, true, spec.GetName())
	if all := list(t, h); len(all) != 0 {
		t.Errorf("got %v, want nothing left", all)
	}
}

func TestStopKillsAfterItsGrace(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h, "STOP_AFTER=1m")
	run(t, h, spec)
	ready(t, h, spec)
	began := time.Now()
	code, err := h.Stop(t.Context(), spec.GetName(), 300*time.Millisecond)
	if err != nil || code != 137 {
		t.Errorf("got %d, %v; want 137", code, err)
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 8*time.Second {
		t.Errorf("stop took %s, want the grace of 300ms, rounded up to what the engine can", took)
	}
}

func TestPortTaken(t *testing.T) {
	h := newHost(t, container.Policy{})
	first := server(t, h)
	run(t, h, first)
	second := server(t, h)
	second.Name, second.Ports = "t."+h.name+".r2", first.GetPorts()
	if _, err := h.Create(t.Context(), "run/create/1", second); err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprintf("127.0.0.1:%d", first.GetPorts()[0].GetHostPort())
	wantFailure(t, h.Start(t.Context(), second.GetName()), agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true, port, "by container "+first.GetName())

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	third := server(t, h)
	third.Name = "t." + h.name + ".r3"
	third.Ports[0].HostPort = uint32(l.Addr().(*net.TCPAddr).Port)
	if _, err := h.Create(t.Context(), "run/create/1", third); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, h.Start(t.Context(), third.GetName()), agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN, true,
		l.Addr().String(), fmt.Sprintf("(pid %d)", os.Getpid()))
}

func TestSecretsAndConfigs(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	spec.Secrets = []*agentv1.SecretMount{
		{Secret: &agentv1.SecretValue{Name: "jwt", Value: []byte("s3cret")}, Target: "/run/secrets/jwt", Uid: 1000, Gid: 1001, Mode: 0o400},
		{Secret: &agentv1.SecretValue{Name: "open", Value: []byte("plain")}, Target: "/run/secrets/open"},
	}
	spec.Configs = []*agentv1.ConfigFile{{Target: "/etc/app.conf", Content: []byte("a=1"), Mode: 0o640}}
	run(t, h, spec)
	ready(t, h, spec)
	for path, want := range map[string]string{
		"/run/secrets/jwt":  "1000:1001 0400 writable=false s3cret",
		"/run/secrets/open": "0:0 0444 writable=false plain",
		"/etc/app.conf":     "0:0 0640 writable=false a=1",
	} {
		if got := get(t, url(spec, "/file?path="+path)); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	dir := filepath.Join(h.secrets, spec.GetName())
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder of the secrets: got %v, %v; want mode 0700", info, err)
	}
	if _, err := h.Stop(t.Context(), spec.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatalf("start with the files of before: %v", err)
	}
	if _, err := h.Stop(t.Context(), spec.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil { // as a restart of the host does.
		t.Fatal(err)
	}
	wantFailure(t, h.Start(t.Context(), spec.GetName()), agentv1.FailureReason_FAILURE_REASON_INVALID, true, "/run/secrets/jwt", "is gone")
	if err := h.Remove(t.Context(), "run/remove/1", spec.GetName(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder of the secrets after the removal: %v", err)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestDrainCountsASlowRequest(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	run(t, h, spec)
	ready(t, h, spec)
	req := &agentv1.DrainContainerRequest{Name: spec.GetName(), Limit: durationpb.New(200 * time.Millisecond)}
	var g errgroup.Group
	defer func() { _ = g.Wait() }()
	for range 2 {
		g.Go(func() error {
			resp, err := http.Get(url(spec, "/slow?for=1500ms"))
			if err == nil {
				resp.Body.Close()
			}
			return err
		})
	}
	pause(200 * time.Millisecond)
	got, err := h.Drain(t.Context(), req)
	if err != nil || got.GetLeft() != 2 {
		t.Errorf("during two requests: got %v, %v; want 2 left", got, err)
	}
	req.Ports = []uint32{9}
	if got, err = h.Drain(t.Context(), req); err != nil || got.GetLeft() != 0 {
		t.Errorf("another port: got %v, %v; want 0 left", got, err)
	}
	req.Ports, req.Limit = []uint32{8080}, durationpb.New(10*time.Second)
	http.DefaultClient.CloseIdleConnections()
	began := time.Now()
	g.Go(func() error { // keep-alive connections of the client would count: the test closes them when the answers are in.
		pause(1500 * time.Millisecond)
		http.DefaultClient.CloseIdleConnections()
		return nil
	})
	if got, err = h.Drain(t.Context(), req); err != nil || got.GetLeft() != 0 {
		t.Errorf("to the end: got %v, %v; want 0 left", got, err)
	}
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("drained after %s, before the requests had ended", took)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := h.Stop(t.Context(), spec.GetName(), time.Second); err != nil {
		t.Fatal(err)
	}
	if got, err = h.Drain(t.Context(), req); err != nil || got.GetLeft() != 0 || got.GetWaited().AsDuration() > time.Second {
		t.Errorf("stopped container: got %v, %v; want 0 left at once", got, err)
	}
}

func TestStatus(t *testing.T) {
	h := newHost(t, container.Policy{})
	got := h.Status(t.Context())
	if !got.GetUp() || got.GetVersion() == "" || got.GetApiVersion() == "" || got.GetStorageDriver() == "" {
		t.Errorf("got %v, want an engine that is up", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got = h.Status(ctx); got.GetUp() || got.GetError() == "" {
		t.Errorf("got %v, want an error", got)
	}
}

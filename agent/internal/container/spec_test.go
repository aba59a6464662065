package container_test

import (
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestSpecReachesTheEngine sets every field that an engine without special hardware takes, and looks for it in the engine's own words.
func TestSpecReachesTheEngine(t *testing.T) {
	h := newHost(t, container.Policy{AllowPrivileged: true, AllowHostNamespaces: true, AllowCapabilities: []string{"SYS_NICE"}, AllowDevices: []string{"/dev/null"}})
	data := t.TempDir() + "/made"
	spec := server(t, h, "A=1", "B=x y")
	spec.Entrypoint, spec.Command = []string{"/server"}, []string{"one", "two"}
	spec.Mounts = []*agentv1.Mount{
		{Type: "bind", Source: data, Target: "/data", ReadOnly: true, CreateHostPath: true, Propagation: "rprivate"},
		{Type: "volume", Source: h.name + "-v", Target: "/vol", VolumeDriver: "local"},
		{Type: "volume", Target: "/anon"},
		{Type: "tmpfs", Target: "/tmp", TmpfsSizeBytes: 1 << 20},
	}
	spec.Networks = []*agentv1.NetworkAttachment{{Name: h.name + "-a", Aliases: []string{"web"}, Labels: map[string]string{"l": "1"}}, {Name: h.name + "-b", Internal: true, Aliases: []string{"db"}}}
	spec.ExtraHosts, spec.Dns = []string{"db:10.0.0.1"}, []string{"10.0.0.53"}
	healthcheck(spec)
	spec.Healthcheck.StartPeriod = durationpb.New(3 * time.Second)
	spec.Resources = &agentv1.Resources{MemoryLimitBytes: 64 << 20, MemoryReservationBytes: 32 << 20, NanoCpuLimit: 5e8, PidsLimit: 50}
	spec.Restart = &agentv1.RestartPolicy{Name: "on-failure", MaxRetries: 3}
	spec.User, spec.WorkingDir, spec.StopSignal, spec.StopGrace = "1000:1000", "/data", "SIGINT", durationpb.New(1500*time.Millisecond)
	spec.CapAdd, spec.CapDrop, spec.Privileged = []string{"SYS_NICE"}, []string{"NET_RAW"}, true
	spec.ReadOnly, spec.Init, spec.Hostname, spec.ShmSizeBytes, spec.Tty = true, true, "web1", 1<<20, true
	spec.Sysctls = map[string]string{"net.core.somaxconn": "512"}
	spec.Ulimits = []*agentv1.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
	spec.Log = &agentv1.LogConfig{Driver: "json-file", Options: map[string]string{"max-size": "1m"}}
	spec.SecurityOpt, spec.PidMode, spec.IpcMode = []string{"no-new-privileges"}, "host", "private"
	spec.GroupAdd, spec.Devices = []string{"44"}, []string{"/dev/null:/dev/nothing:r"}
	if _, err := h.Create(t.Context(), "run/step/1", spec); err != nil {
		t.Fatal(err)
	}
	got, err := h.lab.docker.ContainerInspect(t.Context(), spec.GetName())
	if err != nil {
		t.Fatal(err)
	}
	c, hc := got.Config, got.HostConfig
	for what, pair := range map[string][2]any{
		"entrypoint": {[]string(c.Entrypoint), []string{"/server"}}, "command": {[]string(c.Cmd), []string{"one", "two"}},
		"env": {slices.Contains(c.Env, "A=1") && slices.Contains(c.Env, "B=x y"), true}, "user": {c.User, "1000:1000"},
		"working dir": {c.WorkingDir, "/data"}, "stop signal": {c.StopSignal, "SIGINT"}, "stop grace": {*c.StopTimeout, 2}, "hostname": {c.Hostname, "web1"},
		"tty": {c.Tty, true}, "check": {c.Healthcheck.Test, []string{"CMD", "/server", "check"}}, "start period": {c.Healthcheck.StartPeriod, 3 * time.Second},
		"retries": {c.Healthcheck.Retries, 2}, "restart label": {c.Labels["muster.restart"], "on-failure:3"}, "restart before the start": {hc.RestartPolicy.IsNone(), true},
		"memory": {hc.Memory, int64(64 << 20)}, "reservation": {hc.MemoryReservation, int64(32 << 20)}, "cpus": {hc.NanoCPUs, int64(5e8)}, "pids": {*hc.PidsLimit, int64(50)},
		"extra hosts": {hc.ExtraHosts, []string{"db:10.0.0.1"}}, "dns": {hc.DNS, []string{"10.0.0.53"}}, "privileged": {hc.Privileged, true},
		"cap add": {strings.TrimPrefix(hc.CapAdd[0], "CAP_"), "SYS_NICE"}, "cap drop": {strings.TrimPrefix(hc.CapDrop[0], "CAP_"), "NET_RAW"}, "read only": {hc.ReadonlyRootfs, true},
		"init": {*hc.Init, true}, "shm": {hc.ShmSize, int64(1 << 20)}, "sysctls": {hc.Sysctls, spec.GetSysctls()}, "ulimit": {hc.Ulimits[0].String(), "nofile=100:200"},
		"log": {hc.LogConfig.Type + hc.LogConfig.Config["max-size"], "json-file1m"}, "security": {slices.Contains(hc.SecurityOpt, "no-new-privileges"), true},
		"pid": {string(hc.PidMode), "host"}, "ipc": {string(hc.IpcMode), "private"}, "groups": {hc.GroupAdd, []string{"44"}},
		"device": {hc.Devices[0].PathOnHost + hc.Devices[0].PathInContainer + hc.Devices[0].CgroupPermissions, "/dev/null/dev/nothingr"}, "mounts": {len(hc.Mounts), 4},
		"propagation": {string(hc.Mounts[0].BindOptions.Propagation), "rprivate"}, "tmpfs": {hc.Mounts[3].TmpfsOptions.SizeBytes, int64(1 << 20)},
		"volume's stack": {hc.Mounts[1].VolumeOptions.Labels["muster.stack"], h.name},
		"alias":          {slices.Contains(got.NetworkSettings.Networks[h.name+"-a"].Aliases, "web"), true}, "second alias": {slices.Contains(got.NetworkSettings.Networks[h.name+"-b"].Aliases, "db"), true},
		"port": {hc.PortBindings["8080/tcp"][0].HostIP + ":" + hc.PortBindings["8080/tcp"][0].HostPort, fmt.Sprintf("127.0.0.1:%d", spec.GetPorts()[0].GetHostPort())},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
	if err := h.Start(t.Context(), spec.GetName()); err != nil {
		t.Fatal(err)
	}
	if got, err = h.lab.docker.ContainerInspect(t.Context(), spec.GetName()); err != nil || got.HostConfig.RestartPolicy.Name != "on-failure" || got.HostConfig.RestartPolicy.MaximumRetryCount != 3 {
		t.Errorf("restart policy after the start: got %+v, %v", got.HostConfig.RestartPolicy, err)
	}
}

func TestCreateRefusesWhatItWouldDrop(t *testing.T) {
	h := newHost(t, container.Policy{AllowHostNamespaces: true})
	for _, tt := range []struct {
		name   string
		change func(*agentv1.ContainerSpec)
		text   string
	}{
		{"no image", func(s *agentv1.ContainerSpec) { s.Image = "" }, "no image"},
		{"path in the name", func(s *agentv1.ContainerSpec) { s.Name = "../../etc/x" }, "../../etc/x"},
		{"network mode of a container", func(s *agentv1.ContainerSpec) { s.NetworkMode = "container:x" }, "container:x"},
		{"networks with a mode", func(s *agentv1.ContainerSpec) {
			s.NetworkMode, s.Networks = "host", []*agentv1.NetworkAttachment{{Name: "n"}}
			s.Ports = nil
		}, "excludes"},
		{"port on the host's network", func(s *agentv1.ContainerSpec) { s.NetworkMode = "host" }, "cannot be published"},
		{"protocol", func(s *agentv1.ContainerSpec) { s.Ports[0].Protocol = "sctp" }, "sctp"},
		{"relative bind", func(s *agentv1.ContainerSpec) {
			s.Mounts = []*agentv1.Mount{{Type: "bind", Source: "./x", Target: "/x"}}
		}, "./x"},
		{"mount type", func(s *agentv1.ContainerSpec) { s.Mounts = []*agentv1.Mount{{Type: "npipe", Target: "/x"}} }, "npipe"},
		{"option of another type", func(s *agentv1.ContainerSpec) {
			s.Mounts = []*agentv1.Mount{{Type: "tmpfs", Target: "/x", External: true}}
		}, "volumes only"},
		{"retries without on-failure", func(s *agentv1.ContainerSpec) { s.Restart = &agentv1.RestartPolicy{Name: "always", MaxRetries: 2} }, "max_retries"},
		{"device", func(s *agentv1.ContainerSpec) { s.Configs = []*agentv1.ConfigFile{{Target: "etc/x"}} }, "etc/x"},
		{"large configs", func(s *agentv1.ContainerSpec) {
			s.Configs = []*agentv1.ConfigFile{{Target: "/x", Content: make([]byte, 513<<10)}}
		}, "524288"},
		{"sysctl of the host", func(s *agentv1.ContainerSpec) { s.Sysctls = map[string]string{"kernel.panic": "1"} }, "kernel.panic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := server(t, h)
			tt.change(spec)
			_, err := h.Create(t.Context(), "run/step/1", spec)
			if err == nil && tt.name == "sysctl of the host" { // engines differ in when they look.
				err = h.Start(t.Context(), spec.GetName())
			}
			f := wantFailureReason(t, err, invalid)
			if !f.GetPermanent() || !strings.Contains(f.GetMessage(), tt.text) {
				t.Errorf("got %q, want a permanent failure with %q", f.GetMessage(), tt.text)
			}
		})
	}
}

func TestBadCommandIsPermanent(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	spec.Entrypoint = []string{"/no-such-program"}
	if _, err := h.Create(t.Context(), "run/step/1", spec); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, h.Start(t.Context(), spec.GetName()), invalid, true, "no-such-program")
}

// TestHostNetwork probes, and drains, what listens in the host's own network namespace.
func TestHostNetwork(t *testing.T) {
	h := newHost(t, container.Policy{AllowHostNamespaces: true})
	spec := server(t, h)
	spec.NetworkMode, spec.Ports = "host", nil
	run(t, h, spec)
	ready(t, h, spec)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a busy neighbour, whose connections are not the container's.
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := h.Drain(t.Context(), &agentv1.DrainContainerRequest{Name: spec.GetName(), Limit: durationpb.New(300 * time.Millisecond)})
	if err != nil || got.GetLeft() != 0 {
		t.Errorf("got %v, %v; want 0 left", got, err)
	}
	own, err := net.Dial("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if got, err = h.Drain(t.Context(), &agentv1.DrainContainerRequest{Name: spec.GetName(), Limit: durationpb.New(300 * time.Millisecond)}); err != nil || got.GetLeft() != 1 {
		t.Errorf("with one connection: got %v, %v; want 1 left", got, err)
	}
}

// TestGRPCGate lets a container on the host's network stand for a gRPC server that the test itself runs there.
func TestGRPCGate(t *testing.T) {
	h := newHost(t, container.Policy{AllowHostNamespaces: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server1 := grpc.NewServer()
	states := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server1, states)
	serving := make(chan error, 1)
	go func() { serving <- server1.Serve(l) }()
	defer func() {
		server1.Stop()
		if err := <-serving; err != nil {
			t.Error(err)
		}
	}()
	states.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	spec := server(t, h, "NO_LISTEN=1")
	spec.NetworkMode, spec.Ports = "host", nil
	run(t, h, spec)
	gate := within(&agentv1.Gate{Probe: &agentv1.Gate_Grpc{Grpc: &agentv1.GrpcProbe{Port: uint32(l.Addr().(*net.TCPAddr).Port), Service: "shop"}}}, 200*time.Millisecond)
	_, err = h.AwaitReady(t.Context(), &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: gate})
	wantFailure(t, err, notReady, true, `"shop"`, "NOT_SERVING")
	states.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_SERVING)
	if _, err = h.AwaitReady(t.Context(), &agentv1.AwaitReadyRequest{Name: spec.GetName(), Gate: gate}); err != nil {
		t.Errorf("got %v, want ready", err)
	}
}

package container_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

func TestCheck(t *testing.T) {
	h := newHost(t, container.Policy{})
	held := server(t, h)
	run(t, h, held)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	taken := agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN
	refused := agentv1.FailureReason_FAILURE_REASON_REFUSED
	port := func(ip string, n uint32, proto string) func(*agentv1.ContainerSpec) {
		return func(s *agentv1.ContainerSpec) {
			s.Ports = []*agentv1.PortBinding{{HostIp: ip, HostPort: n, ContainerPort: 8080, Protocol: proto}}
		}
	}
	mount := func(m *agentv1.Mount) func(*agentv1.ContainerSpec) {
		return func(s *agentv1.ContainerSpec) { s.Mounts = []*agentv1.Mount{m} }
	}
	heldPort := held.GetPorts()[0].GetHostPort()
	for _, tt := range []struct {
		name     string
		change   func(*agentv1.ContainerSpec)
		replaced []string
		reason   agentv1.FailureReason // 0: no problem.
		texts    []string
	}{
		{name: "free", change: func(*agentv1.ContainerSpec) {}},
		{name: "port of a container", change: port("", heldPort, "tcp"), reason: taken, texts: []string{"container " + held.GetName(), fmt.Sprint(heldPort)}},
		{name: "port of a container, on all addresses", change: port("0.0.0.0", heldPort, ""), reason: taken, texts: []string{held.GetName()}},
		{name: "port of a container that will be gone", change: port("", heldPort, "tcp"), replaced: []string{held.GetName()}},
		{name: "port of a process", change: port("", uint32(l.Addr().(*net.TCPAddr).Port), "tcp"), reason: taken, texts: []string{fmt.Sprintf("(pid %d)", os.Getpid())}},
		{name: "udp port of a process", change: port("", uint32(udp.LocalAddr().(*net.UDPAddr).Port), "udp"), reason: taken},
		{name: "address of another host", change: port("192.0.2.1", 8080, "tcp"), reason: invalid, texts: []string{"192.0.2.1"}},
		{name: "no bind source", change: mount(&agentv1.Mount{Type: "bind", Source: filepath.Join(h.secrets, "../none"), Target: "/x"}), reason: invalid, texts: []string{"does not exist"}},
		{name: "bind source to be made", change: mount(&agentv1.Mount{Type: "bind", Source: t.TempDir() + "/new", Target: "/x", CreateHostPath: true})},
		{name: "no external volume", change: mount(&agentv1.Mount{Type: "volume", Source: h.name, Target: "/x", External: true}), reason: invalid, texts: []string{"docker volume create " + h.name}},
		{name: "new volume", change: mount(&agentv1.Mount{Type: "volume", Source: h.name, Target: "/x"})},
		{name: "no external network", change: func(s *agentv1.ContainerSpec) {
			s.Networks = []*agentv1.NetworkAttachment{{Name: h.name, External: true}}
		}, reason: invalid, texts: []string{"docker network create " + h.name}},
		{name: "policy", change: func(s *agentv1.ContainerSpec) { s.Privileged = true }, reason: refused, texts: []string{"allow_privileged"}},
		{name: "gpu", change: func(s *agentv1.ContainerSpec) {
			s.Resources = &agentv1.Resources{Gpus: []*agentv1.GpuRequest{{Driver: "nvidia", Count: 1}}}
		}, reason: invalid, texts: []string{"nvidia-container-toolkit"}},
		{name: "two mounts on one target", change: func(s *agentv1.ContainerSpec) {
			s.Mounts = []*agentv1.Mount{{Type: "tmpfs", Target: "/x"}, {Type: "volume", Source: "v", Target: "/x/"}}
		}, reason: invalid, texts: []string{"/x"}},
		{name: "bad name", change: func(s *agentv1.ContainerSpec) { s.Name = "../x" }, reason: invalid, texts: []string{"../x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := server(t, h)
			spec.Name = "t." + h.name + ".r2"
			tt.change(spec)
			got, err := h.Check(t.Context(), &agentv1.CheckContainersRequest{Specs: []*agentv1.ContainerSpec{spec}, Replaced: tt.replaced})
			if err != nil {
				t.Fatal(err)
			}
			if tt.reason == 0 {
				if len(got) != 0 {
					t.Errorf("got %v, want no problem", got)
				}
				return
			}
			if len(got) != 1 || got[0].GetReason() != tt.reason || got[0].GetContainer() != spec.GetName() {
				t.Fatalf("got %v, want one problem %s", got, tt.reason)
			}
			for _, text := range tt.texts {
				if !strings.Contains(got[0].GetMessage(), text) {
					t.Errorf("got %q, want %q in it", got[0].GetMessage(), text)
				}
			}
		})
	}
	a, b := server(t, h), server(t, h)
	a.Name, b.Name, b.Ports = "t.a.r2", "t.b.r2", a.GetPorts()
	got, err := h.Check(t.Context(), &agentv1.CheckContainersRequest{Specs: []*agentv1.ContainerSpec{a, b}})
	if err != nil || len(got) != 1 || got[0].GetContainer() != "t.b.r2" || !strings.Contains(got[0].GetMessage(), "t.a.r2") {
		t.Errorf("one port for two: got %v, %v; want it said of the second", got, err)
	}
}

func TestTakenPort(t *testing.T) {
	for text, want := range map[string]string{
		"driver failed programming external connectivity on endpoint x (ab): Bind for 127.0.0.1:8080 failed: port is already allocated": "127.0.0.1:8080",
		"Error starting userland proxy: listen tcp4 0.0.0.0:80: bind: address already in use":                                           "0.0.0.0:80",
		"failed to bind host port for 0.0.0.0:8080:172.17.0.2:80/tcp: address already in use":                                           "0.0.0.0:8080",
		"failed to bind host port 0.0.0.0:8080/tcp: address already in use":                                                             "0.0.0.0:8080",
		"Bind for :::8080 failed: port is already allocated":                                                                            "[::]:8080",
		"something else": "",
	} {
		got, ok := container.TakenPort(text)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %t; want %q", text, got, ok, want)
		}
	}
}

package stack

import (
	"fmt"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// gate chooses the evidence of readiness: x-muster's, else the HEALTHCHECK of the file. Without either the planner looks at the image.
func (m *mapper) gate(s types.ServiceConfig, out *coordinatorv1.Service, ext extension) {
	check := out.GetTemplate().GetHealthcheck()
	switch {
	case ext.Gate != nil && out.Job:
		m.refuse(s.Name, extensionKey+".gate", "a job is ready when it has exited with 0: remove the gate")
	case ext.Gate != nil:
		out.Gate = m.explicitGate(s.Name, *ext.Gate)
	case out.Job:
	case check != nil && !disabled(check):
		out.Gate = HealthGate(check)
		if weak := weakCheck(check); weak != "" {
			m.warn(s.Name, "healthcheck.test", "%s %s; better: %s", weak, "says nothing about serving requests", probeLine(out))
		}
	}
}

// HealthGate is the gate that waits for a HEALTHCHECK, of the file or of the image. Its deadline leaves the check time to pass.
func HealthGate(check *agentv1.Healthcheck) *agentv1.Gate {
	g := &agentv1.Gate{Probe: &agentv1.Gate_Health{Health: &agentv1.HealthProbe{}}}
	if window := watchWindow(check); window > defaultGateDeadline {
		g.Deadline = durationpb.New(window)
	}
	return g
}

// explicitGate maps x-muster: gate.
func (m *mapper) explicitGate(service string, e gateExtension) *agentv1.Gate {
	const key = extensionKey + ".gate"
	g := &agentv1.Gate{Interval: positive(e.Interval), Timeout: positive(e.Timeout), Consecutive: e.Consecutive, Deadline: positive(e.Deadline)}
	probes := 0
	port := func(name string, n uint32) uint32 {
		probes++
		if n == 0 || n > 65535 {
			m.refuse(service, key+"."+name+".port", "give the port of the container, 1 to 65535")
		}
		return n
	}
	if h := e.HTTP; h != nil {
		g.Probe = &agentv1.Gate_Http{Http: &agentv1.HttpProbe{Port: port("http", h.Port), Path: h.Path, Status: h.Status, Host: h.Host}}
		if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
			m.refuse(service, key+".http.path", "%s does not start with /", cut(h.Path))
		}
		if h.Status != 0 && (h.Status < 100 || h.Status > 599) {
			m.refuse(service, key+".http.status", "%d is not a status of HTTP", h.Status)
		}
	}
	if t := e.TCP; t != nil {
		g.Probe = &agentv1.Gate_Tcp{Tcp: &agentv1.TcpProbe{Port: port("tcp", t.Port)}}
	}
	if r := e.GRPC; r != nil {
		g.Probe = &agentv1.Gate_Grpc{Grpc: &agentv1.GrpcProbe{Port: port("grpc", r.Port), Service: r.Service}}
	}
	if len(e.Exec) > 0 {
		probes++
		g.Probe = &agentv1.Gate_Exec{Exec: &agentv1.ExecProbe{Argv: e.Exec}}
	}
	if probes != 1 {
		m.refuse(service, key, "give exactly one of http, tcp, grpc and exec")
	}
	return g
}

// positive maps a period; nil for none, which leaves the default.
func positive(p period) *durationpb.Duration {
	if p == 0 {
		return nil
	}
	return durationpb.New(time.Duration(p))
}

// weakCheck returns the command of a HEALTHCHECK that passes whether or not the service serves.
func weakCheck(h *agentv1.Healthcheck) string {
	test := h.GetTest()
	if len(test) < 2 {
		return ""
	}
	text := strings.TrimSpace(strings.Join(test[1:], " "))
	for _, weak := range []string{"nginx -t", "true", "exit 0", "echo", "ps ", "pgrep", "pidof", "ls ", "cat ", "test -", "[ -", "apachectl configtest", "httpd -t", "caddy validate"} {
		if text == strings.TrimSpace(weak) || strings.HasPrefix(text, strings.TrimSpace(weak)+" ") || strings.HasSuffix(weak, "-") && strings.HasPrefix(text, weak) {
			return text
		}
	}
	return ""
}

// GateHint says which gate would do for a service that has none, as the lines to add; for the refusal of a plan.
func GateHint(s *coordinatorv1.Service) string {
	return fmt.Sprintf("add a gate under %s, like %s", s.GetName(), probeLine(s))
}

// probeLine is the likely gate of a service, as it stands in a compose file.
func probeLine(s *coordinatorv1.Service) string {
	wrap := func(probe string) string { return "x-muster: {gate: {" + probe + "}}" }
	port := uint32(0)
	if r := s.GetRoute(); r != nil {
		port = r.GetPort()
	}
	// A plain port is more likely to answer a probe than the encrypted one beside it.
	for _, b := range s.GetTemplate().GetPorts() {
		if port == 0 && b.GetProtocol() == "tcp" && b.GetContainerPort() != 443 {
			port = b.GetContainerPort()
		}
	}
	if port == 0 {
		port = wellKnownPort(s.GetImage())
	}
	switch port {
	case 0:
		return wrap("http: {port: 8080, path: /health}") + ", with the port and path on which it serves, or a healthcheck:"
	case 5432, 3306, 6379, 27017, 5672, 11211, 9092:
		return wrap(fmt.Sprintf("tcp: {port: %d}", port))
	case 50051:
		return wrap("grpc: {port: 50051}")
	case 80, 8080:
		return wrap(fmt.Sprintf("http: {port: %d, path: /}", port))
	}
	return wrap(fmt.Sprintf("http: {port: %d, path: /}", port)) + fmt.Sprintf(" or %s", wrap(fmt.Sprintf("tcp: {port: %d}", port)))
}

package command

import (
	"fmt"
	"io"
	"strings"

	"github.com/spheroseg/muster/ctl/internal/output"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// writePairs writes labels and values, one pair a line, without those that have no value.
func writePairs(w io.Writer, pairs [][2]string) {
	width := 0
	for _, p := range pairs {
		if p[1] != "" {
			width = max(width, len(p[0]))
		}
	}
	for _, p := range pairs {
		if p[1] != "" {
			_, _ = fmt.Fprintf(w, "%-*s  %s\n", width, p[0], output.Clean(p[1]))
		}
	}
}

// who returns the role and name of an identity, without the cluster, which is always ours.
func who(spiffe string) string {
	rest, ok := strings.CutPrefix(spiffe, "spiffe://user.")
	if !ok {
		return spiffe
	}
	if _, name, ok := strings.Cut(rest, "/"); ok {
		return name
	}
	return spiffe
}

func replicas(s *coordinatorv1.Service) string {
	switch {
	case s.GetPlacement().GetGlobal():
		return "global"
	case s.GetJob():
		return "job"
	}
	return fmt.Sprint(s.GetReplicas())
}

// gateWord returns a gate in one word.
func gateWord(g *agentv1.Gate) string {
	switch p := g.GetProbe().(type) {
	case *agentv1.Gate_Health:
		return "health"
	case *agentv1.Gate_Http:
		return fmt.Sprintf("http:%d%s", p.Http.GetPort(), first(p.Http.GetPath(), "/"))
	case *agentv1.Gate_Tcp:
		return fmt.Sprintf("tcp:%d", p.Tcp.GetPort())
	case *agentv1.Gate_Grpc:
		return strings.TrimSuffix(fmt.Sprintf("grpc:%d/%s", p.Grpc.GetPort(), p.Grpc.GetService()), "/")
	case *agentv1.Gate_Exec:
		return "exec:" + strings.Join(p.Exec.GetArgv(), "_")
	case *agentv1.Gate_Running:
		return "none"
	}
	return "-"
}

// ports returns published ports as host:port->port/protocol.
func ports(list []*agentv1.PortBinding) string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, portOf(p))
	}
	return strings.Join(out, ",")
}

func portOf(p *agentv1.PortBinding) string {
	text := fmt.Sprintf("any->%d", p.GetContainerPort()) // each instance gets one of its host's range.
	if p.GetHostPort() > 0 {
		text = fmt.Sprintf("%d->%d", p.GetHostPort(), p.GetContainerPort())
	}
	if p.GetHostIp() != "" {
		text = p.GetHostIp() + ":" + text
	}
	if proto := p.GetProtocol(); proto != "" && proto != "tcp" {
		text += "/" + proto
	}
	return text
}

func cpus(nano int64) string {
	if nano == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(fmt.Sprintf("%.2f", float64(nano)/1e9), "0"), ".0")
}

func bytesOf(n int64) string {
	if n == 0 {
		return ""
	}
	return output.Bytes(n)
}

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	defaultProbeTimeout = 5 * time.Second
	// proxyVerdict is how long a connection must stay open to count: the engine's port proxy accepts, and then hangs up, for a port on
	// which nobody listens in the container.
	proxyVerdict = 20 * time.Millisecond
	// maxAnswer is how much of a failed probe's answer is kept as evidence.
	maxAnswer = 512
)

// answer is what one probe saw.
type answer struct {
	ok     bool
	final  bool   // a failure that will not change, such as the engine's own verdict "unhealthy".
	seen   string // one line: "GET http://10.0.0.1:80/ answered 503".
	detail string // the body or the output.
}

// prober sends the probes of one gate to one run of a container. A container that was started again needs a new one.
type prober struct {
	timeout time.Duration
	send    func(ctx context.Context) (answer, error)
}

// probe returns an error only if the engine had to be asked and gave no answer.
func (p *prober) probe(ctx context.Context) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	return p.send(ctx)
}

// newProber returns a failure if the gate cannot work for this container.
func (e *Engine) newProber(c container.InspectResponse, gate *agentv1.Gate) (*prober, error) {
	p := &prober{timeout: defaultProbeTimeout}
	if d := gate.GetTimeout().AsDuration(); d > 0 {
		p.timeout = d
	}
	name := strings.TrimPrefix(c.Name, "/")
	at := func(port uint32) (string, error) {
		if port == 0 || port > 65535 {
			return "", invalid("gate of container %q: port %d is not in 1 to 65535", name, port)
		}
		address, ok := e.reachable(c, port)
		if !ok {
			return "", invalid("gate of container %q: port %d is not reachable: publish it, or give the container a network", name, port)
		}
		return address, nil
	}
	var err error
	var address string
	switch probe := gate.GetProbe().(type) {
	case *agentv1.Gate_Http:
		if address, err = at(probe.Http.GetPort()); err == nil {
			p.send, err = httpProbe(address, probe.Http)
		}
	case *agentv1.Gate_Tcp:
		if address, err = at(probe.Tcp.GetPort()); err == nil {
			p.send = tcpProbe(address, c.State.Pid, probe.Tcp.GetPort())
		}
	case *agentv1.Gate_Grpc:
		if address, err = at(probe.Grpc.GetPort()); err == nil {
			p.send = grpcProbe(address, probe.Grpc)
		}
	case *agentv1.Gate_Exec:
		if len(probe.Exec.GetArgv()) == 0 {
			return nil, invalid("gate of container %q: the command of its exec probe is empty", name)
		}
		p.send = e.execProbe(c.ID, probe.Exec)
	case *agentv1.Gate_Health:
		if c.State.Health == nil || c.State.Health.Status == container.NoHealthcheck {
			return nil, invalid("gate of container %q: its image has no HEALTHCHECK; give the gate an http, tcp, grpc or exec probe", name)
		}
		p.send = e.healthProbe(c.ID)
	case *agentv1.Gate_Running:
		p.send = e.runningProbe(c.ID)
	default:
		return nil, invalid("container %q has no gate; give it one, or say that running is enough", name)
	}
	return p, err
}

func httpProbe(address string, probe *agentv1.HttpProbe) (func(context.Context) (answer, error), error) {
	path := probe.GetPath()
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	url := "http://" + address + path
	if _, err := http.NewRequest(http.MethodGet, url, nil); err != nil {
		return nil, invalid("gate: path %q: %s", probe.GetPath(), err)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil, ResponseHeaderTimeout: 0},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) (answer, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return answer{seen: err.Error()}, nil
		}
		req.Host = probe.GetHost()
		req.Header.Set("User-Agent", "muster-agent")
		resp, err := client.Do(req)
		if err != nil {
			return answer{seen: "GET " + url + " failed: " + cause(err)}, nil
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		a := answer{seen: fmt.Sprintf("GET %s answered %d", url, resp.StatusCode), detail: string(body)}
		if err != nil {
			a.seen += " and broke off: " + cause(err)
			return a, nil
		}
		if want := int(probe.GetStatus()); want != 0 {
			a.ok = resp.StatusCode == want
			a.seen += fmt.Sprintf(" (expected %d)", want)
		} else {
			a.ok = resp.StatusCode >= 200 && resp.StatusCode < 400
		}
		return a, nil
	}, nil
}

// cause leaves out what the caller says already: method, address, and the words of the layers in between.
func cause(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case errors.As(err, &op):
		return op.Err.Error()
	default:
		return err.Error()
	}
}

func tcpProbe(address string, pid int, port uint32) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		// A connection alone may be to the engine's port proxy: the container itself must listen.
		if all, err := sockets(pid, bothFamilies); err == nil && !listens(all, port) {
			return answer{seen: fmt.Sprintf("nothing listens on port %d in the container", port)}, nil
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return answer{seen: fmt.Sprintf("connect to %s failed: %s", address, cause(err))}, nil
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(proxyVerdict)); err != nil {
			return answer{seen: err.Error()}, nil
		}
		var timeout net.Error
		if _, err := conn.Read(make([]byte, 1)); err != nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
			return answer{seen: fmt.Sprintf("%s closed the connection at once", address)}, nil
		}
		return answer{ok: true, seen: "connected to " + address}, nil
	}
}

func listens(all []socket, port uint32) bool {
	for _, s := range all {
		if s.state == tcpListen && s.port == port {
			return true
		}
	}
	return false
}

func grpcProbe(address string, probe *agentv1.GrpcProbe) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		what := fmt.Sprintf("grpc health of %q at %s", probe.GetService(), address)
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		if err != nil {
			return answer{seen: what + ": " + err.Error()}, nil
		}
		defer conn.Close()
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: probe.GetService()})
		if err != nil {
			return answer{seen: what + " failed: " + firstLine(err.Error())}, nil
		}
		return answer{ok: resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING, seen: what + " is " + resp.GetStatus().String()}, nil
	}
}

func (e *Engine) execProbe(id string, probe *agentv1.ExecProbe) func(context.Context) (answer, error) {
	what := fmt.Sprintf("command %q", probe.GetArgv())
	return func(ctx context.Context) (answer, error) {
		created, err := e.docker.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: probe.GetArgv(), AttachStdout: true, AttachStderr: true})
		if err != nil {
			return e.engineAnswer(ctx, what, err)
		}
		attached, err := e.docker.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
		if err != nil {
			return e.engineAnswer(ctx, what, err)
		}
		defer attached.Close()
		// The connection knows no context: closing it is what ends the copy.
		defer context.AfterFunc(ctx, attached.Close)()
		var output bytes.Buffer
		tail := &limited{w: &output, left: maxAnswer}
		_, copyErr := stdcopy.StdCopy(tail, tail, attached.Reader)
		if ctx.Err() != nil {
			return answer{seen: what + " did not end in time", detail: output.String()}, nil
		}
		if copyErr != nil {
			return e.engineAnswer(ctx, what, copyErr)
		}
		state, err := e.docker.ContainerExecInspect(ctx, created.ID)
		if err != nil {
			return e.engineAnswer(ctx, what, err)
		}
		if state.Running {
			return answer{seen: what + " has not ended", detail: output.String()}, nil
		}
		return answer{ok: state.ExitCode == 0, seen: fmt.Sprintf("%s exited with %d", what, state.ExitCode), detail: output.String()}, nil
	}
}

// healthProbe looks at the verdict of the engine, which runs the check itself.
func (e *Engine) healthProbe(id string) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		c, err := e.docker.ContainerInspect(ctx, id)
		if err != nil {
			return e.engineAnswer(ctx, "health", err)
		}
		h := c.State.Health
		if h == nil {
			return answer{seen: "the container has no health check", final: true}, nil
		}
		a := answer{ok: h.Status == container.Healthy, final: h.Status == container.Unhealthy, seen: "health is " + h.Status}
		if n := len(h.Log); n > 0 {
			a.seen += fmt.Sprintf(" (its check exited with %d)", h.Log[n-1].ExitCode)
			a.detail = h.Log[n-1].Output
		}
		return a, nil
	}
}

func (e *Engine) runningProbe(id string) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		c, err := e.docker.ContainerInspect(ctx, id)
		if err != nil {
			return e.engineAnswer(ctx, "state", err)
		}
		return answer{ok: c.State.Running && !c.State.Restarting && !c.State.Paused, seen: "the container is " + c.State.Status}, nil
	}
}

// engineAnswer tells a failed probe from an engine that did not answer, which says nothing about the container.
func (e *Engine) engineAnswer(ctx context.Context, what string, err error) (answer, error) {
	if unreachable(context.WithoutCancel(ctx), err) && !errors.Is(err, context.DeadlineExceeded) {
		return answer{}, err
	}
	return answer{seen: what + " failed: " + engineText(err)}, nil
}

// limited keeps the first bytes and swallows the rest, so that the writer is never blocked.
type limited struct {
	w    io.Writer
	left int
}

// Write never fails.
func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	if n > 0 {
		l.left -= n
		if _, err := l.w.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

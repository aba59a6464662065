package coordinator

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/mtls"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// listener is an agent's own service, as far as it listens to whom its coordinators are.
type listener struct {
	agentv1.UnimplementedHostServiceServer
	told chan []string
}

func (l *listener) WatchHost(req *agentv1.WatchHostRequest, stream grpc.ServerStreamingServer[agentv1.WatchHostResponse]) error {
	l.told <- req.GetCoordinators()
	<-stream.Context().Done()
	return stream.Context().Err()
}

// single is a net.Listener of one connection.
type single struct {
	net.Conn
	once sync.Once
	conn chan net.Conn
	done chan struct{}
}

func (s *single) Accept() (net.Conn, error) {
	select {
	case c := <-s.conn:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}
func (s *single) Close() error   { s.once.Do(func() { close(s.done) }); return nil }
func (s *single) Addr() net.Addr { return s.LocalAddr() }

func TestHostsLearnWhoTheCoordinatorsAre(t *testing.T) {
	c := founder(t)
	credentials := c.issue(t, roleAgent, "h1", true)
	conn, err := (&tls.Dialer{Config: mtls.Client(credentials, roleCoordinator, mtls.ALPNAgent)}).DialContext(t.Context(), "tcp", c.settings.Listen)
	if err != nil {
		t.Fatal(err)
	}
	agent := &listener{told: make(chan []string, 10)}
	server := grpc.NewServer(grpc.Creds(grpcserver.Handshaked()))
	agentv1.RegisterHostServiceServer(server, agent)
	l := &single{Conn: conn, conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- conn
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Logf("the server ended with its only connection: %v", err)
		}
	})
	deadline := time.After(20 * time.Second)
	expect := func(want ...string) {
		t.Helper()
		for {
			select {
			case got := <-agent.told:
				if len(got) == 0 {
					continue // The coordinator is not sure yet.
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("the host was told of %v, want %v", got, want)
				}
				return
			case <-deadline:
				t.Fatalf("the host was not told of %v", want)
			}
		}
	}
	expect(c.settings.Advertise)
	c.issue(t, roleCoordinator, "c2", true)
	expect(c.settings.Advertise, "c2:7443")
}

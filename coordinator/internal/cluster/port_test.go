package cluster_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/port"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// Members elect over the port that coordinators really use, while somebody holds silent connections to it.
func TestElectionThroughAPortFullOfSilence(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		silent int
	}{
		{"31 silent connections", 31},
		{"more than the port takes", 250},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			authority := identitytest.New(t, "test")
			credentials := map[string]*identity.Credentials{}
			for _, name := range []string{"c1", "c2", "c3"} {
				credentials[name] = authority.Credentials(t, accessv1.Role_ROLE_COORDINATOR, name)
			}
			f := &fleet{t: t}
			f.accept = func(name string, l net.Listener) net.Listener { return servePort(t, l, credentials[name]) }
			f.connect = func(name string, c net.Conn) net.Conn {
				return tls.Client(c, mtls.Client(credentials[name], accessv1.Role_ROLE_COORDINATOR, mtls.ALPNRaft))
			}
			f.found("c1", "c2", "c3")
			if _, _, err := f.nodes["c2"].Propose(t.Context(), put("a", "b")); err != nil {
				t.Fatal(err)
			}
			for _, addr := range f.net.raft {
				for range tt.silent {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
				}
			}
			old := f.waitLeader().name
			f.kill(old)
			began := time.Now()
			for name, n := range f.nodes {
				if _, _, err := n.Propose(t.Context(), put("c", "d")); err != nil {
					t.Errorf("Propose on %s: %v", name, err)
				}
			}
			t.Logf("%s was replaced and commands committed in %v", old, time.Since(began))
		})
	}
}

// servePort runs a port over l until the test ends, and returns its raft listener.
func servePort(t *testing.T, l net.Listener, c *identity.Credentials) net.Listener {
	t.Helper()
	p, err := port.New(port.Options{
		Listener: l, Logger: slog.New(slog.DiscardHandler),
		TLS: mtls.Server(c, mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("port: %v", err)
		}
	})
	return p.Raft()
}

package port_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/port"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

const (
	agent       = accessv1.Role_ROLE_AGENT
	coordinator = accessv1.Role_ROLE_COORDINATOR
	viewer      = accessv1.Role_ROLE_VIEWER
)

// harness is a running port whose connections come out by their protocol.
type harness struct {
	*port.Port

	addr    string
	cluster identitytest.Cluster
	got     map[string]chan net.Conn
	stop    func() error
}

func start(t *testing.T, edit func(*port.Options)) *harness {
	t.Helper()
	cluster := identitytest.New(t, "test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := port.Options{
		Listener: l,
		TLS:      mtls.Server(cluster.Credentials(t, coordinator, "c1"), mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft),
		Logger:   slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&o)
	}
	p, err := port.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	h := &harness{Port: p, addr: l.Addr().String(), cluster: cluster, got: map[string]chan net.Conn{}}
	accepted := make(chan struct{})
	for alpn, door := range map[string]net.Listener{mtls.ALPNgRPC: p.GRPC(), mtls.ALPNAgent: p.Agents(), mtls.ALPNRaft: p.Raft()} {
		conns := make(chan net.Conn, 100)
		h.got[alpn] = conns
		go func() {
			defer func() { accepted <- struct{}{} }()
			for {
				c, err := door.Accept()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Accept: %v", err)
					}
					return
				}
				conns <- c
			}
		}()
	}
	stopped := false
	h.stop = func() error {
		stopped = true
		cancel()
		err := <-ended
		for range h.got {
			<-accepted
		}
		return err
	}
	t.Cleanup(func() {
		if !stopped {
			if err := h.stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	})
	return h
}

func (h *harness) dial(t *testing.T, conf *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", h.addr, conf)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, nil
}

// silent opens TCP connections that never say a word.
func (h *harness) silent(t *testing.T, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

func receive(t *testing.T, conns <-chan net.Conn, within time.Duration) net.Conn {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case c := <-conns:
		t.Cleanup(func() { c.Close() })
		return c
	case <-timer.C:
		t.Fatalf("no connection within %v", within)
		return nil
	}
}

// refused says whether the other side ends c.
func refused(c net.Conn) bool {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return true
	}
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	stillOpen := err == nil || errors.As(err, &timeout) && timeout.Timeout()
	return !stillOpen
}

func TestConnectionsAreSortedByProtocolAndRole(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	other := identitytest.New(t, "other")
	creds := func(role accessv1.Role) *identity.Credentials { return h.cluster.Credentials(t, role, "x") }
	anonymous := func(alpn ...string) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: alpn}
	}
	tests := []struct {
		name string
		conf *tls.Config
		want string // protocol, or empty if it must be refused
	}{
		{"user", mtls.Client(creds(viewer), coordinator, mtls.ALPNgRPC), mtls.ALPNgRPC},
		{"joiner without certificate", anonymous(mtls.ALPNgRPC), mtls.ALPNgRPC},
		{"agent", mtls.Client(creds(agent), coordinator, mtls.ALPNAgent), mtls.ALPNAgent},
		{"raft", mtls.Client(creds(coordinator), coordinator, mtls.ALPNRaft), mtls.ALPNRaft},
		{"coordinator as agent", mtls.Client(creds(coordinator), coordinator, mtls.ALPNAgent), ""},
		{"agent as raft", mtls.Client(creds(agent), coordinator, mtls.ALPNRaft), ""},
		{"user as raft", mtls.Client(creds(viewer), coordinator, mtls.ALPNRaft), ""},
		{"raft without certificate", anonymous(mtls.ALPNRaft), ""},
		{"agent without certificate", anonymous(mtls.ALPNAgent), ""},
		{"raft of another cluster", func() *tls.Config {
			c := mtls.Client(other.Credentials(t, coordinator, "c2"), coordinator, mtls.ALPNRaft)
			c.VerifyConnection = nil
			return c
		}(), ""},
		{"unknown protocol", anonymous("http/1.1"), ""},
		{"no protocol", anonymous(), ""},
		{"old TLS", &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: []string{mtls.ALPNgRPC}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := h.dial(t, tt.conf)
			if tt.want == "" {
				if err == nil && !refused(c) {
					t.Error("it was not refused")
				}
				for alpn, conns := range h.got {
					if len(conns) != 0 {
						t.Errorf("it came out as %s", alpn)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := receive(t, h.got[tt.want], 5*time.Second)
			secure, ok := got.(*tls.Conn)
			if !ok || !secure.ConnectionState().HandshakeComplete {
				t.Fatalf("handed out %T, want a *tls.Conn after its handshake", got)
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if n, err := got.Read(make([]byte, 1)); n != 1 {
				t.Error(err)
			}
		})
	}
}

func TestRoleIsCheckedEvenIfTLSDoesNot(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *port.Options) { o.TLS.VerifyConnection = nil })
	c, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, agent, "h1"), coordinator, mtls.ALPNRaft))
	if err == nil && !refused(c) {
		t.Error("an agent may speak raft")
	}
}

func TestAdmitDecides(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *port.Options) {
		o.Admit = func(alpn string, caller grpcserver.Caller) error {
			if len(caller.Serial) == 0 {
				t.Errorf("%s has no serial", caller)
			}
			if alpn == mtls.ALPNRaft && caller.ID.Name == "evicted" {
				return errors.New("not in the registry")
			}
			return nil
		}
	})
	c, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, coordinator, "evicted"), coordinator, mtls.ALPNRaft))
	if err == nil && !refused(c) {
		t.Error("not refused")
	}
	if _, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, coordinator, "c2"), coordinator, mtls.ALPNRaft)); err != nil {
		t.Fatal(err)
	}
	got := receive(t, h.got[mtls.ALPNRaft], 5*time.Second)
	secure, ok := got.(*tls.Conn)
	if !ok {
		t.Fatalf("handed out %T", got)
	}
	if id, ok := mtls.PeerID(secure.ConnectionState()); !ok || id.Name != "c2" {
		t.Errorf("came out as %v", id)
	}
}

func TestSilentConnectionsDoNotKeepRaftOut(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		silent int
		within time.Duration
	}{
		{"below the limit", 31, time.Second},
		{"above the limit", 150, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := start(t, func(o *port.Options) { o.MaxHandshakes, o.Patience = 50, 200*time.Millisecond })
			h.silent(t, tt.silent)
			began := time.Now()
			if _, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, coordinator, "c2"), coordinator, mtls.ALPNRaft)); err != nil {
				t.Fatal(err)
			}
			receive(t, h.got[mtls.ALPNRaft], tt.within)
			if took := time.Since(began); took > tt.within {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestManyHonestHandshakesAllSucceed(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *port.Options) { o.MaxHandshakes, o.Patience = 4, 30*time.Second })
	conf := mtls.Client(h.cluster.Credentials(t, agent, "h1"), coordinator, mtls.ALPNAgent)
	errs := make(chan error)
	for range 60 {
		go func() {
			c, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", h.addr)
			if err == nil {
				_, err = c.Write([]byte("x"))
			}
			errs <- err
		}()
	}
	for range 60 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for range 60 {
		receive(t, h.got[mtls.ALPNAgent], 10*time.Second)
	}
}

func TestSilentAndPlainConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	h := start(t, func(o *port.Options) { o.HandshakeTimeout = 100 * time.Millisecond })
	conns := h.silent(t, 2)
	if _, err := io.WriteString(conns[1], "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for i, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is still open", i)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	c, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, coordinator, "c2"), coordinator, mtls.ALPNRaft))
	if err != nil {
		t.Fatal(err)
	}
	open := receive(t, h.got[mtls.ALPNRaft], 5*time.Second)
	silent := h.silent(t, 1)[0]
	if err := h.stop(); err != nil { // waits for the accepters, too
		t.Errorf("Run: %v", err)
	}
	for name, conn := range map[string]net.Conn{"the peer's end": c, "our end": open, "the silent one": silent} {
		if !refused(conn) {
			t.Errorf("%s is still open", name)
		}
	}
	if _, err := net.DialTimeout("tcp", h.addr, time.Second); err == nil {
		t.Error("the port still accepts")
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestClosedDoorRefusesOnlyItsProtocol(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	if err := h.Raft().Close(); err != nil {
		t.Fatal(err)
	}
	c, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, coordinator, "c2"), coordinator, mtls.ALPNRaft))
	if err == nil && !refused(c) {
		t.Error("raft is still let in")
	}
	if _, err := h.dial(t, mtls.Client(h.cluster.Credentials(t, agent, "h1"), coordinator, mtls.ALPNAgent)); err != nil {
		t.Fatal(err)
	}
	receive(t, h.got[mtls.ALPNAgent], 5*time.Second)
}

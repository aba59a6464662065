package uplink_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spheroseg/muster/agent/internal/uplink"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// peer accepts TLS connections.
type peer struct {
	net.Listener
	accepted chan *tls.Conn
}

func newPeer(t *testing.T, config *tls.Config) *peer {
	t.Helper()
	return newPeerAt(t, "127.0.0.1:0", config)
}

func newPeerAt(t *testing.T, address string, config *tls.Config) *peer {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{Listener: l, accepted: make(chan *tls.Conn, 64)}
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, config)
			if conn.Handshake() != nil {
				_ = raw.Close()
				continue
			}
			p.accepted <- conn
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		loop.Wait()
	})
	return p
}

// take returns the next connection that the peer accepted.
func (p *peer) take(t *testing.T) *tls.Conn {
	t.Helper()
	select {
	case conn := <-p.accepted:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(10 * time.Second):
		t.Fatalf("%s sees no connection", p.Addr())
		return nil
	}
}

// start runs an uplink and stops it with the test.
func start(t *testing.T, logger *slog.Logger, config *tls.Config, coordinators ...string) *uplink.Uplink {
	t.Helper()
	u, err := uplink.New(uplink.Options{Coordinators: coordinators, TLS: config, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return u
}

func TestDialsEachCoordinatorOnceAndAgainWhenItEnds(t *testing.T) {
	cluster := identitytest.New(t, "test")
	server := mtls.Server(cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c1"), mtls.ALPNAgent)
	client := mtls.Client(cluster.Credentials(t, accessv1.Role_ROLE_AGENT, "h1"), accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent)
	other := mtls.Server(cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c2"), mtls.ALPNAgent)
	a, b := newPeer(t, server), newPeer(t, other)
	u := start(t, slog.New(slog.DiscardHandler), client, a.Addr().String(), b.Addr().String(), a.Addr().String())
	conns := map[string]net.Conn{}
	for range 2 {
		conn := accept(t, u)
		conns[conn.RemoteAddr().String()] = conn
	}
	if len(conns) != 2 {
		t.Fatalf("got connections to %v, want one to each", conns)
	}
	lost := conns[a.Addr().String()]
	if err := lost.Close(); err != nil { // as the server does when it has read the end of the connection.
		t.Fatal(err)
	}
	if again := accept(t, u); again.RemoteAddr().String() != a.Addr().String() {
		t.Fatalf("got a connection to %s, want one to %s", again.RemoteAddr(), a.Addr())
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v after Close, want net.ErrClosed", err)
	}
	for peer, want := range map[*peer]int{a: 2, b: 1} {
		for range want {
			select {
			case conn := <-peer.accepted:
				t.Cleanup(func() { _ = conn.Close() })
			case <-time.After(10 * time.Second):
				t.Fatalf("%s saw fewer than %d connections", peer.Addr(), want)
			}
		}
	}
}

func TestAPortThatSpeaksAnotherProtocolIsLeftAlone(t *testing.T) {
	cluster := identitytest.New(t, "test")
	server := mtls.Server(cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c1")) // no ALPN at all.
	client := mtls.Client(cluster.Credentials(t, accessv1.Role_ROLE_AGENT, "h1"), accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent)
	p := newPeer(t, server)
	log := &lines{got: make(chan string, 64)}
	start(t, slog.New(slog.NewTextHandler(log, nil)), client, p.Addr().String())
	select {
	case line := <-log.got:
		if !strings.Contains(line, "is it the port of a coordinator?") || !strings.Contains(line, p.Addr().String()) {
			t.Errorf("got log %q", line)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is logged")
	}
}

func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"c1.example:7443": true, "[::1]:7443": true, "10.0.0.1:65535": true,
		"c1.example": false, ":7443": false, "c1.example:": false, "c1.example:https": false, "c1.example:0": false, "c1.example:65536": false, "::1:7443": false,
		strings.Repeat("c", 256) + ":7443": false,
	} {
		_, err := uplink.New(uplink.Options{Coordinators: []string{address}, TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler)})
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), address) {
			t.Errorf("%q: got %v, want it accepted: %t", address, err, ok)
		}
	}
}

func accept(t *testing.T, u *uplink.Uplink) net.Conn {
	t.Helper()
	conns := make(chan net.Conn, 1)
	go func() {
		if conn, err := u.Accept(); err == nil {
			conns <- conn
		}
	}()
	select {
	case conn := <-conns:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(10 * time.Second):
		t.Fatal("no connection")
		return nil
	}
}

// lines is a writer of a log.
type lines struct{ got chan string }

func (l *lines) Write(b []byte) (int, error) {
	select {
	case l.got <- string(b):
	default:
	}
	return len(b), nil
}

package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	anyRole     = accessv1.Role_ROLE_UNSPECIFIED
	agent       = accessv1.Role_ROLE_AGENT
	coordinator = accessv1.Role_ROLE_COORDINATOR
	operator    = accessv1.Role_ROLE_OPERATOR
)

func TestConnections(t *testing.T) {
	prod, twin, other := identitytest.New(t, "prod"), identitytest.New(t, "prod"), identitytest.New(t, "other")
	c1, h7, eve := prod.Credentials(t, coordinator, "c1"), prod.Credentials(t, agent, "h7"), prod.Credentials(t, operator, "eve")
	expired := prod.CredentialsAt(t, agent, "h7", time.Now().Add(-2*time.Minute), time.Minute)
	gone := prod.CredentialsAt(t, coordinator, "c1", time.Now().Add(-2*time.Minute), time.Minute)
	byRoot := func(uri string) tls.Certificate { return forge(t, prod, prod.Authority.GetRoot(), uri) }
	thief := forge(t, prod, prod.Authority.GetAgent(), "spiffe://user.prod.muster/admin/eve")
	withTrueRoot := *twin.Credentials(t, coordinator, "c1").Certificate()
	withTrueRoot.Certificate = append(withTrueRoot.Certificate, prod.Authority.GetRoot().GetCertificate())

	server := func(c *identity.Credentials) *tls.Config {
		return mtls.Server(c, mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft)
	}
	client := func(c *identity.Credentials) *tls.Config { return mtls.Client(c, coordinator, mtls.ALPNgRPC) }
	bare := func(alpn string) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{alpn}, InsecureSkipVerify: true}
	}
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		serverErr      string // "" means that the server takes the connection.
		clientErr      string
		peer           string // whom the server sees.
	}{
		{name: "operator calls", server: server(c1), client: client(eve), peer: "spiffe://user.prod.muster/operator/eve"},
		{name: "agent dials", server: server(c1), client: mtls.Client(h7, coordinator, mtls.ALPNAgent), peer: "spiffe://agent.prod.muster/h7"},
		{name: "coordinator dials raft", server: server(c1), client: mtls.Client(c1, coordinator, mtls.ALPNRaft), peer: "spiffe://coordinator.prod.muster/c1"},
		{name: "any role wanted", server: server(h7), client: mtls.Client(c1, anyRole, mtls.ALPNgRPC), peer: "spiffe://coordinator.prod.muster/c1"},
		{name: "no certificate for grpc", server: server(c1), client: bare(mtls.ALPNgRPC)},
		{name: "joining", server: server(c1), client: mtls.Pinned(pin(t, prod), mtls.ALPNgRPC)},

		{name: "server of another role", server: server(h7), client: client(eve), clientErr: "has not the role"},
		{name: "server with a user's certificate", server: server(eve), client: mtls.Client(h7, anyRole, mtls.ALPNgRPC), clientErr: "incompatible key usage"},
		{name: "server of another cluster", server: server(other.Credentials(t, coordinator, "c1")), client: client(eve), clientErr: "unknown authority"},
		{name: "server of a foreign authority with our names", server: server(twin.Credentials(t, coordinator, "c1")), client: client(eve), clientErr: "unknown authority"},
		{name: "server named for another cluster by our root", server: serverAs(server(c1), byRoot("spiffe://coordinator.other.muster/c1")), client: client(eve), clientErr: "another cluster"},
		{name: "server expired", server: server(gone), client: client(eve), clientErr: "expired"},

		{name: "client of another cluster", server: server(c1), client: clientAs(client(eve), *other.Credentials(t, operator, "eve").Certificate()), serverErr: "unknown authority"},
		{name: "client of a foreign authority with our names", server: server(c1), client: clientAs(client(eve), *twin.Credentials(t, operator, "eve").Certificate()), serverErr: "unknown authority"},
		{name: "client named for another cluster by our root", server: server(c1), client: clientAs(client(eve), byRoot("spiffe://user.other.muster/operator/eve")), serverErr: "another cluster"},
		{name: "agents' authority signed an admin", server: server(c1), client: clientAs(client(eve), thief), serverErr: "not authorized to sign"},
		{name: "client expired", server: server(c1), client: client(expired), serverErr: "expired"},
		{name: "no certificate for agents", server: server(c1), client: bare(mtls.ALPNAgent), serverErr: "needs a certificate"},
		{name: "no certificate for raft", server: server(c1), client: bare(mtls.ALPNRaft), serverErr: "needs a certificate"},
		{name: "operator for agents", server: server(c1), client: mtls.Client(eve, coordinator, mtls.ALPNAgent), serverErr: "has not the role"},
		{name: "agent on raft", server: server(c1), client: mtls.Client(h7, coordinator, mtls.ALPNRaft), serverErr: "has not the role"},
		{name: "TLS 1.2", server: server(c1), client: &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}, serverErr: "unsupported versions"},
		{name: "other protocol", server: server(c1), client: bare("spdy/3"), serverErr: "unsupported application protocols"},

		{name: "joining with another pin", server: server(c1), client: mtls.Pinned(pin(t, twin), mtls.ALPNgRPC), clientErr: "not of the cluster"},
		{name: "joining at an agent", server: server(h7), client: mtls.Pinned(pin(t, prod), mtls.ALPNgRPC), clientErr: "has not the role"},
		{name: "joining at a forged chain with the true root", server: serverAs(server(c1), withTrueRoot), client: mtls.Pinned(pin(t, prod), mtls.ALPNgRPC), clientErr: "unknown authority"},
		{name: "joining where the leaf has the pin", server: server(c1), client: mtls.Pinned(identity.Pin(c1.Certificate().Leaf), mtls.ALPNgRPC), clientErr: "not a root"},
		{name: "joining at an expired coordinator", server: server(gone), client: mtls.Pinned(pin(t, prod), mtls.ALPNgRPC), clientErr: "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := connect(t, tc.server, tc.client)
			check(t, "client", got.clientErr, tc.clientErr)
			switch {
			case tc.clientErr != "": // the client left in the handshake.
				if got.serverErr == nil {
					t.Error("the server finished the handshake")
				}
			default:
				check(t, "server", got.serverErr, tc.serverErr)
			}
			if tc.serverErr+tc.clientErr != "" {
				if got.data != "" {
					t.Errorf("the server got %q", got.data)
				}
				return
			}
			if got.data != secret {
				t.Errorf("the server got %q, want %q", got.data, secret)
			}
			if id, ok := mtls.PeerID(got.state); ok != (tc.peer != "") || ok && id.String() != tc.peer {
				t.Errorf("the server sees %v, %v, want %q", id, ok, tc.peer)
			}
		})
	}
}

func TestNoResumption(t *testing.T) {
	prod := identitytest.New(t, "prod")
	server := mtls.Server(prod.Credentials(t, coordinator, "c1"), mtls.ALPNgRPC)
	client := mtls.Client(prod.Credentials(t, agent, "h7"), coordinator, mtls.ALPNgRPC)
	client.SessionTicketsDisabled, client.ClientSessionCache, client.ServerName = false, tls.NewLRUClientSessionCache(4), "c1"
	for i := range 3 {
		got := connect(t, server, client)
		if got.clientErr != nil || got.serverErr != nil || got.state.DidResume || got.state.Version != tls.VersionTLS13 {
			t.Errorf("connection %d: %v, %v, resumed %v, version %x", i, got.clientErr, got.serverErr, got.state.DidResume, got.state.Version)
		}
	}
}

func TestPeerIDBeforeTheHandshake(t *testing.T) {
	leaf := identitytest.New(t, "prod").Credentials(t, agent, "h7").Certificate().Leaf
	if id, ok := mtls.PeerID(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); ok {
		t.Errorf("PeerID = %v before the handshake", id)
	}
}

const secret = "mjt1.secret"

type outcome struct {
	clientErr, serverErr error
	state                tls.ConnectionState // the server's.
	data                 string              // that the server got.
}

// connect makes a connection over loopback, over which the client at once sends a secret, and waits for both ends.
func connect(t *testing.T, server, client *tls.Config) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var got outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			got.serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if got.serverErr = conn.HandshakeContext(ctx); got.serverErr != nil {
			return
		}
		if _, got.serverErr = conn.Write([]byte{'!'}); got.serverErr != nil {
			return
		}
		data, err := io.ReadAll(conn)
		got.data, got.serverErr, got.state = string(data), err, conn.ConnectionState()
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	_, err = conn.Write([]byte(secret)) // the handshake comes first.
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // a session ticket would come with it.
	}
	if err != nil && !strings.Contains(err.Error(), "remote error") { // what the server refused is its error.
		got.clientErr = err
	}
	if err := conn.Close(); err != nil && got.clientErr == nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("close: %v", err)
	}
	raw.Close()
	<-done
	return got
}

func check(t *testing.T, end string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: %v, want an error with %q", end, err, want)
	}
}

func pin(t *testing.T, c identitytest.Cluster) [32]byte {
	t.Helper()
	root, err := x509.ParseCertificate(c.Authority.GetRoot().GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	return identity.Pin(root)
}

// forge returns a certificate that an authority of the cluster signed without asking identity.
func forge(t *testing.T, c identitytest.Cluster, by *raftv1.CertificateAuthority, uri string) tls.Certificate {
	t.Helper()
	key, chain := c.Forge(t, by, uri, nil)
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

func serverAs(c *tls.Config, cert tls.Certificate) *tls.Config {
	c = c.Clone()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	return c
}

func clientAs(c *tls.Config, cert tls.Certificate) *tls.Config {
	c = c.Clone()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return c
}

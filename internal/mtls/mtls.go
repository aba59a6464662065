// Package mtls owns how the connections of a cluster are encrypted and who may be at their ends: TLS 1.3 without tickets, checked by SPIFFE id.
// Keys and names belong to identity, and what a peer may call to grpcserver.
//
// A peer is who its SPIFFE id says, not the host name it was reached under, so Go's own check of host names is off, and VerifyConnection
// does all of the checking. It runs inside every handshake, before either end sends application data.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spheroseg/muster/internal/identity"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// The protocols that share a coordinator's port, told apart by ALPN.
const (
	// ALPNgRPC is gRPC of users, joiners and coordinators.
	ALPNgRPC = "h2"
	// ALPNAgent is a connection over which the agent that dialled it serves gRPC.
	ALPNAgent = "muster-agent/1"
	// ALPNRaft is raft between coordinators.
	ALPNRaft = "muster-raft/1"
)

// Server returns the configuration of a listener. A client without a certificate is let in for methods that need none; one whose certificate
// does not verify is refused, and so is anybody but an agent over ALPNAgent and anybody but a coordinator over ALPNRaft.
func Server(c *identity.Credentials, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return withRoots(c), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			want := roleOver(cs.NegotiatedProtocol)
			if len(cs.PeerCertificates) == 0 {
				if want != accessv1.Role_ROLE_UNSPECIFIED {
					return fmt.Errorf("protocol %s needs a certificate", cs.NegotiatedProtocol)
				}
				return nil
			}
			return verify(c, cs.PeerCertificates, x509.ExtKeyUsageClientAuth, want)
		},
	}
}

// Client returns the configuration of a dialler with an identity. The server must be of our cluster and have the role; ROLE_UNSPECIFIED takes any.
func Client(c *identity.Credentials, want accessv1.Role, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection checks the whole chain, by SPIFFE id instead of by host name.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.Certificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verify(c, cs.PeerCertificates, x509.ExtKeyUsageServerAuth, want)
		},
	}
}

// Pinned returns the configuration of a dialler that has no identity yet. The server must be a coordinator of the cluster whose root has the pin;
// otherwise the handshake ends before anything, the token least of all, is sent.
func Pinned(pin [32]byte, alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             alpn,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // VerifyConnection checks the whole chain against the pinned root.
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots, err := pinnedRoot(cs.PeerCertificates, pin)
			if err != nil {
				return err
			}
			id, err := identity.Verify(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth, time.Now())
			if err != nil {
				return err
			}
			return checkRole(id, accessv1.Role_ROLE_COORDINATOR)
		},
	}
}

// PeerID returns who is at the other end of a connection made with a configuration of this package, and false if that end has no certificate.
// The handshake has verified it already.
func PeerID(cs tls.ConnectionState) (identity.ID, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return identity.ID{}, false
	}
	id, err := identity.FromCertificate(cs.PeerCertificates[0])
	return id, err == nil
}

func verify(c *identity.Credentials, chain []*x509.Certificate, usage x509.ExtKeyUsage, want accessv1.Role) error {
	id, err := identity.Verify(chain, c.Pool(), usage, time.Now())
	if err != nil {
		return err
	}
	if ours := c.ID().Cluster; id.Cluster != ours {
		return fmt.Errorf("%s is of another cluster than ours, %s", id, ours)
	}
	if want == accessv1.Role_ROLE_UNSPECIFIED {
		return nil
	}
	return checkRole(id, want)
}

func checkRole(id identity.ID, want accessv1.Role) error {
	if id.Role != want {
		return fmt.Errorf("%s has not the role that this connection needs, %s", id, want)
	}
	return nil
}

// pinnedRoot returns a pool of the one certificate that has the pin. It must have signed itself: only then is every word of it the root's.
func pinnedRoot(chain []*x509.Certificate, pin [32]byte) (*x509.CertPool, error) {
	for _, c := range chain {
		if identity.Pin(c) != pin {
			continue
		}
		if err := c.CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("the certificate that has the token's pin is not a root: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(c)
		return pool, nil
	}
	return nil, errors.New("the server is not of the cluster that made the token: check the address, and ask for a new token")
}

// withRoots returns the certificate with the roots behind its chain, where a joiner looks for the pinned one.
func withRoots(c *identity.Credentials) *tls.Certificate {
	cert := *c.Certificate()
	chain := append([][]byte(nil), cert.Certificate...)
	for _, root := range c.Roots() {
		chain = append(chain, root.Raw)
	}
	cert.Certificate = chain
	return &cert
}

func roleOver(alpn string) accessv1.Role {
	switch alpn {
	case ALPNAgent:
		return accessv1.Role_ROLE_AGENT
	case ALPNRaft:
		return accessv1.Role_ROLE_COORDINATOR
	default:
		return accessv1.Role_ROLE_UNSPECIFIED
	}
}

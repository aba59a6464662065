// Package identitytest makes the authorities and credentials of clusters for tests, good and bad ones, with the code that real clusters use.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/identity"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// Cluster is a cluster that can issue.
type Cluster struct {
	// Name is the id of the cluster.
	Name string
	// Authority of the cluster, private keys included.
	Authority *raftv1.Authority
}

// New returns a cluster with authorities of its own.
func New(t testing.TB, name string) Cluster {
	t.Helper()
	a, err := identity.NewAuthority(name, time.Now())
	if err != nil {
		t.Fatalf("new authority: %v", err)
	}
	return Cluster{Name: name, Authority: a}
}

// Credentials returns credentials that are good for an hour.
func (c Cluster) Credentials(t testing.TB, role accessv1.Role, name string) *identity.Credentials {
	t.Helper()
	return c.CredentialsAt(t, role, name, time.Now(), time.Hour)
}

// CredentialsAt returns credentials issued at some time, so that they can be expired or not yet valid.
func (c Cluster) CredentialsAt(t testing.TB, role accessv1.Role, name string, at time.Time, life time.Duration) *identity.Credentials {
	t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatalf("new request: %v", err)
	}
	cert, err := identity.Issue(c.Authority, identity.ID{Cluster: c.Name, Role: role, Name: name}, csr, at, life)
	if err != nil {
		t.Fatalf("issue %s: %v", name, err)
	}
	creds, err := identity.NewCredentials(key, cert.Chain, [][]byte{c.Authority.GetRoot().GetCertificate()})
	if err != nil {
		t.Fatalf("credentials of %s: %v", name, err)
	}
	return creds
}

// Forge returns a key and a chain signed by an authority of the cluster without the checks of Issue, as somebody could who stole its key.
// A change may alter the certificate before it is signed.
func (c Cluster) Forge(t testing.TB, by *raftv1.CertificateAuthority, uri string, change func(*x509.Certificate)) (*ecdsa.PrivateKey, [][]byte) {
	t.Helper()
	ca, err := x509.ParseCertificate(by.GetCertificate())
	if err != nil {
		t.Fatalf("authority: %v", err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(by.GetPrivateKey())
	if err != nil {
		t.Fatalf("key of the authority: %v", err)
	}
	key, _, err := identity.NewRequest()
	if err != nil {
		t.Fatalf("key: %v", err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatalf("uri: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{u},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return key, [][]byte{der, ca.Raw}
}

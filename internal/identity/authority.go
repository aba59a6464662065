package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// authorityLife is that of the root and of the issuing authorities, which end together.
	authorityLife = 10 * 365 * 24 * time.Hour
	// clockSkew is how far a peer's clock may be behind ours when it sees a new certificate.
	clockSkew = 5 * time.Minute
)

// Certificate is what Issue signed.
type Certificate struct {
	// Chain in DER: the leaf, then the issuing authority. The root is not in it.
	Chain [][]byte
	// Serial of the leaf, as Caller and registry hold it.
	Serial []byte
	// NotAfter is the end of the leaf.
	NotAfter time.Time
}

// NewAuthority makes the authorities of a new cluster: a root, and below it one issuing authority for each of coordinators, agents and users,
// which by its name constraint can sign for nobody else.
func NewAuthority(cluster string, now time.Time) (*raftv1.Authority, error) {
	if err := ValidName(cluster); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	root, err := newCA(nil, &x509.Certificate{
		Subject:    pkix.Name{CommonName: "muster " + cluster + " root"},
		MaxPathLen: 1,
	}, now)
	if err != nil {
		return nil, fmt.Errorf("root authority: %w", err)
	}
	issuing := make(map[string]*raftv1.CertificateAuthority, 3)
	for _, host := range []string{hostCoordinator, hostAgent, hostUser} {
		issuing[host], err = newCA(root, &x509.Certificate{
			Subject:                     pkix.Name{CommonName: "muster " + cluster + " " + host},
			MaxPathLenZero:              true,
			PermittedDNSDomainsCritical: true, // Go's name for: the name constraints, of URIs too, are critical.
			PermittedURIDomains:         []string{trustHost(host, cluster)},
		}, now)
		if err != nil {
			return nil, fmt.Errorf("%s authority: %w", host, err)
		}
	}
	return &raftv1.Authority{
		Root:        root,
		Coordinator: issuing[hostCoordinator],
		Agent:       issuing[hostAgent],
		User:        issuing[hostUser],
	}, nil
}

// NewRequest makes a new key and the certificate request that proves its possession. The names come from the token, so the request has none.
func NewRequest() (key *ecdsa.PrivateKey, csr []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	return key, csr, nil
}

// Issue signs a certificate for id. Nothing of the request is used but its public key. The certificate never outlives its authority. Hosts are
// names and addresses under which a coordinator is reached: ordinary TLS clients (curl, grpcurl) check them, our own check the identity.
func Issue(a *raftv1.Authority, id ID, csr []byte, now time.Time, life time.Duration, hosts ...string) (Certificate, error) {
	if err := id.Valid(); err != nil {
		return Certificate{}, err
	}
	if life <= 0 {
		return Certificate{}, fmt.Errorf("life %s of a certificate must be positive", life)
	}
	if len(hosts) > 0 && id.Role != accessv1.Role_ROLE_COORDINATOR {
		return Certificate{}, fmt.Errorf("sign %s: only a coordinator is reached under host names, not %q", id, hosts)
	}
	pub, err := requestKey(csr)
	if err != nil {
		return Certificate{}, err
	}
	ca, caKey, err := parseCA(issuerOf(a, id.Role))
	if err != nil {
		return Certificate{}, fmt.Errorf("%s authority: %w", hostOf(id.Role), err)
	}
	if host := trustHost(hostOf(id.Role), id.Cluster); !slices.Equal(ca.PermittedURIDomains, []string{host}) {
		return Certificate{}, fmt.Errorf("the authority signs for %v, not for %s", ca.PermittedURIDomains, host)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return Certificate{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return Certificate{}, err
	}
	leaf := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.Name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              earlier(now.Add(life), ca.NotAfter).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usagesOf(id.Role),
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
			continue
		}
		leaf.DNSNames = append(leaf.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, pub, caKey)
	if err != nil {
		return Certificate{}, fmt.Errorf("sign %s: %w", id, err)
	}
	return Certificate{Chain: [][]byte{der, ca.Raw}, Serial: serial.Bytes(), NotAfter: leaf.NotAfter}, nil
}

// newCA makes an authority signed by parent, or by itself if parent is nil.
func newCA(parent *raftv1.CertificateAuthority, template *x509.Certificate, now time.Time) (*raftv1.CertificateAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber, err = newSerial()
	if err != nil {
		return nil, err
	}
	template.NotBefore = now.Add(-clockSkew)
	template.NotAfter = now.Add(authorityLife)
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.BasicConstraintsValid = true
	template.IsCA = true

	signer, signerKey := template, crypto.Signer(key)
	if parent != nil {
		if signer, signerKey, err = parseCA(parent); err != nil {
			return nil, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, key.Public(), signerKey)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &raftv1.CertificateAuthority{Certificate: der, PrivateKey: pkcs8}, nil
}

func parseCA(ca *raftv1.CertificateAuthority) (*x509.Certificate, crypto.Signer, error) {
	cert, err := x509.ParseCertificate(ca.GetCertificate())
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(ca.GetPrivateKey())
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("the key is a %T, not an ECDSA key", parsed)
	}
	return cert, key, nil
}

// requestKey returns the public key of a request that is signed by its private key.
func requestKey(csr []byte) (*ecdsa.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key must be ECDSA P-256")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return pub, nil
}

func issuerOf(a *raftv1.Authority, r accessv1.Role) *raftv1.CertificateAuthority {
	switch hostOf(r) {
	case hostCoordinator:
		return a.GetCoordinator()
	case hostAgent:
		return a.GetAgent()
	default:
		return a.GetUser()
	}
}

// usagesOf lets agents and coordinators be both ends of a connection, and users only call.
func usagesOf(r accessv1.Role) []x509.ExtKeyUsage {
	if hostOf(r) == hostUser {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
}

func newSerial() (*big.Int, error) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	raw[0] = raw[0]&0x7f | 0x40 // positive, and always of 16 bytes.
	return new(big.Int).SetBytes(raw), nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

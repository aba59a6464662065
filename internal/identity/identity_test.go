package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	agent       = accessv1.Role_ROLE_AGENT
	coordinator = accessv1.Role_ROLE_COORDINATOR
	operator    = accessv1.Role_ROLE_OPERATOR
)

func TestIDText(t *testing.T) {
	for text, id := range map[string]identity.ID{
		"spiffe://agent.prod.muster/h-7":             {Cluster: "prod", Role: agent, Name: "h-7"},
		"spiffe://coordinator.prod.muster/c1":        {Cluster: "prod", Role: coordinator, Name: "c1"},
		"spiffe://user.a-1.muster/viewer/eve":        {Cluster: "a-1", Role: accessv1.Role_ROLE_VIEWER, Name: "eve"},
		"spiffe://user.prod.muster/operator/agent":   {Cluster: "prod", Role: operator, Name: "agent"},
		"spiffe://user.prod.muster/admin/0":          {Cluster: "prod", Role: accessv1.Role_ROLE_ADMIN, Name: "0"},
		"spiffe://user.prod.muster/service/build-ci": {Cluster: "prod", Role: accessv1.Role_ROLE_SERVICE, Name: "build-ci"},
	} {
		if got := id.String(); got != text {
			t.Errorf("String() = %q, want %q", got, text)
		}
		if got, err := identity.Parse(text); err != nil || got != id {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", text, got, err, id)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "spiffe://", "h7", "https://agent.prod.muster/h7", "SPIFFE://agent.prod.muster/h7",
		"spiffe://agent.prod.muster", "spiffe://agent.prod.muster/", "spiffe://agent.prod.muster//h7", "spiffe://agent.prod.muster/h7/",
		"spiffe://agent.prod.muster/a/b", "spiffe://agent.prod.muster/../c1", "spiffe://agent.prod.muster/H7", "spiffe://Agent.prod.muster/h7",
		"spiffe://agent..muster/h7", "spiffe://agent.prod.fleet/h7", "spiffe://agent.a.b.muster/h7", "spiffe://agent.prod.muster:1/h7",
		"spiffe://u@agent.prod.muster/h7", "spiffe://agent.prod.muster/h7?x=1", "spiffe://agent.prod.muster/h7#x", "spiffe://agent.prod.muster/h%37",
		"spiffe://user.prod.muster/eve", "spiffe://user.prod.muster/root/eve", "spiffe://user.prod.muster/admin/", "spiffe://user.prod.muster/admin/a/b",
		"spiffe://other.prod.muster/h7", "spiffe://agent.-prod.muster/h7", "spiffe://agent.prod.muster/-h7",
		"spiffe://agent.prod.muster/" + strings.Repeat("a", 64),
	} {
		if id, err := identity.Parse(text); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", text, id)
		}
	}
}

func TestIssue(t *testing.T) {
	c := identitytest.New(t, "prod")
	root := pool(t, c)
	for _, tc := range []struct {
		role   accessv1.Role
		server bool
	}{
		{agent, true}, {coordinator, true}, {operator, false}, {accessv1.Role_ROLE_VIEWER, false},
		{accessv1.Role_ROLE_ADMIN, false}, {accessv1.Role_ROLE_SERVICE, false},
	} {
		t.Run(tc.role.String(), func(t *testing.T) {
			creds := c.Credentials(t, tc.role, "x1")
			want := identity.ID{Cluster: "prod", Role: tc.role, Name: "x1"}
			chain := parse(t, creds.Certificate().Certificate)
			if got, err := identity.Verify(chain, root, x509.ExtKeyUsageClientAuth, time.Now()); err != nil || got != want {
				t.Errorf("as a client: %v, %v, want %v", got, err, want)
			}
			if _, err := identity.Verify(chain, root, x509.ExtKeyUsageServerAuth, time.Now()); (err == nil) != tc.server {
				t.Errorf("as a server: %v, want allowed %v", err, tc.server)
			}
			leaf := chain[0]
			if leaf.IsCA || len(leaf.URIs) != 1 || len(leaf.DNSNames) != 0 || len(leaf.SerialNumber.Bytes()) != 16 {
				t.Errorf("leaf: CA %v, URIs %v, names %v, serial %x", leaf.IsCA, leaf.URIs, leaf.DNSNames, leaf.SerialNumber)
			}
		})
	}
}

func TestIssueUsesOnlyTheKeyOfTheRequest(t *testing.T) {
	c := identitytest.New(t, "prod")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := url.Parse("spiffe://user.prod.muster/admin/root")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin", Organization: []string{"admin"}}, URIs: []*url.URL{admin}, DNSNames: []string{"c1"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}, // CA:true
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.Issue(c.Authority, identity.ID{Cluster: "prod", Role: agent, Name: "h7"}, csr, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, got.Chain)[0]
	id, err := identity.FromCertificate(leaf)
	if err != nil || id.String() != "spiffe://agent.prod.muster/h7" || leaf.Subject.CommonName != "h7" || len(leaf.Subject.Organization) != 0 || leaf.IsCA {
		t.Errorf("leaf of %v, subject %v, CA %v, %v", id, leaf.Subject, leaf.IsCA, err)
	}
	if !slices.Equal(got.Serial, leaf.SerialNumber.Bytes()) || !got.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("Certificate says %x until %v, the leaf %x until %v", got.Serial, got.NotAfter, leaf.SerialNumber, leaf.NotAfter)
	}
}

func TestIssueRefuses(t *testing.T) {
	c := identitytest.New(t, "prod")
	_, good, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	h7 := identity.ID{Cluster: "prod", Role: agent, Name: "h7"}
	swapped := &raftv1.Authority{Root: c.Authority.GetRoot(), User: c.Authority.GetAgent()}
	for name, tc := range map[string]struct {
		authority *raftv1.Authority
		id        identity.ID
		csr       []byte
		life      time.Duration
	}{
		"another cluster":       {c.Authority, identity.ID{Cluster: "test", Role: agent, Name: "h7"}, good, time.Hour},
		"no role":               {c.Authority, identity.ID{Cluster: "prod", Name: "h7"}, good, time.Hour},
		"bad name":              {c.Authority, identity.ID{Cluster: "prod", Role: agent, Name: "../c1"}, good, time.Hour},
		"no life":               {c.Authority, h7, good, 0},
		"not a request":         {c.Authority, h7, []byte("hello"), time.Hour},
		"bad signature":         {c.Authority, h7, forged, time.Hour},
		"RSA key":               {c.Authority, h7, request(t, rsaKey(t)), time.Hour},
		"P-384 key":             {c.Authority, h7, request(t, p384(t)), time.Hour},
		"the wrong authority":   {swapped, identity.ID{Cluster: "prod", Role: operator, Name: "eve"}, good, time.Hour},
		"no authority":          {nil, h7, good, time.Hour},
		"an authority not kept": {swapped, h7, good, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := identity.Issue(tc.authority, tc.id, tc.csr, time.Now(), tc.life); err == nil {
				t.Errorf("issued %v", parse(t, got.Chain)[0].URIs)
			}
		})
	}
}

func TestHostNamesAreForOrdinaryClients(t *testing.T) {
	c := identitytest.New(t, "prod")
	_, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{"c1.example.com", "192.0.2.1"}
	want := identity.ID{Cluster: "prod", Role: coordinator, Name: "c1"}
	cert, err := identity.Issue(c.Authority, want, csr, time.Now(), time.Hour, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	chain := parse(t, cert.Chain)
	if got, err := identity.Verify(chain, pool(t, c), x509.ExtKeyUsageServerAuth, time.Now()); err != nil || got != want {
		t.Errorf("Verify = %v, %v, want %v", got, err, want)
	}
	for host, ok := range map[string]bool{"c1.example.com": true, "192.0.2.1": true, "c2.example.com": false} {
		if err := chain[0].VerifyHostname(host); (err == nil) != ok {
			t.Errorf("as %s: %v, want accepted %v", host, err, ok)
		}
	}
	for _, role := range []accessv1.Role{agent, operator} { // else an agent could be a coordinator to curl.
		if _, err := identity.Issue(c.Authority, identity.ID{Cluster: "prod", Role: role, Name: "x"}, csr, time.Now(), time.Hour, hosts...); err == nil {
			t.Errorf("%s got the name of a host", role)
		}
	}
}

func TestCertificateEndsWithItsAuthority(t *testing.T) {
	c := identitytest.New(t, "prod")
	creds := c.CredentialsAt(t, agent, "h7", time.Now(), 100*365*24*time.Hour)
	if ca := parse(t, creds.Certificate().Certificate)[1]; creds.NotAfter().After(ca.NotAfter) {
		t.Errorf("the leaf ends %v, its authority %v", creds.NotAfter(), ca.NotAfter)
	}
}

func TestVerifyRefuses(t *testing.T) {
	c, other := identitytest.New(t, "prod"), identitytest.New(t, "prod")
	a := c.Authority
	two := func(l *x509.Certificate) {
		l.URIs = append(l.URIs, &url.URL{Scheme: "spiffe", Host: "agent.prod.muster", Path: "/h8"})
	}
	for name, tc := range map[string]struct {
		by     *raftv1.CertificateAuthority
		uri    string
		change func(*x509.Certificate)
		want   string
	}{
		"agent authority signs a user":        {a.GetAgent(), "spiffe://user.prod.muster/admin/eve", nil, "not authorized to sign"},
		"agent authority signs a coordinator": {a.GetAgent(), "spiffe://coordinator.prod.muster/c9", nil, "not authorized to sign"},
		"user authority signs an agent":       {a.GetUser(), "spiffe://agent.prod.muster/h7", nil, "not authorized to sign"},
		"agent authority of another cluster":  {a.GetAgent(), "spiffe://agent.test.muster/h7", nil, "not authorized to sign"},
		"other root, same names":              {other.Authority.GetAgent(), "spiffe://agent.prod.muster/h7", nil, "unknown authority"},
		"two URIs":                            {a.GetAgent(), "spiffe://agent.prod.muster/h7", two, "one URI"},
		"no URI":                              {a.GetAgent(), "", func(l *x509.Certificate) { l.URIs = nil }, "one URI"},
		"an e-mail address":                   {a.GetAgent(), "spiffe://agent.prod.muster/h7", func(l *x509.Certificate) { l.EmailAddresses = []string{"h7@x"} }, "one URI"},
		"expired":                             {a.GetAgent(), "spiffe://agent.prod.muster/h7", func(l *x509.Certificate) { l.NotAfter = time.Now().Add(-time.Minute) }, "expired"},
		"not yet valid":                       {a.GetAgent(), "spiffe://agent.prod.muster/h7", func(l *x509.Certificate) { l.NotBefore = time.Now().Add(time.Minute) }, "not yet valid"},
		"no usage for it":                     {a.GetAgent(), "spiffe://agent.prod.muster/h7", func(l *x509.Certificate) { l.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "incompatible key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			_, chain := c.Forge(t, tc.by, tc.uri, tc.change)
			id, err := identity.Verify(parse(t, chain), pool(t, c), x509.ExtKeyUsageClientAuth, time.Now())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Verify = %v, %v, want an error with %q", id, err, tc.want)
			}
		})
	}
}

func TestAuthoritiesCannotMakeAuthorities(t *testing.T) {
	c := identitytest.New(t, "prod")
	for _, ca := range []*raftv1.CertificateAuthority{c.Authority.GetAgent(), c.Authority.GetCoordinator(), c.Authority.GetUser()} {
		cert := parse(t, [][]byte{ca.GetCertificate()})[0]
		if cert.MaxPathLen != 0 || !cert.MaxPathLenZero || !cert.PermittedDNSDomainsCritical || len(cert.PermittedURIDomains) != 1 {
			t.Errorf("%s: path length %d, critical %v, for %v", cert.Subject, cert.MaxPathLen, cert.PermittedDNSDomainsCritical, cert.PermittedURIDomains)
		}
	}
	key, chain := c.Forge(t, c.Authority.GetAgent(), "", func(l *x509.Certificate) {
		l.URIs, l.IsCA, l.KeyUsage = nil, true, x509.KeyUsageCertSign
	})
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sub := &raftv1.CertificateAuthority{Certificate: chain[0], PrivateKey: pkcs8}
	_, leaf := c.Forge(t, sub, "spiffe://agent.prod.muster/h7", nil)
	if id, err := identity.Verify(parse(t, append(leaf, chain[1])), pool(t, c), x509.ExtKeyUsageClientAuth, time.Now()); err == nil {
		t.Errorf("an authority below the agents' was taken for %v", id)
	}
}

func TestNewAuthorityRefusesBadClusters(t *testing.T) {
	for _, name := range []string{"", "Prod", "a.b", "-a", "a_b", "ä", strings.Repeat("a", 64)} {
		if _, err := identity.NewAuthority(name, time.Now()); err == nil {
			t.Errorf("NewAuthority(%q) made one", name)
		}
	}
	for _, name := range []string{"a", "0", "prod-1", "a-", strings.Repeat("a", 63)} { // what is allowed must verify, name constraints included.
		identitytest.New(t, name).Credentials(t, agent, strings.Repeat("h", 63))
	}
}

func pool(t *testing.T, c identitytest.Cluster) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	p.AddCert(parse(t, [][]byte{c.Authority.GetRoot().GetCertificate()})[0])
	return p
}

func parse(t *testing.T, ders [][]byte) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func request(t *testing.T, key any) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func p384(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

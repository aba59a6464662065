package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spheroseg/muster/internal/durable"
)

// The files of a directory of credentials.
const (
	ChainFile = "identity.crt"
	KeyFile   = "identity.key"
	RootsFile = "ca.crt"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	maxPEM         = 1 << 20
)

// Credentials are what a program proves its identity with and checks others by. Readers ask anew for every handshake, so that
// they can be replaced while connections are served. They are safe for concurrent use.
type Credentials struct {
	current atomic.Pointer[material]
}

// material is one consistent set. It is never changed.
type material struct {
	id    ID
	cert  *tls.Certificate
	roots []*x509.Certificate
	pool  *x509.CertPool
}

// NewCredentials returns the credentials of a key, its chain (leaf first) and the cluster's roots, all in DER. They must fit together;
// whether they are expired is left to the handshakes.
func NewCredentials(key *ecdsa.PrivateKey, chain, roots [][]byte) (*Credentials, error) {
	m, err := newMaterial(key, chain, roots)
	if err != nil {
		return nil, err
	}
	c := &Credentials{}
	c.current.Store(m)
	return c, nil
}

// ID returns who the credentials prove.
func (c *Credentials) ID() ID { return c.current.Load().id }

// Certificate returns the chain with its key; the leaf is parsed. It must not be changed.
func (c *Credentials) Certificate() *tls.Certificate { return c.current.Load().cert }

// Roots returns the cluster's root certificates. They must not be changed.
func (c *Credentials) Roots() []*x509.Certificate { return c.current.Load().roots }

// Pool returns the cluster's root certificates as a pool. It must not be changed.
func (c *Credentials) Pool() *x509.CertPool { return c.current.Load().pool }

// NotAfter returns the end of the certificate.
func (c *Credentials) NotAfter() time.Time { return c.Certificate().Leaf.NotAfter }

// SaveCredentials writes credentials into dir, which it makes if need be, each file at once or not at all. The chain is written last:
// without it LoadCredentials says that there are none. A crash while others are being replaced may leave a key without its chain.
func SaveCredentials(dir string, key *ecdsa.PrivateKey, chain, roots [][]byte) error {
	if _, err := newMaterial(key, chain, roots); err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	files := []struct {
		name string
		mode os.FileMode
		kind string
		ders [][]byte
	}{
		{KeyFile, 0o600, pemKey, [][]byte{pkcs8}},
		{RootsFile, 0o644, pemCertificate, roots},
		{ChainFile, 0o644, pemCertificate, chain},
	}
	for _, f := range files {
		if err := durable.WriteFile(filepath.Join(dir, f.name), encodePEM(f.kind, f.ders), f.mode); err != nil {
			return fmt.Errorf("save credentials: %w", err)
		}
	}
	return nil
}

// LoadCredentials reads credentials from dir. It refuses a key that others than its owner can read. Where there are none the error is fs.ErrNotExist.
func LoadCredentials(dir string) (*Credentials, error) {
	chain, err := readPEM(filepath.Join(dir, ChainFile), pemCertificate, 0)
	if err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	keys, err := readPEM(filepath.Join(dir, KeyFile), pemKey, 0o077)
	if err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	roots, err := readPEM(filepath.Join(dir, RootsFile), pemCertificate, 0)
	if err != nil {
		return nil, fmt.Errorf("load credentials: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keys[0])
	if err != nil {
		return nil, fmt.Errorf("load credentials: %s: %w", filepath.Join(dir, KeyFile), err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("load credentials: %s holds a %T, not an ECDSA key", filepath.Join(dir, KeyFile), parsed)
	}
	c, err := NewCredentials(key, chain, roots)
	if err != nil {
		return nil, fmt.Errorf("load credentials from %s: %w; join again", dir, err)
	}
	return c, nil
}

func newMaterial(key *ecdsa.PrivateKey, chain, roots [][]byte) (*material, error) {
	if key == nil || len(chain) == 0 || len(roots) == 0 {
		return nil, errors.New("a key, a certificate chain and a root are needed")
	}
	certs := make([]*x509.Certificate, 0, len(chain))
	var when time.Time // at which all of the chain had begun.
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate chain: %w", err)
		}
		certs = append(certs, cert)
		if cert.NotBefore.After(when) {
			when = cert.NotBefore
		}
	}
	m := &material{pool: x509.NewCertPool()}
	for _, der := range roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		m.roots = append(m.roots, root)
		m.pool.AddCert(root)
	}
	leaf := certs[0]
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	id, err := Verify(certs, m.pool, x509.ExtKeyUsageClientAuth, when)
	if err != nil {
		return nil, err
	}
	m.id = id
	m.cert = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
	return m, nil
}

// Verify returns the identity that a chain (leaf first) proves: it leads to one of the roots, every certificate in it is valid at the time,
// its leaf is made for the usage, and the names are within what the authorities may sign.
func Verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, errors.New("there is no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	id, err := FromCertificate(chain[0])
	if err != nil {
		return ID{}, err
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	if _, err := chain[0].Verify(opts); err != nil {
		return ID{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return id, nil
}

func encodePEM(kind string, ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return out
}

// readPEM returns the blocks of a file, of which there is at least one. The file must have none of the forbidden permissions.
func readPEM(path, kind string, forbidden os.FileMode) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return nil, fmt.Errorf("%s has mode %#o and can be read by others: chmod 600 %s, and join again if others had access", path, mode, path)
	}
	rest, err := io.ReadAll(io.LimitReader(f, maxPEM))
	if err != nil {
		return nil, err
	}
	var ders [][]byte
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind {
			return nil, fmt.Errorf("%s holds a %q where a %q is expected", path, block.Type, kind)
		}
		ders = append(ders, block.Bytes)
	}
	if len(ders) == 0 {
		return nil, fmt.Errorf("%s holds no %q", path, kind)
	}
	return ders, nil
}

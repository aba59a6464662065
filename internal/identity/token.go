package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenPrefix  = "mjt1"
	tokenIDBytes = 6
	secretBytes  = 32
)

// ErrToken is returned for text that is not a join token. It does not repeat the text, which may be a secret with a typing error.
var ErrToken = errors.New("this is not a join token: it has the form mjt1.<id>.<secret>.<pin>, 123 characters")

// Token lets one identity join. Whoever has its text has its right; loggers show only its ID.
type Token struct {
	// ID names the token in the registry and in logs: 12 hexadecimal digits.
	ID string
	// Secret of 32 bytes; the registry has only its SecretHash.
	Secret []byte
	// Pin is the SHA-256 of the root's public key, by which a joiner knows the cluster before it has its root.
	Pin [32]byte
}

// NewToken makes a token of a cluster whose root is given in DER.
func NewToken(root []byte) (Token, error) {
	cert, err := x509.ParseCertificate(root)
	if err != nil {
		return Token{}, fmt.Errorf("root certificate: %w", err)
	}
	id, secret := make([]byte, tokenIDBytes), make([]byte, secretBytes)
	if _, err := rand.Read(id); err != nil {
		return Token{}, err
	}
	if _, err := rand.Read(secret); err != nil {
		return Token{}, err
	}
	return Token{ID: hex.EncodeToString(id), Secret: secret, Pin: Pin(cert)}, nil
}

// ParseToken reads a token in the one form that String writes. The error never holds the text.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return Token{}, ErrToken
	}
	id, err := hex.DecodeString(parts[1])
	if err != nil || len(id) != tokenIDBytes {
		return Token{}, ErrToken
	}
	secret, err := tokenEncoding().DecodeString(parts[2])
	if err != nil || len(secret) != secretBytes {
		return Token{}, ErrToken
	}
	pin, err := tokenEncoding().DecodeString(parts[3])
	if err != nil || len(pin) != sha256.Size {
		return Token{}, ErrToken
	}
	t := Token{ID: hex.EncodeToString(id), Secret: secret, Pin: [32]byte(pin)}
	if t.String() != s { // upper case, line breaks and loose last bits decode as well: one token has one spelling.
		return Token{}, ErrToken
	}
	return t, nil
}

// String returns the secret text of the token, for the one who may hand it over.
func (t Token) String() string {
	e := tokenEncoding()
	return strings.Join([]string{tokenPrefix, t.ID, e.EncodeToString(t.Secret), e.EncodeToString(t.Pin[:])}, ".")
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.ID) }

// SecretHash returns what the registry stores and compares.
func (t Token) SecretHash() []byte {
	sum := sha256.Sum256(t.Secret)
	return sum[:]
}

// Pin returns the SHA-256 of a certificate's public key, as a Token carries that of the root.
func Pin(c *x509.Certificate) [32]byte {
	return sha256.Sum256(c.RawSubjectPublicKeyInfo)
}

func tokenEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

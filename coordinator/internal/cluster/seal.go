package cluster

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// errSeal is returned when a sealed text does not open: another key, another place, or changed bytes.
var errSeal = errors.New("sealed data does not open: it was changed, moved, or sealed with another key")

// sealer encrypts what goes to disk. Every use (log, snapshot, key check) has a key of its own, so that no text of one passes for another.
type sealer struct {
	cluster  string
	log      cipher.AEAD
	snapshot cipher.AEAD
	check    cipher.AEAD
}

func newSealer(cluster string, key []byte) (*sealer, error) {
	s := &sealer{cluster: cluster}
	for _, use := range []struct {
		name string
		aead *cipher.AEAD
	}{{"log", &s.log}, {"snapshot", &s.snapshot}, {"check", &s.check}} {
		derived, err := hkdf.Key(sha256.New, key, []byte(cluster), "muster raft "+use.name+" v1", chacha20poly1305.KeySize)
		if err != nil {
			return nil, fmt.Errorf("derive the %s key: %w", use.name, err)
		}
		if *use.aead, err = chacha20poly1305.NewX(derived); err != nil {
			return nil, fmt.Errorf("make the %s cipher: %w", use.name, err)
		}
	}
	return s, nil
}

// context builds additional data without ambiguity: the length of the cluster id comes first.
func (s *sealer) context(extra int) []byte {
	b := make([]byte, 0, 4+len(s.cluster)+extra)
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.cluster)))
	return append(b, s.cluster...)
}

// seal returns nonce and ciphertext in one slice.
func seal(aead cipher.AEAD, plain, context []byte) []byte {
	out := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(out) // never fails: crypto/rand ends the program instead
	return aead.Seal(out, out[:aead.NonceSize()], plain, context)
}

// unseal is the reverse of seal.
func unseal(aead cipher.AEAD, sealed, context []byte) ([]byte, error) {
	if len(sealed) < aead.NonceSize()+aead.Overhead() {
		return nil, errSeal
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], context)
	if err != nil {
		return nil, errSeal
	}
	return plain, nil
}

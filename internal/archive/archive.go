// Package archive owns the file of a saved snapshot: its form, its sealing and the proof that it is whole. What is in it, and what becomes of
// it when it is restored, is the coordinators' concern.
//
// A file is a magic, the length and JSON of a Header, frames of sealed text, the length and JSON of a Footer, and the SHA-256 of everything
// before it. Header and Footer are in the clear, so that the file can be inspected without any key; both are part of what the sealing covers.
package archive

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// ErrInvalid is returned for a file that is damaged, cut short, of another cluster, or no snapshot at all.
var ErrInvalid = errors.New("archive: not a valid snapshot")

// Format that this program writes and reads.
const Format = 1

const (
	magic = "MSTRSAV1"
	// frameBytes of plain text are sealed at a time.
	frameBytes = 64 << 10
	// textLimit bounds header and footer.
	textLimit = 64 << 10

	kindFrame  = byte(1)
	kindFooter = byte(2)
)

// Header says what a file is.
type Header struct {
	// Format of the file.
	Format int `json:"format"`
	// ClusterID and ClusterName of the cluster.
	ClusterID   string `json:"cluster_id"`
	ClusterName string `json:"cluster_name"`
	// Index of the last command in it, and Term in which it was saved.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// SavedAt is the clock of the coordinator that saved it, SavedBy its name.
	SavedAt time.Time `json:"saved_at"`
	SavedBy string    `json:"saved_by"`
	// Version of its program.
	Version string `json:"version"`
	// Nonce makes the sealing of every file another.
	Nonce []byte `json:"nonce"`
}

// Footer says what was written between header and footer.
type Footer struct {
	// Counts of records by kind.
	Counts map[string]uint64 `json:"counts"`
	// Bytes of plain text.
	Bytes int64 `json:"bytes"`
}

// Info is a file as Inspect sees it.
type Info struct {
	Header
	Footer

	// Size of the file and its SHA256, in hexadecimal order of its bytes.
	Size   int64
	SHA256 []byte
}

// Key derives the key of a cluster's files from the cluster's own secret.
func Key(secret []byte, cluster string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, []byte(cluster), "muster saved snapshot v1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of saved snapshots: %w", err)
	}
	return key, nil
}

// seals are what writer and reader have in common: the cipher of one file, the header as it stands in it, and the number of the next frame.
type seals struct {
	aead   cipher.AEAD
	prefix []byte
	bound  []byte
	next   uint64
}

func newSeals(key []byte, h *Header, text []byte) (*seals, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("make the cipher: %w", err)
	}
	if len(h.Nonce) != aead.NonceSize()-8 {
		return nil, fmt.Errorf("%w: its nonce has %d bytes", ErrInvalid, len(h.Nonce))
	}
	sum := sha256.Sum256(text)
	return &seals{aead: aead, prefix: h.Nonce, bound: sum[:]}, nil
}

func (s *seals) step(kind byte) (nonce, context []byte) {
	nonce = binary.BigEndian.AppendUint64(bytes.Clone(s.prefix), s.next)
	s.next++
	return nonce, append(bytes.Clone(s.bound), kind)
}

// Writer writes one file. Close must be called for it to count.
type Writer struct {
	to     io.Writer
	sum    hash.Hash
	seals  *seals
	buf    []byte
	footer Footer
}

// NewWriter starts a file. Format and Nonce of the header are filled in.
func NewWriter(to io.Writer, key []byte, h Header) (*Writer, error) {
	h.Format = Format
	h.Nonce = make([]byte, chacha20poly1305.NonceSizeX-8)
	rand.Read(h.Nonce) // never fails: crypto/rand ends the program instead
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode the header: %w", err)
	}
	s, err := newSeals(key, &h, text)
	if err != nil {
		return nil, err
	}
	w := &Writer{sum: sha256.New(), seals: s, buf: make([]byte, 0, frameBytes)}
	w.to = io.MultiWriter(to, w.sum)
	if _, err := w.to.Write([]byte(magic)); err != nil {
		return nil, err
	}
	return w, w.put(text)
}

// Write seals plain text.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(frameBytes-len(w.buf), len(p))
		w.buf = append(w.buf, p[:n]...)
		p, written = p[n:], written+n
		if len(w.buf) < frameBytes {
			continue
		}
		if err := w.flush(kindFrame, w.buf); err != nil {
			return written, err
		}
		w.buf = w.buf[:0]
	}
	w.footer.Bytes += int64(written)
	return written, nil
}

// Close writes the rest and the end, and returns the SHA-256 of the file.
func (w *Writer) Close(counts map[string]uint64) (sum []byte, err error) {
	if err := w.flush(kindFrame, w.buf); err != nil {
		return nil, err
	}
	w.footer.Counts = counts
	text, err := json.Marshal(w.footer)
	if err != nil {
		return nil, fmt.Errorf("encode the footer: %w", err)
	}
	// The footer is in the clear, too, for those who have no key.
	if err := w.flush(kindFooter, text); err != nil {
		return nil, err
	}
	if err := w.put(text); err != nil {
		return nil, err
	}
	sum = w.sum.Sum(nil)
	_, err = w.to.Write(sum)
	return sum, err
}

func (w *Writer) flush(kind byte, plain []byte) error {
	nonce, context := w.seals.step(kind)
	if _, err := w.to.Write([]byte{kind}); err != nil {
		return err
	}
	return w.put(w.seals.aead.Seal(nil, nonce, plain, context))
}

func (w *Writer) put(b []byte) error {
	if _, err := w.to.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))); err != nil {
		return err
	}
	_, err := w.to.Write(b)
	return err
}

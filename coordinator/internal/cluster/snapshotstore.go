package cluster

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

const (
	snapshotMagic = "MSTRSNP1"
	// chunkBytes of plain text are sealed at a time.
	chunkBytes = 64 << 10
	// prefixBytes of every nonce are random and the same in one snapshot; the other eight are the number of the chunk.
	prefixBytes = 16
	headerBytes = len(snapshotMagic) + prefixBytes
)

// sealedSnapshots is a raft.SnapshotStore whose files are encrypted. What raft sends to another member is the plain text (inside TLS), so
// members need not share a key.
type sealedSnapshots struct {
	inner  raft.SnapshotStore
	sealer *sealer
}

// Create starts a snapshot.
func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.inner.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	w, err := newSealWriter(sink, s.sealer.snapshot, s.context(index, term, conf, confIndex))
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return &sealedSink{SnapshotSink: sink, w: w}, nil
}

// List returns the snapshots, newest first, with the sizes of their plain text: raft sends and checks these.
func (s *sealedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	list, err := s.inner.List()
	for _, m := range list {
		m.Size = plainSize(m.Size)
	}
	return list, err
}

// Open returns a snapshot that was read to its end and proved whole, so that nobody restores the first half of one.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	_, whole, err := s.open(id)
	if err != nil {
		return nil, nil, err
	}
	_, err = io.Copy(io.Discard, whole)
	if err = errors.Join(err, whole.Close()); err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return s.open(id)
}

func (s *sealedSnapshots) open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, file, err := s.inner.Open(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", id, err)
	}
	r, err := newSealReader(file, s.sealer.snapshot, s.context(meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("snapshot %s: %w", id, err), file.Close())
	}
	meta.Size = plainSize(meta.Size)
	return meta, struct {
		io.Reader
		io.Closer
	}{r, file}, nil
}

// context covers the whole plain description of the snapshot, so that nobody gives it another place or other members.
func (s *sealedSnapshots) context(index, term uint64, conf raft.Configuration, confIndex uint64) []byte {
	b := s.sealer.context(256)
	for _, n := range []uint64{index, term, confIndex, uint64(len(conf.Servers))} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, server := range conf.Servers {
		for _, field := range []string{server.Suffrage.String(), string(server.ID), string(server.Address)} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
			b = append(b, field...)
		}
	}
	return b
}

// sealedSink seals what is written to a snapshot. Close may be called twice: the FSM's writer and raft both do.
type sealedSink struct {
	raft.SnapshotSink

	w      *sealWriter
	closed bool
}

// Write adds plain text.
func (s *sealedSink) Write(p []byte) (int, error) { return s.w.Write(p) }

// Close seals the end and makes the snapshot count.
func (s *sealedSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.w.finish(); err != nil {
		return errors.Join(err, s.SnapshotSink.Cancel())
	}
	return s.SnapshotSink.Close()
}

// Cancel throws the snapshot away.
func (s *sealedSink) Cancel() error {
	s.closed = true
	return s.SnapshotSink.Cancel()
}

// chunkSealer knows nonce and additional data of every chunk: its number, and whether it is the last.
type chunkSealer struct {
	aead    cipher.AEAD
	context []byte
	prefix  [prefixBytes]byte
	next    uint64
}

func (c *chunkSealer) step(last bool) (nonce, context []byte) {
	nonce = binary.BigEndian.AppendUint64(bytes.Clone(c.prefix[:]), c.next)
	context = binary.BigEndian.AppendUint64(bytes.Clone(c.context), c.next)
	c.next++
	if last {
		return nonce, append(context, 1)
	}
	return nonce, append(context, 0)
}

// sealWriter writes a header and sealed chunks. A full chunk waits for the next byte, because only then it is known not to be the last.
type sealWriter struct {
	chunkSealer

	to  io.Writer
	buf []byte
}

func newSealWriter(to io.Writer, aead cipher.AEAD, context []byte) (*sealWriter, error) {
	w := &sealWriter{chunkSealer: chunkSealer{aead: aead, context: context}, to: to, buf: make([]byte, 0, chunkBytes)}
	rand.Read(w.prefix[:]) // never fails: crypto/rand ends the program instead
	if _, err := to.Write(append([]byte(snapshotMagic), w.prefix[:]...)); err != nil {
		return nil, fmt.Errorf("write the head of a snapshot: %w", err)
	}
	return w, nil
}

// Write seals every chunk that is full and not the last.
func (w *sealWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(w.buf) == chunkBytes {
			if err := w.flush(false); err != nil {
				return written, err
			}
		}
		n := min(chunkBytes-len(w.buf), len(p))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		written += n
	}
	return written, nil
}

func (w *sealWriter) finish() error { return w.flush(true) }

func (w *sealWriter) flush(last bool) error {
	nonce, context := w.step(last)
	_, err := w.to.Write(w.aead.Seal(nil, nonce, w.buf, context))
	w.buf = w.buf[:0]
	return err
}

// sealReader reads what sealWriter wrote; a missing end is an error, not an end of file.
type sealReader struct {
	chunkSealer

	from  *bufio.Reader
	frame []byte
	plain []byte
	done  bool
}

func newSealReader(from io.Reader, aead cipher.AEAD, context []byte) (*sealReader, error) {
	r := &sealReader{
		chunkSealer: chunkSealer{aead: aead, context: context},
		from:        bufio.NewReaderSize(from, chunkBytes),
		frame:       make([]byte, chunkBytes+aead.Overhead()),
	}
	head := make([]byte, headerBytes)
	if _, err := io.ReadFull(r.from, head); err != nil || string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("not a sealed snapshot: %w", errSeal)
	}
	copy(r.prefix[:], head[len(snapshotMagic):])
	return r, nil
}

// Read returns plain text.
func (r *sealReader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 {
		if r.done {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

func (r *sealReader) fill() error {
	n, err := io.ReadFull(r.from, r.frame)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	_, peekErr := r.from.Peek(1)
	last := errors.Is(peekErr, io.EOF)
	nonce, context := r.step(last)
	if r.plain, err = r.aead.Open(r.frame[:0], nonce, r.frame[:n], context); err != nil {
		return fmt.Errorf("chunk %d: %w", r.next-1, errSeal)
	}
	r.done = last
	return nil
}

// plainSize is the size of the plain text in a sealed file of size bytes.
func plainSize(size int64) int64 {
	const frame = chunkBytes + 16 // of XChaCha20-Poly1305
	body := size - int64(headerBytes)
	if body <= 0 {
		return 0
	}
	return body - (body+frame-1)/frame*16
}

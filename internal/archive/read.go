package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"
)

// Reader reads one file. Nothing that it has given out counts before Read has returned io.EOF: only then the file is proved to be whole.
type Reader struct {
	from  *bufio.Reader
	sum   hash.Hash
	size  int64
	info  Info
	text  []byte // of the header
	seals *seals // nil for who has no key
	plain []byte
	got   int64
	done  bool
}

// NewReader reads the header. Unlock must be called before Read.
func NewReader(from io.Reader) (*Reader, error) {
	r := &Reader{from: bufio.NewReaderSize(from, frameBytes), sum: sha256.New()}
	start, err := r.take(len(magic))
	if err != nil || string(start) != magic {
		return nil, fmt.Errorf("%w: it does not begin as one; was it made by `musterctl operator snapshot save`?", ErrInvalid)
	}
	if r.text, err = r.block(textLimit); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.text, &r.info.Header); err != nil {
		return nil, fmt.Errorf("%w: its header does not decode: %w", ErrInvalid, err)
	}
	if r.info.Format != Format {
		return nil, fmt.Errorf("%w: it has format %d, this program knows %d: use a newer program", ErrInvalid, r.info.Format, Format)
	}
	return r, nil
}

// Header of the file. It is proved only when Read has returned io.EOF.
func (r *Reader) Header() Header { return r.info.Header }

// Info of the file, once Read has returned io.EOF.
func (r *Reader) Info() Info { return r.info }

// Unlock gives the key.
func (r *Reader) Unlock(key []byte) (err error) {
	r.seals, err = newSeals(key, &r.info.Header, r.text)
	return err
}

// Read returns plain text.
func (r *Reader) Read(p []byte) (int, error) {
	if r.seals == nil {
		return 0, errors.New("archive: read before it was unlocked")
	}
	for len(r.plain) == 0 {
		if r.done {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	r.got += int64(n)
	return n, nil
}

// next reads a frame or the end.
func (r *Reader) next() error {
	kind, err := r.take(1)
	if err != nil {
		return err
	}
	sealed, err := r.block(frameBytes + textLimit)
	if err != nil {
		return err
	}
	var plain []byte
	if r.seals != nil {
		nonce, context := r.seals.step(kind[0])
		if plain, err = r.seals.aead.Open(nil, nonce, sealed, context); err != nil {
			return fmt.Errorf("%w: part %d of it does not open: it was changed, or sealed with the key of another cluster", ErrInvalid, r.seals.next)
		}
	}
	switch kind[0] {
	case kindFrame:
		r.plain = plain
		return nil
	case kindFooter:
		return r.end(plain)
	}
	return fmt.Errorf("%w: it has a part of the unknown kind %d", ErrInvalid, kind[0])
}

func (r *Reader) end(proved []byte) error {
	text, err := r.block(textLimit)
	if err != nil {
		return err
	}
	if r.seals != nil && !bytes.Equal(text, proved) {
		return fmt.Errorf("%w: its footer was changed", ErrInvalid)
	}
	if err := json.Unmarshal(text, &r.info.Footer); err != nil {
		return fmt.Errorf("%w: its footer does not decode: %w", ErrInvalid, err)
	}
	want := r.sum.Sum(nil)
	sum, err := r.take(sha256.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, want) {
		return fmt.Errorf("%w: its SHA-256 is %x, the file says %x: it is damaged", ErrInvalid, want, sum)
	}
	if _, err := r.from.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its end", ErrInvalid)
	}
	if r.seals != nil && r.got != r.info.Bytes {
		return fmt.Errorf("%w: it holds %d bytes, its footer says %d", ErrInvalid, r.got, r.info.Bytes)
	}
	r.info.SHA256, r.info.Size, r.done = sum, r.size, true
	return nil
}

func (r *Reader) block(limit int) ([]byte, error) {
	head, err := r.take(4)
	if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n > uint32(limit) {
		return nil, fmt.Errorf("%w: a part of it claims %d bytes", ErrInvalid, n)
	}
	return r.take(int(n))
}

func (r *Reader) take(n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := io.ReadFull(r.from, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: it ends after %d bytes, in the middle: it was cut short", ErrInvalid, r.size+int64(got))
	}
	if err != nil {
		return nil, err
	}
	r.sum.Write(b)
	r.size += int64(n)
	return b, nil
}

// Inspect reads a file to its end without any key: it proves that the file is as it was written, not who wrote it.
func Inspect(from io.Reader) (Info, error) {
	r, err := NewReader(from)
	for err == nil && !r.done {
		err = r.next()
	}
	if err != nil {
		return Info{}, err
	}
	return r.info, nil
}

// Name that a file gets if nobody names it: it sorts by time.
func Name(cluster string, index uint64, at time.Time) string {
	return fmt.Sprintf("%s-%s-%d.snapshot", cluster, at.UTC().Format("20060102-150405"), index)
}

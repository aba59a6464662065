package archive_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/archive"
)

func key(t *testing.T, secret string) []byte {
	t.Helper()
	k, err := archive.Key([]byte(secret), "prod-1")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func write(t *testing.T, plain []byte) ([]byte, []byte) {
	t.Helper()
	var file bytes.Buffer
	w, err := archive.NewWriter(&file, key(t, "one"), archive.Header{ClusterID: "prod-1", ClusterName: "prod", Index: 7, Term: 2, SavedAt: time.Unix(1, 0).UTC(), SavedBy: "c1", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(plain)); err != nil {
		t.Fatal(err)
	}
	sum, err := w.Close(map[string]uint64{"host": 3})
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes(), sum
}

func read(file, key []byte) ([]byte, error) {
	r, err := archive.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	if err := r.Unlock(key); err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestWhatIsWrittenIsReadAndInspected(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000} {
		plain := make([]byte, size)
		rand.Read(plain)
		file, sum := write(t, plain)
		got, err := read(file, key(t, "one"))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: read %d bytes: %v", size, len(got), err)
		}
		info, err := archive.Inspect(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		// The sum is that of everything before it.
		want := sha256.Sum256(file[:len(file)-sha256.Size])
		if !bytes.Equal(info.SHA256, want[:]) || !bytes.Equal(sum, want[:]) || info.Size != int64(len(file)) || info.Bytes != int64(size) || info.Counts["host"] != 3 ||
			info.Index != 7 || info.Term != 2 || info.ClusterName != "prod" || info.SavedBy != "c1" {
			t.Errorf("%d bytes: inspected as %+v", size, info)
		}
		if bytes.Contains(file, plain) && size > 8 {
			t.Errorf("%d bytes are in the file in the clear", size)
		}
	}
}

func TestEveryChangedByteIsFound(t *testing.T) {
	t.Parallel()
	file, _ := write(t, []byte("the plain text"))
	for i := range file {
		changed := bytes.Clone(file)
		changed[i] ^= 1
		if _, err := read(changed, key(t, "one")); !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("byte %d of %d changed: %v", i, len(file), err)
		}
		if _, err := archive.Inspect(bytes.NewReader(changed)); !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("byte %d of %d changed: inspected: %v", i, len(file), err)
		}
	}
	for i := range file {
		if _, err := archive.Inspect(bytes.NewReader(file[:i])); !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("cut to %d of %d bytes: %v", i, len(file), err)
		}
	}
	if _, err := archive.Inspect(bytes.NewReader(append(bytes.Clone(file), 0))); !errors.Is(err, archive.ErrInvalid) {
		t.Errorf("with a byte more: %v", err)
	}
}

func TestAnotherClustersKeyOpensNothing(t *testing.T) {
	t.Parallel()
	file, _ := write(t, []byte("the plain text"))
	if got, err := read(file, key(t, "two")); !errors.Is(err, archive.ErrInvalid) || len(got) > 0 || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("read %q: %v", got, err)
	}
}

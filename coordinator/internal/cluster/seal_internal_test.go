package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

func testSealer(t *testing.T, cluster string, key byte) *sealer {
	t.Helper()
	s, err := newSealer(cluster, bytes.Repeat([]byte{key}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealedLogOpensOnlyInItsPlace(t *testing.T) {
	t.Parallel()
	disk := raft.NewInmemStore()
	log := newSealedLog(disk, testSealer(t, "a", 1))
	entry := &raft.Log{Index: 5, Term: 2, Type: raft.LogCommand, Data: []byte("secret")}
	if err := log.StoreLog(entry); err != nil {
		t.Fatal(err)
	}
	if string(entry.Data) != "secret" {
		t.Error("StoreLog changed the caller's entry")
	}
	tests := []struct {
		name   string
		move   func(*raft.Log)
		sealer *sealer
		ok     bool
	}{
		{"as stored", func(*raft.Log) {}, testSealer(t, "a", 1), true},
		{"other index", func(l *raft.Log) { l.Index = 6 }, testSealer(t, "a", 1), false},
		{"other term", func(l *raft.Log) { l.Term = 3 }, testSealer(t, "a", 1), false},
		{"other type", func(l *raft.Log) { l.Type = raft.LogConfiguration }, testSealer(t, "a", 1), false},
		{"other cluster", func(*raft.Log) {}, testSealer(t, "b", 1), false},
		{"other key", func(*raft.Log) {}, testSealer(t, "a", 2), false},
		{"changed byte", func(l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 }, testSealer(t, "a", 1), false},
		{"cut", func(l *raft.Log) { l.Data = l.Data[:10] }, testSealer(t, "a", 1), false},
		{"empty", func(l *raft.Log) { l.Data = nil }, testSealer(t, "a", 1), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var raw raft.Log
			if err := disk.GetLog(5, &raw); err != nil {
				t.Fatal(err)
			}
			raw.Data = bytes.Clone(raw.Data)
			tt.move(&raw)
			other := raft.NewInmemStore()
			if err := other.StoreLog(&raw); err != nil {
				t.Fatal(err)
			}
			var got raft.Log
			err := newSealedLog(other, tt.sealer).GetLog(raw.Index, &got)
			if tt.ok && (err != nil || string(got.Data) != "secret") {
				t.Errorf("got %q, %v", got.Data, err)
			}
			if !tt.ok && !errors.Is(err, errSeal) {
				t.Errorf("got %v, want errSeal", err)
			}
		})
	}
}

func TestFailingDiskIsToldAfterThreeWrites(t *testing.T) {
	t.Parallel()
	log := newSealedLog(brokenStore{raft.NewInmemStore()}, testSealer(t, "a", 1))
	for i := range maxStoreFailures {
		select {
		case err := <-log.fatal:
			t.Fatalf("told after %d writes: %v", i, err)
		default:
		}
		if err := log.StoreLog(&raft.Log{Index: 1}); err == nil {
			t.Fatal("a failed write is not reported")
		}
	}
	select {
	case err := <-log.fatal:
		if !strings.Contains(err.Error(), "no space left") {
			t.Errorf("told %v, which hides the cause", err)
		}
	default:
		t.Error("not told")
	}
}

type brokenStore struct{ *raft.InmemStore }

func (brokenStore) StoreLogs([]*raft.Log) error { return errors.New("no space left on device") }

func TestSnapshotStream(t *testing.T) {
	t.Parallel()
	s := testSealer(t, "a", 1)
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 100, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3 * chunkBytes, 3*chunkBytes + 77} {
		plain := make([]byte, size)
		for i := range plain {
			plain[i] = byte(random.Uint32())
		}
		var file bytes.Buffer
		w, err := newSealWriter(&file, s.snapshot, []byte("place"))
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), 1+int(random.Uint32N(50000)))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
		sealed := file.Bytes()
		if got := plainSize(int64(len(sealed))); got != int64(size) {
			t.Errorf("plainSize of %d bytes: %d", size, got)
		}
		if got, err := readSealed(s, sealed, "place"); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
		}
		if _, err := readSealed(s, sealed, "elsewhere"); !errors.Is(err, errSeal) {
			t.Errorf("%d bytes opened elsewhere: %v", size, err)
		}
		const frame = chunkBytes + 16
		cuts := []int{len(sealed) - 1, headerBytes, headerBytes / 2, 0}
		for at := headerBytes + frame; at < len(sealed); at += frame {
			cuts = append(cuts, at) // after a whole chunk: only the final flag shows it
		}
		for _, cut := range cuts {
			if _, err := readSealed(s, sealed[:cut], "place"); !errors.Is(err, errSeal) {
				t.Errorf("%d bytes cut to %d of %d opened: %v", size, cut, len(sealed), err)
			}
		}
		if _, err := readSealed(s, append(bytes.Clone(sealed), 0), "place"); !errors.Is(err, errSeal) {
			t.Errorf("%d bytes with one more opened: %v", size, err)
		}
		if size >= 3*chunkBytes {
			swapped := bytes.Clone(sealed)
			copy(swapped[headerBytes:], sealed[headerBytes+frame:headerBytes+2*frame])
			copy(swapped[headerBytes+frame:], sealed[headerBytes:headerBytes+frame])
			if _, err := readSealed(s, swapped, "place"); !errors.Is(err, errSeal) {
				t.Errorf("swapped chunks opened: %v", err)
			}
		}
	}
}

func readSealed(s *sealer, data []byte, place string) ([]byte, error) {
	r, err := newSealReader(bytes.NewReader(data), s.snapshot, []byte(place))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestSnapshotStoreRefusesOtherMembers(t *testing.T) {
	t.Parallel()
	files, err := raft.NewFileSnapshotStore(t.TempDir(), 2, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("a")
	store := &sealedSnapshots{inner: files, sealer: testSealer(t, "a", 1)}
	conf := raft.Configuration{Servers: []raft.Server{{ID: "c1", Address: "a"}}}
	sink, err := store.Create(1, 10, 2, conf, 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sink, "state"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sink.Close(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	meta, body, err := store.Open(sink.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	list, err := store.List()
	if data, readErr := io.ReadAll(body); readErr != nil || err != nil || string(data) != "state" || meta.Size != 5 || list[0].Size != 5 {
		t.Errorf("got %q of size %d, %v, %v", data, meta.Size, readErr, err)
	}
	changed := &sealedSnapshots{inner: otherMembers{files}, sealer: store.sealer}
	if _, _, err := changed.Open(sink.ID()); !errors.Is(err, errSeal) {
		t.Errorf("a snapshot with other members opened: %v", err)
	}
}

// otherMembers is a disk on which somebody has added a member to the plain part of a snapshot.
type otherMembers struct{ raft.SnapshotStore }

func (o otherMembers) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, body, err := o.SnapshotStore.Open(id)
	if err == nil {
		meta.Configuration.Servers = append(meta.Configuration.Servers, raft.Server{ID: "evil", Address: "x"})
	}
	return meta, body, err
}

func TestUnknownCommandStopsTheMember(t *testing.T) {
	t.Parallel()
	encode := func(c *raftv1.Command) []byte {
		data, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	tests := []struct {
		name string
		data []byte
	}{
		{"not a command", []byte{0xff, 0xff, 0xff}},
		{"empty", nil},
		{"no operation", encode(&raftv1.Command{Version: 1})},
		{"newer version", encode(&raftv1.Command{Version: 2, Op: &raftv1.Command_Tick{Tick: &raftv1.Tick{}}})},
		{"unknown operation", append(encode(&raftv1.Command{Version: 1}), 0xfa, 0x3f, 0)}, // field 1023
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "entry 7") {
					t.Errorf("recovered %v, want a panic that names entry 7", p)
				}
			}()
			adapter{}.Apply(&raft.Log{Index: 7, Data: tt.data})
		})
	}
}

package cluster

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// Memory holds the log and the snapshots of one member instead of its disk. It outlives a Cluster as a disk does: the next one over it goes
// on where the last one was. It is for simulations, which cannot wait for disks; what a real disk does is tested on real ones.
type Memory struct {
	*raft.InmemStore

	snapshots memorySnapshots
}

// NewMemory returns an empty one.
func NewMemory() *Memory {
	return &Memory{InmemStore: raft.NewInmemStore()}
}

// Close keeps everything.
func (m *Memory) Close() error { return nil }

// memorySnapshots keeps the newest snapshots that were written whole.
type memorySnapshots struct {
	mu   sync.Mutex
	kept []memorySnapshot // newest first
	made int
}

type memorySnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// Create starts a snapshot.
func (s *memorySnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	meta := raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, s.made), Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex,
	}
	return &memorySink{store: s, snapshot: memorySnapshot{meta: meta}}, nil
}

// List returns the snapshots, newest first.
func (s *memorySnapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*raft.SnapshotMeta, 0, len(s.kept))
	for _, kept := range s.kept {
		list = append(list, &kept.meta)
	}
	return list, nil
}

// Open returns a snapshot.
func (s *memorySnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kept := range s.kept {
		if kept.meta.ID == id {
			return &kept.meta, io.NopCloser(bytes.NewReader(kept.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("there is no snapshot %s in memory", id)
}

// memorySink takes one snapshot; only Close makes it count.
type memorySink struct {
	store    *memorySnapshots
	snapshot memorySnapshot
	ended    bool
}

// ID of the snapshot.
func (s *memorySink) ID() string { return s.snapshot.meta.ID }

// Write adds to the snapshot.
func (s *memorySink) Write(p []byte) (int, error) {
	s.snapshot.data = append(s.snapshot.data, p...)
	return len(p), nil
}

// Cancel throws the snapshot away.
func (s *memorySink) Cancel() error {
	s.ended = true
	return nil
}

// Close makes the snapshot count. It may be called twice.
func (s *memorySink) Close() error {
	if s.ended {
		return nil
	}
	s.ended = true
	s.snapshot.meta.Size = int64(len(s.snapshot.data))
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	kept := append([]memorySnapshot{s.snapshot}, s.store.kept...)
	s.store.kept = kept[:min(len(kept), snapshotKept)]
	return nil
}

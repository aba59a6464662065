package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/spheroseg/muster/internal/crashpoint"
)

// maxStoreFailures in a row end the member: one with a failing disk must not stay a voter.
const maxStoreFailures = 3

// sealedLog is a raft.LogStore whose entries are encrypted on disk. An entry opens only at its own index, term, type and cluster.
type sealedLog struct {
	raft.LogStore

	sealer *sealer
	// fatal receives at most one error, after maxStoreFailures writes failed in a row.
	fatal chan error

	failures atomic.Int32
}

func newSealedLog(inner raft.LogStore, s *sealer) *sealedLog {
	return &sealedLog{LogStore: inner, sealer: s, fatal: make(chan error, 1)}
}

// IsMonotonic tells raft that the store takes no gaps, which embedding an interface would hide.
func (l *sealedLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// GetLog reads and opens an entry.
func (l *sealedLog) GetLog(index uint64, entry *raft.Log) error {
	if err := l.LogStore.GetLog(index, entry); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return &entryError{index, err}
	}
	plain, err := unseal(l.sealer.log, entry.Data, l.context(entry))
	if err != nil {
		return &entryError{index, err}
	}
	entry.Data = plain
	return nil
}

// StoreLog seals and writes an entry.
func (l *sealedLog) StoreLog(entry *raft.Log) error {
	return l.StoreLogs([]*raft.Log{entry})
}

// StoreLogs seals and writes entries. The given entries stay as they are: raft and its cache go on using them.
func (l *sealedLog) StoreLogs(entries []*raft.Log) error {
	sealed := make([]*raft.Log, len(entries))
	for i, e := range entries {
		if len(e.Extensions) > 0 { // nothing in this program sets them, and they would be stored in the clear
			return fmt.Errorf("log entry %d has extensions, which the sealed log does not store", e.Index)
		}
		c := *e
		c.Data = seal(l.sealer.log, e.Data, l.context(e))
		sealed[i] = &c
	}
	crashpoint.Hit(crashpoint.LogBefore)
	err := l.LogStore.StoreLogs(sealed)
	if err == nil {
		crashpoint.Hit(crashpoint.LogAfter)
		l.failures.Store(0)
		return nil
	}
	if l.failures.Add(1) >= maxStoreFailures {
		select {
		case l.fatal <- fmt.Errorf("write the raft log, %d times in a row: %w", maxStoreFailures, err):
		default: // already told
		}
	}
	return err
}

func (l *sealedLog) context(e *raft.Log) []byte {
	b := l.sealer.context(17)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	return append(b, byte(e.Type))
}

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	floorFile = "floor"
	// floorEvery is how often the floor is written, if it moved.
	floorEvery = time.Second
)

// floor remembers, beside the log, up to where the log goes at least. The log itself cannot tell damage in its newest file from a write that the
// machine's end cut short: it drops everything from there on without a word, and with it entries that others count this member's word for.
// The floor is a hint and not synced: it is only ever too low, because entries are on the disk before it moves.
type floor struct {
	path string

	mu      sync.Mutex
	index   uint64 // of the newest entry that is on the disk
	written uint64
}

func newFloor(dir string) *floor { return &floor{path: filepath.Join(dir, floorFile)} }

// check refuses a directory that holds less than it held: last is the newest entry or snapshot in it.
func (f *floor) check(last uint64) error {
	raw, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	held, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return nil //nolint:nilerr // the machine ended while it was written: it was only a hint
	}
	if last < held {
		return fmt.Errorf("%w: %w", errUnreadable, &entryError{last + 1, fmt.Errorf("the log ends before it, and has held at least index %d: the file is damaged or was cut", held)})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index, f.written = last, held
	return nil
}

// raise says that entries up to an index are on the disk.
func (f *floor) raise(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index = index
}

// lower is called before entries from an index on are taken back, as raft does with what a leader that lost never committed.
func (f *floor) lower(index uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index = min(f.index, index)
	if f.written <= index {
		return nil
	}
	return f.write()
}

// save writes the floor if it moved.
func (f *floor) save() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.index == f.written {
		return nil
	}
	return f.write()
}

func (f *floor) write() error {
	if err := os.WriteFile(f.path+".new", []byte(strconv.FormatUint(f.index, 10)), 0o600); err != nil {
		return fmt.Errorf("write how far the log goes: %w", err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		return fmt.Errorf("write how far the log goes: %w", err)
	}
	f.written = f.index
	return nil
}

// keep saves the floor until ctx ends. A disk that takes no floor is full, which others see to.
func (f *floor) keep(ctx context.Context) {
	tick := time.NewTicker(floorEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = f.save() // the one before stays
		}
	}
}

// flooredLog tells the floor what becomes of the log.
type flooredLog struct {
	raft.LogStore

	floor *floor
}

// IsMonotonic tells raft that the store takes no gaps, which embedding an interface would hide.
func (l *flooredLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog writes an entry.
func (l *flooredLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs writes entries.
func (l *flooredLog) StoreLogs(entries []*raft.Log) error {
	if err := l.LogStore.StoreLogs(entries); err != nil {
		return err
	}
	if len(entries) > 0 {
		l.floor.raise(entries[len(entries)-1].Index)
	}
	return nil
}

// DeleteRange drops entries: old ones, or new ones that do not count.
func (l *flooredLog) DeleteRange(first, last uint64) error {
	newest, err := l.LastIndex()
	if err != nil {
		return err
	}
	if last >= newest && first > 0 {
		if err := l.floor.lower(first - 1); err != nil {
			return err
		}
	}
	return l.LogStore.DeleteRange(first, last)
}

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	wal "github.com/hashicorp/raft-wal"
)

// ErrDamaged is returned by Run when the log or the snapshots of this member do not open.
var ErrDamaged = errors.New("cluster: the data directory is damaged")

// errUnreadable marks an error of reading what is on the disk.
var errUnreadable = errors.New("not readable")

// entryError is an entry that does not open.
type entryError struct {
	index uint64
	err   error
}

func (e *entryError) Error() string { return fmt.Sprintf("log entry %d: %v", e.index, e.err) }
func (e *entryError) Unwrap() error { return e.err }

// explain says of an error of reading the log or the snapshots in dir where it is, and what to do. Starting with what is left could lose
// entries that were acknowledged because this member had them.
func explain(dir, id string, err error) error {
	if !errors.Is(err, errUnreadable) {
		return err
	}
	where := filepath.Join(dir, walDir)
	var entry *entryError
	if errors.As(err, &entry) {
		where = segmentOf(where, entry.index)
	}
	return fmt.Errorf("%w: %s: %w: do not delete anything in it and do not start it with what is left: while the others have a quorum, run "+
		"`musterctl operator raft remove %s` and let a coordinator of another name join; otherwise bring back the directory from a copy", ErrDamaged, where, err, id)
}

// segmentOf returns the file of the log that holds an entry: its name begins with the index of its first one.
func segmentOf(dir string, index uint64) string {
	files, err := os.ReadDir(dir)
	if err != nil {
		return dir
	}
	found := dir
	for _, f := range files { // in order of their names
		first, _, ok := strings.Cut(f.Name(), "-")
		n, err := strconv.ParseUint(first, 10, 64)
		if ok && err == nil && n <= index {
			found = filepath.Join(dir, f.Name())
		}
	}
	return found
}

// openWAL opens the log, and turns a panic of the store about files that it cannot read into an error.
func openWAL(dir string, open func() (*wal.WAL, error)) (w *wal.WAL, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: open the raft log: %v", errUnreadable, p)
		}
	}()
	if w, err = open(); err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil, fmt.Errorf("%w: open the raft log in %s: %w", ErrDiskFull, dir, err)
		}
		return nil, fmt.Errorf("%w: open the raft log: %w", errUnreadable, err)
	}
	return w, nil
}

package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/spheroseg/muster/internal/crashpoint"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	// maxDeferred is the number of records that may wait for the next write that somebody waits for.
	maxDeferred = 1000
	// rewriteChunk is the number of records in one frame of a rewritten file.
	rewriteChunk = 1000
)

// file is what the journal needs of an *os.File.
type file interface {
	Write([]byte) (int, error)
	Sync() error
	Close() error
}

// journal is the file of the ledger. A write is followed by a sync before the next write, so that a crash tears one frame at most.
// After an error of the file it is unusable: what a failed fsync left on the disk is not known until the file is read again.
type journal struct {
	path         string
	open         func(path string) (file, error)
	compactAbove int64

	mu   sync.Mutex // guards next only, and is never held during I/O.
	next *batch     // takes records until it is flushed; nil if there are none.

	flush sync.Mutex // held during I/O; taken before mu.
	file  file
	size  int64
	limit int64 // of size; above it the journal wants to be compacted.
	err   error // what made the journal unusable.
}

// batch is what one write and one sync make durable, for everybody who waits.
type batch struct {
	records []*agentv1.LedgerRecord
	flushed bool
	err     error
}

// openJournal reads the file, or creates it, cuts a torn tail off and returns the records. cut is the number of bytes cut off.
func openJournal(path string, t tuning) (j *journal, records []*agentv1.LedgerRecord, cut int64, err error) {
	j = &journal{path: path, open: t.open, compactAbove: t.compactAbove, limit: t.compactAbove}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j, nil, 0, j.rewrite(nil)
	case err != nil:
		return nil, nil, 0, fmt.Errorf("read the ledger: %w", err)
	}
	records, intact, err := parseFile(b)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("ledger %s: %w. The operations of this host cannot be told apart without it: restore the file "+
			"or, if no run is under way on this host, move it away", path, err)
	}
	if cut = int64(len(b) - intact); cut > 0 {
		if err := truncate(path, int64(intact)); err != nil {
			return nil, nil, 0, fmt.Errorf("cut the torn end of the ledger off: %w", err)
		}
	}
	if j.file, err = t.open(path); err != nil {
		return nil, nil, 0, fmt.Errorf("open the ledger: %w", err)
	}
	j.size = int64(intact)
	return j, records, cut, nil
}

// commit makes the records durable, together with those of everybody who calls it meanwhile.
func (j *journal) commit(records ...*agentv1.LedgerRecord) error {
	j.mu.Lock()
	if j.next == nil {
		j.next = &batch{}
	}
	b := j.next
	b.records = append(b.records, records...)
	j.mu.Unlock()

	j.flush.Lock()
	defer j.flush.Unlock()
	if !b.flushed { // nobody who was ahead in the queue has taken it along.
		j.mu.Lock()
		j.next = nil
		j.mu.Unlock()
		b.flushed, b.err = true, j.write(b.records)
	}
	return b.err
}

// later writes the records with the next commit, or drops them in a crash.
func (j *journal) later(records ...*agentv1.LedgerRecord) error {
	j.mu.Lock()
	if j.next == nil {
		j.next = &batch{}
	}
	j.next.records = append(j.next.records, records...)
	full := len(j.next.records) > maxDeferred
	j.mu.Unlock()
	if full {
		return j.commit()
	}
	return nil
}

// write appends one frame and syncs it. j.flush is held.
func (j *journal) write(records []*agentv1.LedgerRecord) error {
	if j.err != nil {
		return j.err
	}
	if len(records) == 0 {
		return nil
	}
	frame, err := appendFrame(nil, records)
	if err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.LedgerBefore)
	n, err := j.file.Write(frame)
	j.size += int64(n)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		j.err = fmt.Errorf("write the ledger %s: %w", j.path, err)
		return j.err
	}
	crashpoint.Hit(crashpoint.LedgerAfter)
	return nil
}

// compact replaces the file by the records that keep returns, if the file has outgrown its limit or now is set. While keep runs nothing
// is written, and whatever has been written was known to the caller before it was.
func (j *journal) compact(now bool, keep func() []*agentv1.LedgerRecord) error {
	j.flush.Lock()
	defer j.flush.Unlock()
	if j.err != nil || !now && j.size <= j.limit {
		return j.err
	}
	return j.rewrite(keep())
}

// rewrite puts a file with the records in the place of the present one, and opens it. j.flush is held, or nobody else knows j yet.
func (j *journal) rewrite(records []*agentv1.LedgerRecord) error {
	b := []byte(fileMagic)
	for len(records) > 0 {
		var err error
		n := min(len(records), rewriteChunk)
		if b, err = appendFrame(b, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	temp := j.path + ".new"
	if err := writeSynced(temp, b); err != nil {
		return fmt.Errorf("write the compacted ledger: %w", err)
	}
	if err := os.Rename(temp, j.path); err != nil {
		return fmt.Errorf("replace the ledger: %w", err)
	}
	// From here on the old file has no name: the journal goes on with the new one or not at all.
	next, err := j.open(j.path)
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
	}
	if next != nil {
		j.file = next
	}
	if err != nil {
		j.err = fmt.Errorf("open the compacted ledger %s: %w", j.path, err)
		return j.err
	}
	j.size = int64(len(b))
	j.limit = max(j.compactAbove, 2*j.size)
	return nil
}

// close writes what is left to write and closes the file.
func (j *journal) close() error {
	err := j.commit()
	j.flush.Lock()
	defer j.flush.Unlock()
	if j.err == nil {
		j.err = ErrClosed
	}
	return errors.Join(err, j.file.Close())
}

// syncFile is an *os.File whose Sync leaves out what reading the data back does not need (fdatasync).
type syncFile struct{ *os.File }

// Sync makes what was written durable.
func (f syncFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// openFile opens a ledger file for appending.
func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	return syncFile{f}, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err = f.Truncate(size); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

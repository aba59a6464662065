package crashpoint

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Table is the mapped file: what the program counts, and what the test arms.
type Table struct {
	cells *[2 * Points]atomic.Uint64
}

// Open maps the file, and makes it if it is not there.
func Open(path string) (*Table, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("crash points: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(FileSize)); err != nil {
		return nil, fmt.Errorf("crash points: %w", err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, FileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map crash points %s: %w", path, err)
	}
	return &Table{cells: (*[2 * Points]atomic.Uint64)(unsafe.Pointer(&b[0]))}, nil
}

// Close unmaps the file.
func (t *Table) Close() error {
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(t.cells)), FileSize))
}

// Reset sets all counts to 0 and disarms all points.
func (t *Table) Reset() {
	for i := range t.cells {
		t.cells[i].Store(0)
	}
}

// Arm makes the n-th pass of the point, counted from the last Reset, the process's last.
func (t *Table) Arm(p Point, n uint64) { t.cells[2*p+1].Store(n) }

// Count of the passes since the last Reset.
func (t *Table) Count(p Point) uint64 { return t.cells[2*p].Load() }

// pass counts a pass and says whether it is the last.
func (t *Table) pass(p Point) bool {
	return t.cells[2*p].Add(1) == t.cells[2*p+1].Load()
}

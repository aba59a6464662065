package ledger

import (
	"os"
	"time"
)

// Seams for the external tests.
type (
	// File is what the ledger does to its file.
	File = file
	// Tuning replaces the ledger's limits; zero fields keep them.
	Tuning struct {
		Wrap         func(File) File
		CompactAbove int64
		KeepAge      time.Duration
		KeepRecent   time.Duration
		KeepCount    int
	}
)

// OpenTuned opens a ledger with other limits.
func OpenTuned(o Options, t Tuning) (*Ledger, error) {
	d := defaults()
	if t.Wrap != nil {
		d.open = func(path string) (file, error) {
			f, err := openFile(path)
			if err != nil {
				return nil, err
			}
			return t.Wrap(f), nil
		}
	}
	if t.CompactAbove > 0 {
		d.compactAbove = t.CompactAbove
	}
	if t.KeepAge > 0 {
		d.keepAge = t.KeepAge
	}
	if t.KeepRecent > 0 {
		d.keepRecent = t.KeepRecent
	}
	if t.KeepCount > 0 {
		d.keepCount = t.KeepCount
	}
	return open(o, d)
}

// FrameOffsets returns where the frames of a ledger file start, and where the last one ends.
func FrameOffsets(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	offsets := []int{len(fileMagic)}
	for at := len(fileMagic); at < len(b); {
		_, size, err := parseFrame(b[at:])
		if err != nil {
			return nil, err
		}
		at += size
		offsets = append(offsets, at)
	}
	return offsets, nil
}

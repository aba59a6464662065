package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// ErrDiskFull is returned by New and Run while the disk of the data directory has too little room.
var ErrDiskFull = errors.New("cluster: the disk is nearly full")

// checkRoomEvery is how often a member looks at its disk.
const checkRoomEvery = time.Second

// checkRoom refuses a disk with less than MinFree. A member must stop while it can still write down its vote and its term: what comes after
// is left to chance.
func (c *Cluster) checkRoom() error {
	if c.opts.Memory != nil {
		return nil
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(c.opts.DataDir, &fs); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", c.opts.DataDir, err)
	}
	free := fs.Bavail * uint64(fs.Bsize) //nolint:gosec // the size of a block is not negative.
	if free >= c.opts.MinFree {
		return nil
	}
	return fmt.Errorf("%w: %s has %d MiB free, a coordinator needs %d MiB for its log and its snapshots: make room and start it again; "+
		"nothing that was acknowledged is lost", ErrDiskFull, c.opts.DataDir, free>>20, c.opts.MinFree>>20)
}

// awaitFull returns nil when ctx ends, and ErrDiskFull when the disk is nearly full.
func (c *Cluster) awaitFull(ctx context.Context) error {
	tick := time.NewTicker(checkRoomEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := c.checkRoom(); err != nil {
				return err
			}
		}
	}
}

// stable is raft's store of votes and terms.
type stable struct {
	raft.StableStore

	fatal chan error
}

// Set writes a vote. Raft gives no vote that could not be written.
func (s *stable) Set(key, value []byte) error {
	err := s.StableStore.Set(key, value)
	s.tell(err)
	return err
}

// SetUint64 writes a term. Raft panics if that fails, which would end the program in the middle of everything with a page of goroutines:
// instead raft's own goroutine ends here, so that this member takes part in nothing any more, and Run tells why.
func (s *stable) SetUint64(key []byte, value uint64) error {
	if err := s.StableStore.SetUint64(key, value); err != nil {
		s.tell(err)
		runtime.Goexit()
	}
	return nil
}

func (s *stable) tell(err error) {
	if err == nil {
		return
	}
	select {
	case s.fatal <- fmt.Errorf("write vote or term: %w", err):
	default: // already told
	}
}

package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/spheroseg/muster/internal/durable"
)

// ErrSealKey is returned when the data directory was sealed with another key.
var ErrSealKey = errors.New("cluster: wrong seal key")

// ErrWrongCluster is returned when the data directory belongs to another cluster or to another member.
var ErrWrongCluster = errors.New("cluster: data directory belongs to somebody else")

const (
	raftDir    = "raft"
	walDir     = "wal"
	memberFile = "member.json"
	lockFile   = "lock"

	memberFormat = 1
	logCacheSize = 512
	snapshotKept = 2
)

// member is the file that says whose directory this is. Its check opens only with the right key.
type member struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
	ID        string `json:"id"`
	Check     []byte `json:"check"`
}

func (s *sealer) memberContext(id string) []byte {
	b := s.context(4 + len(id))
	b = binary.BigEndian.AppendUint32(b, uint32(len(id)))
	return append(b, id...)
}

// claimDir makes dir the directory of this member, or checks that it is, before anything in it is opened.
func claimDir(dir, id string, s *sealer) error {
	path := filepath.Join(dir, memberFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, walDir)); err == nil {
			return fmt.Errorf("%w: %s holds a raft log but no %s; put the file back", ErrWrongCluster, dir, memberFile)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the raft directory: %w", err)
		}
		m := member{Format: memberFormat, ClusterID: s.cluster, ID: id, Check: seal(s.check, []byte(id), s.memberContext(id))}
		raw, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		return durable.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("read whose directory this is: %w", err)
	}
	var m member
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	switch {
	case m.Format != memberFormat:
		return fmt.Errorf("%s has format %d, this program knows %d: use a newer program", path, m.Format, memberFormat)
	case m.ClusterID != s.cluster:
		return fmt.Errorf("%w: %s is of cluster %q, not %q", ErrWrongCluster, dir, m.ClusterID, s.cluster)
	case m.ID != id:
		return fmt.Errorf("%w: %s is of member %q, not %q", ErrWrongCluster, dir, m.ID, id)
	}
	if _, err := unseal(s.check, m.Check, s.memberContext(id)); err != nil {
		return fmt.Errorf("%w: %s was sealed with another key; give the key that it was created with", ErrSealKey, dir)
	}
	return nil
}

// storage is what a member has open on disk.
type storage struct {
	lock      *os.File
	wal       store
	sealed    *sealedLog
	floor     *floor
	stable    *stable
	log       raft.LogStore
	snapshots raft.SnapshotStore
}

// store is where raft keeps its log and what it must not forget.
type store interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// openStorage opens dir, which claimDir has checked. With a memory, only its lock is in the directory.
func openStorage(dir string, memory *Memory, s *sealer, logger *slog.Logger) (_ *storage, err error) {
	st := &storage{}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.close())
		}
	}()
	if st.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	hl := newHCLog(logger)
	if memory != nil {
		st.wal, st.snapshots = memory, &sealedSnapshots{inner: &memory.snapshots, sealer: s}
		return st, st.seal(s)
	}
	if err := os.MkdirAll(filepath.Join(dir, walDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the log directory: %w", err)
	}
	opened, err := openWAL(dir, func() (*wal.WAL, error) { return wal.Open(filepath.Join(dir, walDir), wal.WithLogger(hl.Named("wal"))) })
	if err != nil {
		return nil, err
	}
	st.wal = opened
	st.floor = newFloor(dir)
	if err := st.seal(s); err != nil {
		return nil, err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotKept, hl.Named("snapshot"))
	if err != nil {
		return nil, fmt.Errorf("open the snapshots in %s: %w", dir, err)
	}
	st.snapshots = &sealedSnapshots{inner: files, sealer: s}
	newest, err := st.newest()
	if err != nil {
		return nil, err
	}
	return st, st.floor.check(newest)
}

// newest index that the log or a snapshot has.
func (st *storage) newest() (uint64, error) {
	last, err := st.wal.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("%w: find the last entry: %w", errUnreadable, err)
	}
	snapshots, err := st.snapshots.List()
	if err != nil {
		return 0, fmt.Errorf("%w: list the snapshots: %w", errUnreadable, err)
	}
	if len(snapshots) > 0 {
		last = max(last, snapshots[0].Index)
	}
	return last, nil
}

// seal puts the encryption and the cache in front of the log.
func (st *storage) seal(s *sealer) (err error) {
	var log raft.LogStore = st.wal
	if st.floor != nil {
		log = &flooredLog{LogStore: st.wal, floor: st.floor}
	}
	st.sealed = newSealedLog(log, s)
	st.stable = &stable{StableStore: st.wal, fatal: st.sealed.fatal}
	if st.log, err = raft.NewLogCache(logCacheSize, st.sealed); err != nil {
		return fmt.Errorf("make the log cache: %w", err)
	}
	return nil
}

func (st *storage) close() error {
	var errs []error
	if st.floor != nil && st.log != nil {
		_ = st.floor.save() // a hint: the one before does, too
	}
	if st.wal != nil {
		errs = append(errs, st.wal.Close())
	}
	if st.lock != nil {
		errs = append(errs, st.lock.Close())
	}
	return errors.Join(errs...)
}

// lockDir keeps a second process out; without it that one would hang in the log store for ever.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another process: stop it first: %w", dir, err), f.Close())
	}
	return f, nil
}

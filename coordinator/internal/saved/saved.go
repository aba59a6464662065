// Package saved owns what is in the file of a saved snapshot, and what becomes of it when it is restored: what comes back, and what of the
// present stays. The form of the file is package archive's, and carrying the result to all members package cluster's.
package saved

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/archive"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ErrInvalid is returned for a file that cannot be restored here, whatever the state of the cluster.
var ErrInvalid = errors.New("saved: not a snapshot of this cluster")

// recordLimit is the largest record that is read.
const recordLimit = 64 << 20

// sizeLimit of the plain text: it is held in memory.
const sizeLimit = 2 << 30

// About says who saves.
type About struct {
	// By is the coordinator, Version its program, Term that it knows.
	By, Version string
	Term        uint64
	// At is its clock.
	At time.Time
}

// Save writes the state as a file, and returns the file's SHA-256.
func Save(to io.Writer, s *state.State, about About) (sum []byte, err error) {
	plain, err := freeze(s)
	if err != nil {
		return nil, err
	}
	head, records, err := decode(plain)
	if err != nil {
		return nil, err
	}
	meta := s.View().Meta()
	key, err := keyOf(meta)
	if err != nil {
		return nil, err
	}
	w, err := archive.NewWriter(to, key, archive.Header{
		ClusterID: meta.GetClusterId(), ClusterName: meta.GetClusterName(), Index: head.GetIndex(), Term: about.Term, SavedAt: about.At.UTC(), SavedBy: about.By,
		Version: about.Version,
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	return w.Close(counts(records))
}

// keyOf the cluster's files comes from the key of its root: every coordinator of the cluster has it, and nobody else.
func keyOf(meta *raftv1.Meta) ([]byte, error) {
	secret := meta.GetAuthority().GetRoot().GetPrivateKey()
	if len(secret) == 0 {
		return nil, errors.New("this coordinator has no state of a cluster yet")
	}
	return archive.Key(secret, meta.GetClusterId())
}

func freeze(s *state.State) ([]byte, error) {
	frozen, err := s.Snapshot()
	if err != nil {
		return nil, err
	}
	var plain bytes.Buffer
	_, err = frozen.WriteTo(&plain)
	return plain.Bytes(), err
}

// decode returns the records of a snapshot without its trailer.
func decode(plain []byte) (*raftv1.SnapshotHeader, []*raftv1.SnapshotRecord, error) {
	in := bufio.NewReader(bytes.NewReader(plain))
	options := protodelim.UnmarshalOptions{MaxSize: recordLimit}
	head := &raftv1.SnapshotHeader{}
	if err := options.UnmarshalFrom(in, head); err != nil {
		return nil, nil, fmt.Errorf("read the header of the state: %w", err)
	}
	var records []*raftv1.SnapshotRecord
	for {
		next := &raftv1.SnapshotRecord{}
		if err := options.UnmarshalFrom(in, next); err != nil {
			return nil, nil, fmt.Errorf("read record %d of the state: %w", len(records), err)
		}
		if next.GetTrailer() != nil {
			return head, records, nil
		}
		records = append(records, next)
	}
}

// encode is the reverse of decode, with a trailer that proves it.
func encode(head *raftv1.SnapshotHeader, records []*raftv1.SnapshotRecord) ([]byte, error) {
	var out bytes.Buffer
	options := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	if _, err := options.MarshalTo(&out, head); err != nil {
		return nil, err
	}
	for _, record := range records {
		if _, err := options.MarshalTo(&out, record); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(out.Bytes())
	trailer := &raftv1.SnapshotTrailer{Records: uint64(len(records)), Sha256: sum[:]}
	_, err := options.MarshalTo(&out, &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Trailer{Trailer: trailer}})
	return out.Bytes(), err
}

// kind of a record by the name of its field.
func kind(record *raftv1.SnapshotRecord) string {
	m := record.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("row"))
	if field == nil {
		return ""
	}
	return string(field.Name())
}

func counts(records []*raftv1.SnapshotRecord) map[string]uint64 {
	found := map[string]uint64{}
	for _, record := range records {
		found[kind(record)]++
	}
	return found
}

// Snapshot is a file that was read and proved.
type Snapshot struct {
	// Info of the file.
	Info archive.Info

	head    *raftv1.SnapshotHeader
	records []*raftv1.SnapshotRecord
}

// Open reads a file of the cluster that the state is of to its end, and proves it. ErrInvalid says that it is not one, or damaged.
func Open(from io.Reader, s *state.State) (*Snapshot, error) {
	r, err := archive.NewReader(from)
	if err != nil {
		return nil, invalid(err)
	}
	meta := s.View().Meta()
	if id := r.Header().ClusterID; id != meta.GetClusterId() {
		return nil, fmt.Errorf("%w: it is of the cluster %q, this one is %q: a snapshot is restored only into the cluster that it was saved from", ErrInvalid, id, meta.GetClusterId())
	}
	key, err := keyOf(meta)
	if err != nil {
		return nil, err
	}
	if err := r.Unlock(key); err != nil {
		return nil, invalid(err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, sizeLimit+1))
	if err != nil {
		return nil, invalid(err)
	}
	if len(plain) > sizeLimit {
		return nil, fmt.Errorf("%w: it holds more than %d bytes", ErrInvalid, sizeLimit)
	}
	// The state's own reader knows better than anybody what it can read.
	if err := state.New().Restore(bytes.NewReader(plain)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	snapshot := &Snapshot{Info: r.Info()}
	if snapshot.head, snapshot.records, err = decode(plain); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return snapshot, nil
}

// invalid marks the archive's word on a file; errors of the way there stay as they are.
func invalid(err error) error {
	if errors.Is(err, archive.ErrInvalid) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return err
}

// Restored is a state that is ready to replace the present one.
type Restored struct {
	// Data is a snapshot of the state.
	Data []byte
	// Counts of its records by kind.
	Counts map[string]uint64
	// Waiting are the runs that the file holds as active. They wait for a human: what they did after it was saved is not known.
	Waiting []string
}

// ErrActiveRuns is returned while runs have not ended: what they are doing to hosts would be forgotten.
var ErrActiveRuns = errors.New("saved: runs have not ended")

// Merge makes the state that a restore at an index leaves. Stacks, releases, runs, secrets and procedures come from the file. Who belongs to the
// cluster is the present's: a coordinator, host or person that joined since stays, one that was evicted stays evicted, and no token that was used
// can be used again. So do the requests that were seen, the engine's epoch and the clock, which must not go back.
func (s *Snapshot) Merge(present *state.State, index uint64, now time.Time) (*Restored, error) {
	if active := present.View().ActiveRuns(); len(active) > 0 {
		return nil, fmt.Errorf("%w: %s: wait for them, or cancel them", ErrActiveRuns, active[0].GetId())
	}
	plain, err := freeze(present)
	if err != nil {
		return nil, err
	}
	_, kept, err := decode(plain)
	if err != nil {
		return nil, err
	}
	restored := &Restored{}
	var records []*raftv1.SnapshotRecord
	for _, record := range kept {
		if ofThePresent(record) {
			if meta := record.GetMeta(); meta != nil {
				meta.Index = index
			}
			records = append(records, record)
		}
	}
	for _, record := range s.records {
		if ofThePresent(record) {
			continue
		}
		record = proto.CloneOf(record)
		if run := record.GetRun(); run != nil && rest(run, now) {
			restored.Waiting = append(restored.Waiting, run.GetId())
		}
		records = append(records, record)
	}
	head := &raftv1.SnapshotHeader{Format: s.head.GetFormat(), ClusterId: s.head.GetClusterId(), Index: index}
	if restored.Data, err = encode(head, records); err != nil {
		return nil, err
	}
	restored.Counts = counts(records)
	// What every member must be able to restore is tried here: a member that cannot stops for ever.
	if err := state.New().Restore(bytes.NewReader(restored.Data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return restored, nil
}

// ofThePresent says that a record is not taken from the file.
func ofThePresent(record *raftv1.SnapshotRecord) bool {
	switch record.GetRow().(type) {
	case *raftv1.SnapshotRecord_Meta, *raftv1.SnapshotRecord_Identity, *raftv1.SnapshotRecord_Token, *raftv1.SnapshotRecord_Host, *raftv1.SnapshotRecord_Request:
		return true
	}
	return false
}

// rest lets an active run wait for a human; false for one that has ended.
func rest(run *coordinatorv1.Run, now time.Time) bool {
	cause := "restored from a saved snapshot: look at the hosts before you resume or cancel it"
	switch run.GetState() {
	case coordinatorv1.RunState_RUN_STATE_RUNNING:
		run.State, run.Cause, run.PausedAt = coordinatorv1.RunState_RUN_STATE_PAUSED, cause, timestamppb.New(now)
	case coordinatorv1.RunState_RUN_STATE_ROLLING_BACK:
		run.State, run.Cause, run.Deadline = coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN, cause, nil
	case coordinatorv1.RunState_RUN_STATE_PAUSED, coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
	default:
		return false
	}
	return true
}

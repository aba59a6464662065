package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/durable"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// Survey is what a data directory holds.
type Survey struct {
	// ClusterID and ID of the member.
	ClusterID, ID string
	// Term that the member knows.
	Term uint64
	// LastIndex and LastTerm of its last entry: of several survivors the one with the highest term, then index, lost the least.
	LastIndex, LastTerm uint64
	// FirstIndex of its log, and the index of its newest Snapshot; 0 for none.
	FirstIndex, Snapshot uint64
	// Members by the newest configuration in it.
	Members []Peer
}

// Inspect reads the data directory of a member that does not run, to the last entry, and says what it holds. It changes nothing. DataDir,
// ClusterID, ID and SealKey of the options are used.
func Inspect(o Options) (survey Survey, err error) {
	s, st, err := reopen(&o)
	if err != nil {
		return Survey{}, err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	survey, err = st.survey(s, o.ID)
	return survey, explain(filepath.Join(o.DataDir, raftDir), o.ID, err)
}

// reopen opens a directory that is a member's already, and of which nobody else has taken the lock.
func reopen(o *Options) (*sealer, *storage, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Join(o.DataDir, raftDir)
	if _, err := os.Stat(filepath.Join(dir, memberFile)); err != nil {
		return nil, nil, fmt.Errorf("%s holds no member of a cluster: %w", o.DataDir, err)
	}
	s, err := newSealer(o.ClusterID, o.SealKey)
	if err != nil {
		return nil, nil, err
	}
	if err := claimDir(dir, o.ID, s); err != nil {
		return nil, nil, err
	}
	st, err := openStorage(dir, nil, s, o.Logger)
	if err != nil {
		return nil, nil, explain(dir, o.ID, err)
	}
	return s, st, nil
}

// survey reads everything that is in the storage.
func (st *storage) survey(s *sealer, id string) (Survey, error) {
	survey := Survey{ClusterID: s.cluster, ID: id}
	fail := func(what string, err error) (Survey, error) {
		return survey, fmt.Errorf("%w: %s: %w", errUnreadable, what, err)
	}
	var err error
	if survey.Term, err = st.wal.GetUint64([]byte("CurrentTerm")); err != nil {
		return fail("read the term", err)
	}
	snapshots, err := st.snapshots.List()
	if err != nil {
		return fail("list the snapshots", err)
	}
	var members raft.Configuration
	if len(snapshots) > 0 {
		newest := snapshots[0]
		_, whole, err := st.snapshots.Open(newest.ID)
		if err != nil {
			return fail("open the newest snapshot", err)
		}
		if err := whole.Close(); err != nil {
			return fail("close the newest snapshot", err)
		}
		survey.Snapshot, survey.LastIndex, survey.LastTerm, members = newest.Index, newest.Index, newest.Term, newest.Configuration
	}
	if survey.FirstIndex, err = st.wal.FirstIndex(); err != nil {
		return fail("find the first entry", err)
	}
	last, err := st.wal.LastIndex()
	if err != nil {
		return fail("find the last entry", err)
	}
	if survey.FirstIndex > survey.Snapshot+1 {
		return survey, fmt.Errorf("%w: the log begins at %d, and no snapshot that opens goes that far", errUnreadable, survey.FirstIndex)
	}
	for index := survey.FirstIndex; index != 0 && index <= last; index++ {
		var entry raft.Log
		if err := st.sealed.GetLog(index, &entry); err != nil {
			return fail("read the log", err)
		}
		if entry.Type == raft.LogConfiguration && index > survey.Snapshot {
			members = raft.DecodeConfiguration(entry.Data)
		}
		if index > survey.LastIndex {
			survey.LastIndex, survey.LastTerm = entry.Index, entry.Term
		}
	}
	for _, server := range members.Servers {
		survey.Members = append(survey.Members, Peer{ID: string(server.ID), Address: string(server.Address), Voter: server.Suffrage == raft.Voter})
	}
	return survey, nil
}

// Recover makes a member that does not run the only one of its cluster, after the others were lost for good. It takes every entry of this
// member's log for committed: what the others had and this one had not is lost, and what this one had alone counts from now on. The raft
// folder is copied first, and the name of the copy returned. more returns commands that are applied, in order, to the state that comes out:
// it may look at the FSM of the options, which is of no use afterwards. Its error ends the recovery before anything but the copy was made.
func Recover(o Options, more func() ([]*raftv1.Command, error)) (survey Survey, copied string, err error) {
	if err := o.validate(); err != nil {
		return Survey{}, "", err
	}
	s, st, err := reopen(&o)
	if err != nil {
		return Survey{}, "", err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	dir := filepath.Join(o.DataDir, raftDir)
	if survey, err = st.survey(s, o.ID); err != nil {
		return survey, "", explain(dir, o.ID, err)
	}
	copied = dir + ".before-recovery-" + o.Now().UTC().Format("20060102T150405Z")
	if err := copyDir(copied, dir); err != nil {
		return survey, copied, err
	}
	conf := raftConfig(&o)
	conf.Logger = newHCLog(slog.New(slog.DiscardHandler))
	_, transport := raft.NewInmemTransport(raft.ServerAddress(o.Address))
	alone := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(o.Address)}}}
	fsm := &recovering{adapter: adapter{o.FSM}, more: more, now: o.Now}
	if err := recoverRaft(conf, fsm, st, transport, alone); err != nil {
		return survey, copied, fmt.Errorf("recover: %w; the directory as it was is in %s", err, copied)
	}
	if err := os.Remove(filepath.Join(dir, removedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return survey, copied, err
	}
	return survey, copied, durable.SyncDir(dir)
}

// recoverRaft turns a panic about an entry that cannot be applied into an error.
func recoverRaft(conf *raft.Config, fsm raft.FSM, st *storage, transport raft.Transport, members raft.Configuration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return raft.RecoverCluster(conf, fsm, st.log, st.wal, st.snapshots, transport, members)
}

// recovering is an FSM to which commands are applied before it is written out.
type recovering struct {
	adapter

	more func() ([]*raftv1.Command, error)
	now  func() time.Time
}

// Snapshot applies the commands, and freezes what comes out. They have the index of the last entry: they are part of what recovering it means.
func (r *recovering) Snapshot() (raft.FSMSnapshot, error) {
	commands, err := r.more()
	if err != nil {
		return nil, err
	}
	for _, cmd := range commands {
		cmd = proto.CloneOf(cmd)
		cmd.Version, cmd.Now = commandVersion, timestamppb.New(r.now())
		if refusal := r.fsm.Apply(r.fsm.Index(), cmd).GetError(); refusal != nil {
			return nil, errors.New(refusal.GetMessage())
		}
	}
	return r.adapter.Snapshot()
}

// copyDir copies a directory and makes the copy durable.
func copyDir(to, from string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("copy %s before anything is changed: %w", from, err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

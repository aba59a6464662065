package cluster

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/crashpoint"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// commandVersion is the newest version of commands that this program knows.
const commandVersion = 1

// adapter makes an FSM a raft.FSM.
type adapter struct {
	fsm FSM
}

// Apply decodes and applies a command. One that this program does not understand ends the process: a member that skips what others
// apply would answer differently from then on, for ever. raft calls Apply in a goroutine of its own, so nothing recovers the panic.
func (a adapter) Apply(entry *raft.Log) any {
	cmd := decode(entry)
	crashpoint.Hit(crashpoint.ApplyBefore)
	result := a.fsm.Apply(entry.Index, cmd)
	crashpoint.Hit(crashpoint.ApplyAfter)
	return answer(result)
}

// ApplyBatch applies the commands of entries that were committed together. Changes of the members are among the entries, and none of the FSM's business.
func (a adapter) ApplyBatch(entries []*raft.Log) []any {
	results := make([]any, len(entries))
	batcher, ok := a.fsm.(BatchFSM)
	if !ok {
		for i, e := range entries {
			if e.Type == raft.LogCommand {
				results[i] = a.Apply(e)
			}
		}
		return results
	}
	var (
		places   []int
		indexes  []uint64
		commands []*raftv1.Command
	)
	for i, e := range entries {
		if e.Type == raft.LogCommand {
			places, indexes, commands = append(places, i), append(indexes, e.Index), append(commands, decode(e))
			crashpoint.Hit(crashpoint.ApplyBefore)
		}
	}
	for i, result := range batcher.ApplyBatch(indexes, commands) {
		results[places[i]] = answer(result)
		crashpoint.Hit(crashpoint.ApplyAfter)
	}
	return results
}

func decode(entry *raft.Log) *raftv1.Command {
	var cmd raftv1.Command
	if err := proto.Unmarshal(entry.Data, &cmd); err != nil {
		panic(fmt.Sprintf("raft log entry %d is not a command (%v): the log is damaged or of another program; restore this member's data directory or join it anew",
			entry.Index, err))
	}
	if err := checkCommand(&cmd); err != nil {
		panic(fmt.Sprintf("raft log entry %d: %v: it was written by a newer coordinator; upgrade this one, it must not skip the entry", entry.Index, err))
	}
	return &cmd
}

func answer(result *raftv1.Result) *raftv1.Result {
	if result == nil {
		return &raftv1.Result{}
	}
	return result
}

// checkCommand refuses what Apply would have to stop at.
func checkCommand(cmd *raftv1.Command) error {
	if v := cmd.GetVersion(); v != commandVersion {
		return fmt.Errorf("command has version %d, this program knows %d", v, commandVersion)
	}
	if cmd.GetOp() == nil {
		return errors.New("command has no operation that this program knows")
	}
	return nil
}

// Snapshot freezes the state.
func (a adapter) Snapshot() (raft.FSMSnapshot, error) {
	state, err := a.fsm.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("freeze the state: %w", err)
	}
	return frozen{state}, nil
}

// Restore replaces the state by that of a snapshot.
func (a adapter) Restore(r io.ReadCloser) error {
	if err := a.fsm.Restore(r); err != nil {
		return fmt.Errorf("restore the state: %w", err)
	}
	return nil
}

// frozen is a state to be written out.
type frozen struct {
	state io.WriterTo
}

// Persist writes the state; a snapshot that could not be written whole is thrown away.
func (f frozen) Persist(sink raft.SnapshotSink) error {
	if _, err := f.state.WriteTo(sink); err != nil {
		return errors.Join(fmt.Errorf("write the snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release has nothing to let go of: the state is garbage once it is written.
func (f frozen) Release() {}

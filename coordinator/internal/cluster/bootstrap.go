package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/durable"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ErrExists is returned by Bootstrap when the data directory holds a member already.
var ErrExists = errors.New("cluster: data directory is in use")

// foundingDir is where a cluster is founded; it gets its name when the first command is committed, so that no half of a cluster is left.
const foundingDir = raftDir + ".founding"

// Bootstrap founds a cluster of one member in DataDir and commits its first command, which it also applies to the FSM of the options; a
// Cluster over the directory needs a new one. It listens on nothing: Raft, DialRaft, DialPeer and Lead of the options are not used. If it
// fails the directory is as before.
func Bootstrap(ctx context.Context, o Options, first *raftv1.Command) error {
	if err := o.validate(); err != nil {
		return err
	}
	final, dir := filepath.Join(o.DataDir, raftDir), filepath.Join(o.DataDir, foundingDir)
	if _, err := os.Stat(final); err == nil {
		return fmt.Errorf("%w: %s exists; a new cluster needs an empty data directory", ErrExists, final)
	}
	s, err := newSealer(o.ClusterID, o.SealKey)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // of an attempt that was killed
		return fmt.Errorf("remove an unfinished founding: %w", err)
	}
	if err := claimDir(dir, o.ID, s); err != nil {
		return err
	}
	if err := found(ctx, &o, s, dir, first); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("finish the founding: %w", err)
	}
	return durable.SyncDir(o.DataDir)
}

func found(ctx context.Context, o *Options, s *sealer, dir string, first *raftv1.Command) (err error) {
	cmd := proto.CloneOf(first)
	cmd.Version = commandVersion
	if cmd.GetNow() == nil {
		cmd.Now = timestamppb.Now()
	}
	data, err := encodeCommand(cmd)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.DiscardHandler) // a founding that works needs no log of an election of one
	st, err := openStorage(dir, o.Memory, s, quiet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	conf := raftConfig(o)
	conf.Logger = newHCLog(quiet)
	_, transport := raft.NewInmemTransport(raft.ServerAddress(o.Address)) // one member talks to nobody
	members := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(o.Address)}}}
	if err := raft.BootstrapCluster(conf, st.log, st.stable, st.snapshots, transport, members); err != nil {
		return fmt.Errorf("write the first configuration: %w", err)
	}
	r, err := startRaft(conf, adapter{o.FSM}, st, transport)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Shutdown().Error()) }()
	select {
	case <-r.LeaderCh():
	case <-ctx.Done():
		return fmt.Errorf("found the cluster: %w", context.Cause(ctx))
	}
	result, _, err := apply(r, data)
	if err != nil {
		return fmt.Errorf("commit the first command: %w", err)
	}
	if refused := result.GetError(); refused != nil {
		return fmt.Errorf("first command refused: %s", refused.GetMessage())
	}
	return nil
}

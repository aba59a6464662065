package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/grpc"

	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	// maxCommandBytes is the hard limit of one command; the usual one is below 4 KiB.
	maxCommandBytes = 1 << 20
	// proposeTimeout bounds one Propose or Read, whatever its context allows.
	proposeTimeout = 10 * time.Second
	// leaderWait is how long a call waits for a leader to exist.
	leaderWait = 5 * time.Second
	// statusTimeout bounds one question to a peer about its status.
	statusTimeout = time.Second
	// caughtUp is how many entries a member may be behind when it is given a vote.
	caughtUp = 128
)

// FSM is the replicated state machine. Apply, Snapshot and Restore are never called at the same time; the rest may be called at any time.
type FSM interface {
	// Apply applies a command. It must give the same result on every member: it reads no clock and no random source.
	Apply(index uint64, cmd *raftv1.Command) *raftv1.Result
	// Snapshot freezes the state quickly; the returned value writes it out while further commands are applied.
	Snapshot() (io.WriterTo, error)
	// Restore replaces the state. On an error the old state must still be whole.
	Restore(r io.Reader) error
	// Index is that of the last command applied, as restored from a snapshot too.
	Index() uint64
	// Wait returns when Index() >= index, or with the error of ctx.
	Wait(ctx context.Context, index uint64) error
}

// BatchFSM is an FSM that can apply commands together, for less than one by one.
type BatchFSM interface {
	FSM
	// ApplyBatch does what Apply does for each command in order. How entries are cut into batches differs from member to member.
	ApplyBatch(indexes []uint64, commands []*raftv1.Command) []*raftv1.Result
}

// Timeouts is how patient the members are with each other. Zero fields take the values of LAN.
type Timeouts struct {
	// Heartbeat without a word of the leader starts an election.
	Heartbeat time.Duration
	// Election without a result starts another one.
	Election time.Duration
	// LeaderLease without a quorum makes a leader step down.
	LeaderLease time.Duration
}

// LAN returns the timeouts for members in one place: a killed leader is replaced within 1.5 s.
func LAN() Timeouts {
	return Timeouts{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond, LeaderLease: 250 * time.Millisecond}
}

// WAN returns the timeouts for members far apart: four times those of LAN.
func WAN() Timeouts {
	t := LAN()
	return Timeouts{Heartbeat: 4 * t.Heartbeat, Election: 4 * t.Election, LeaderLease: 4 * t.LeaderLease}
}

// Compaction is when the log is cut. Zero fields take the defaults.
type Compaction struct {
	// Interval between checks; default 60 s, up to twice as long by chance so that members do not snapshot together.
	Interval time.Duration
	// Threshold of entries since the last snapshot that makes a new one; default 32768.
	Threshold uint64
	// Trailing entries are kept after a snapshot so that a member that was away a while needs no snapshot; default 65536.
	Trailing uint64
}

// Options of a Cluster. All fields are required but Lead, Profile, Compaction, MinFree, Memory and Now.
type Options struct {
	// ID of this member, unique in the cluster and for ever the same.
	ID string
	// Address under which other members reach this one, HOST:PORT.
	Address string
	// ClusterID binds the data directory: a directory of another cluster is refused.
	ClusterID string
	// DataDir holds the raft folder.
	DataDir string
	// SealKey of 32 bytes encrypts log and snapshots on this member's disk. Members may have different keys.
	SealKey []byte
	// FSM is empty when Run starts: it is filled from the snapshot and the log.
	FSM FSM
	// Raft accepts authenticated raft connections of other members. Run closes it.
	Raft net.Listener
	// DialRaft opens an authenticated raft connection to another member.
	DialRaft func(ctx context.Context, addr string) (net.Conn, error)
	// DialPeer makes a connection for gRPC to another member. The cluster calls it once an address, keeps what it returns, which should
	// be a *grpc.ClientConn, and closes it (if it has Close) when Run ends.
	DialPeer func(ctx context.Context, addr string) (grpc.ClientConnInterface, error)
	// Lead does the leader's work. It is called when this member has become leader and its FSM holds everything that earlier leaders
	// committed; ctx ends with the leadership, and the next call waits until this one has returned. If it returns while the member
	// still leads, it is called again after a pause, within the same term.
	Lead func(ctx context.Context, term uint64) error
	// Profile of the timeouts.
	Profile Timeouts
	// Compaction of the log.
	Compaction Compaction
	// Memory holds log and snapshots instead of the disk, for simulations.
	Memory *Memory
	// Now is the clock that a leader stamps commands with; nil means the machine's.
	Now func() time.Time
	// MinFree bytes of the data directory's disk, below which this member stops; default 128 MiB, two segments of the log.
	MinFree uint64
	// Logger of the cluster.
	Logger *slog.Logger
}

// validate checks what New and Bootstrap need and fills in the defaults.
func (o *Options) validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"ID", o.ID}, {"Address", o.Address}, {"ClusterID", o.ClusterID}, {"DataDir", o.DataDir},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("option %s is empty", f.name))
		}
	}
	if len(o.SealKey) != chacha20poly1305.KeySize {
		errs = append(errs, fmt.Errorf("option SealKey has %d bytes, it needs %d", len(o.SealKey), chacha20poly1305.KeySize))
	}
	if o.FSM == nil || o.Logger == nil {
		errs = append(errs, errors.New("options FSM and Logger are required"))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	setDefault(&o.Profile.Heartbeat, LAN().Heartbeat)
	setDefault(&o.Profile.Election, LAN().Election)
	setDefault(&o.Profile.LeaderLease, LAN().LeaderLease)
	setDefault(&o.MinFree, 128<<20)
	setDefault(&o.Compaction.Interval, time.Minute)
	setDefault(&o.Compaction.Threshold, 32768)
	setDefault(&o.Compaction.Trailing, 65536)
	return errors.Join(errs...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

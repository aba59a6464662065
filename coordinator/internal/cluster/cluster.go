// Package cluster owns the replicated log: hashicorp/raft with its disk and its connections, membership, leadership, commands and
// linearizable reads from any member, and forwarding to the leader. What the commands mean is left to the state machine (package state),
// who may connect to the listener and the diallers it is given, and what a leader does to Options.Lead.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// ErrNoLeader is returned when no leader was found in time. Nothing was done.
var ErrNoLeader = errors.New("cluster: no leader")

// ErrNotLeader is returned by what only the leader can do. Nothing was done.
var ErrNotLeader = errors.New("cluster: this coordinator does not lead")

// ErrStale is returned by Stale when this member has heard no leader since it started.
var ErrStale = errors.New("cluster: this coordinator has heard no leader since it started, its state may be old")

const (
	transferTries = 3
	// commitTimeout is after how long, up to twice that, an idle leader tells followers how far it has committed. A read on a follower
	// right after a write waits for it; raft's own 50 ms made that 80 ms, this makes it 30 ms for 30 small messages a second.
	commitTimeout = 20 * time.Millisecond
	// drainTimeout bounds how long Run waits for calls under way when it ends.
	drainTimeout = 5 * time.Second
)

// Cluster is this member of the cluster. Its methods may be called at any time, also before Run and after it: then there is no leader.
type Cluster struct {
	opts   Options
	sealer *sealer
	dir    string
	logger *slog.Logger
	reads  chan readRequest
	// anew lets the leader's work begin anew, because the state was replaced under it.
	anew chan struct{}

	mu    sync.Mutex // guards what follows
	raft  *raft.Raft // nil unless running
	calls sync.WaitGroup
	peers map[string]grpc.ClientConnInterface
}

// New checks the options and that the data directory is this member's, and claims an empty one. Nothing runs until Run.
func New(o Options) (*Cluster, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Raft == nil || o.DialRaft == nil || o.DialPeer == nil {
		return nil, errors.New("options Raft, DialRaft and DialPeer are required")
	}
	s, err := newSealer(o.ClusterID, o.SealKey)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.DataDir, raftDir)
	if err := claimDir(dir, o.ID, s); err != nil {
		return nil, err
	}
	if err := checkRemoved(dir, o.ID); err != nil {
		return nil, err
	}
	return &Cluster{
		opts:   o,
		sealer: s,
		dir:    dir,
		logger: o.Logger.With("component", "cluster"),
		reads:  make(chan readRequest, readBatch),
		anew:   make(chan struct{}, 1),
		peers:  make(map[string]grpc.ClientConnInterface),
	}, nil
}

// Run takes part in the cluster until ctx ends, the log can no longer be written or read (ErrDiskFull, ErrDamaged), or this member was taken
// out of the cluster (ErrRemoved). A leader hands its office over first. It returns when everything it started has ended, Options.Lead included. It can be called once.
func (c *Cluster) Run(ctx context.Context) (err error) {
	if err := c.checkRoom(); err != nil {
		return errors.Join(err, c.opts.Raft.Close())
	}
	st, err := openStorage(c.dir, c.opts.Memory, c.sealer, c.logger)
	if err != nil {
		return errors.Join(explain(c.dir, c.opts.ID, err), c.opts.Raft.Close())
	}
	defer func() { err = errors.Join(err, c.closePeers(), st.close()) }()
	transport := newTransport(&c.opts)
	r, err := startRaft(raftConfig(&c.opts), adapter{c.opts.FSM}, st, transport)
	if err != nil {
		return errors.Join(explain(c.dir, c.opts.ID, err), transport.Close())
	}
	c.mu.Lock()
	c.raft = r
	c.mu.Unlock()

	// Calls go on while the leader's work ends: the work may need them to end well. Only then does this member refuse calls.
	group, work := errgroup.WithContext(ctx)
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	readsDone := make(chan struct{})
	go func() { // ends below, after the last call
		defer close(readsDone)
		c.serveReads(reading, r)
	}()
	group.Go(func() error { c.follow(work, r); return nil })
	group.Go(func() error { return c.awaitFull(work) })
	group.Go(func() error {
		if st.floor != nil {
			st.floor.keep(work)
		}
		return nil
	})
	group.Go(func() error { return c.awaitRemoval(work, r) })
	group.Go(func() error {
		select {
		case <-work.Done():
			return nil
		case err := <-st.sealed.fatal:
			return err
		}
	})
	err = group.Wait()

	c.handOver(r)
	c.refuseCalls()
	stopReading()
	<-readsDone
	return errors.Join(err, r.Shutdown().Error())
}

// startRaft turns a panic of raft about an unreadable log into an error.
func startRaft(conf *raft.Config, fsm raft.FSM, st *storage, transport raft.Transport) (_ *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: start raft: %v", errUnreadable, p)
			if cause, ok := p.(error); ok {
				err = fmt.Errorf("%w: start raft: %w", errUnreadable, cause)
			}
		}
	}()
	r, err := raft.NewRaft(conf, fsm, st.log, st.stable, st.snapshots, transport)
	if err != nil {
		return nil, fmt.Errorf("%w: start raft: %w", errUnreadable, err)
	}
	return r, nil
}

func raftConfig(o *Options) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(o.ID)
	conf.HeartbeatTimeout = o.Profile.Heartbeat
	conf.ElectionTimeout = o.Profile.Election
	conf.LeaderLeaseTimeout = o.Profile.LeaderLease
	conf.CommitTimeout = commitTimeout
	conf.MaxAppendEntries = 128
	conf.BatchApplyCh = true
	conf.ShutdownOnRemove = false
	conf.TrailingLogs = o.Compaction.Trailing
	conf.SnapshotThreshold = o.Compaction.Threshold
	conf.SnapshotInterval = o.Compaction.Interval
	conf.NoLegacyTelemetry = true
	conf.Logger = newHCLog(o.Logger.With("component", "raft"))
	return conf
}

// handOver gives the leadership away, so that the others need not miss this member first.
func (c *Cluster) handOver(r *raft.Raft) {
	if r.State() != raft.Leader || len(voters(r)) < 2 {
		return
	}
	for try := 1; try <= transferTries; try++ {
		err := r.LeadershipTransfer().Error()
		if err == nil || r.State() != raft.Leader {
			c.logger.Info("leadership handed over")
			return
		}
		c.logger.Warn("leadership not handed over", "try", try, "err", err)
	}
}

// enter announces a call that uses raft; leave must follow. Raft is not shut down while calls are under way, because it would leave
// some of them without an answer for ever.
func (c *Cluster) enter() (r *raft.Raft, leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raft == nil {
		return nil, nil, false
	}
	c.calls.Add(1)
	return c.raft, c.calls.Done, true
}

// refuseCalls lets calls under way end and no new ones begin.
func (c *Cluster) refuseCalls() {
	c.mu.Lock()
	c.raft = nil
	c.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last call; the timeout below only logs and gives up on calls that raft never answered
		defer close(done)
		c.calls.Wait()
	}()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		c.logger.Warn("calls were still under way at the end")
	}
}

// Leader returns id and address of the leader; both are empty while there is none.
func (c *Cluster) Leader() (id, addr string) {
	r, leave, ok := c.enter()
	if !ok {
		return "", ""
	}
	defer leave()
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// Term is the term that this member knows; 0 before Run.
func (c *Cluster) Term() uint64 {
	r, leave, ok := c.enter()
	if !ok {
		return 0
	}
	defer leave()
	return r.CurrentTerm()
}

// LastContact is the time since the last word of the leader: 0 on the leader itself, negative if none was heard since Run started.
func (c *Cluster) LastContact() time.Duration {
	r, leave, ok := c.enter()
	if !ok {
		return -1
	}
	defer leave()
	return lastContact(r)
}

func lastContact(r *raft.Raft) time.Duration {
	if r.State() == raft.Leader {
		return 0
	}
	at := r.LastContact()
	if at.IsZero() {
		return -1
	}
	return max(0, time.Since(at))
}

// Stale returns ErrStale if this member has heard no leader since Run started: until then its FSM holds no more than its last snapshot.
func (c *Cluster) Stale() error {
	if c.LastContact() < 0 {
		return ErrStale
	}
	return nil
}

// Snapshot writes a snapshot now and cuts the log. It is no error if there is nothing new to write.
func (c *Cluster) Snapshot() error {
	r, leave, ok := c.enter()
	if !ok {
		return ErrNoLeader
	}
	defer leave()
	if err := r.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	return nil
}

func (c *Cluster) closePeers() error {
	c.mu.Lock()
	peers := c.peers
	c.peers = make(map[string]grpc.ClientConnInterface)
	c.mu.Unlock()
	var errs []error
	for _, cc := range peers {
		if closer, ok := cc.(io.Closer); ok {
			errs = append(errs, closer.Close())
		}
	}
	return errors.Join(errs...)
}

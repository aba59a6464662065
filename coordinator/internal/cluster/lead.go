package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	restartFirst = 100 * time.Millisecond
	restartLast  = 5 * time.Second
	// restartCalm is how long work must have gone well for the next restart to be quick again.
	restartCalm = 30 * time.Second
	// promoteEvery is how often the leader looks for members that deserve a vote.
	promoteEvery = 500 * time.Millisecond
	// slowStop is after how long the log says that the leader's work does not end.
	slowStop = 10 * time.Second
)

// follow starts and stops the leader's work with the leadership. Raft's channel keeps only the newest word, so a true after a true means
// that leadership was lost and won again: the work is stopped and begins anew.
func (c *Cluster) follow(ctx context.Context, r *raft.Raft) {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-r.LeaderCh():
			stop()
			stop = func() {}
			if leads {
				stop = c.startLeading(ctx, r)
			}
		case <-c.anew:
			stop()
			stop = func() {}
			if r.State() == raft.Leader {
				stop = c.startLeading(ctx, r)
			}
		}
	}
}

// startLeading starts the leader's work; the returned function ends it and waits.
func (c *Cluster) startLeading(ctx context.Context, r *raft.Raft) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // stop waits for it
		defer close(done)
		c.lead(ctx, r)
	}()
	return func() {
		cancel()
		timer := time.NewTimer(slowStop)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			c.logger.Warn("the work of the ended leadership does not stop; this coordinator does not lead until it does")
			<-done
		}
	}
}

// lead is one leadership.
func (c *Cluster) lead(ctx context.Context, r *raft.Raft) {
	term, ok := c.takeOffice(ctx, r)
	if !ok {
		return
	}
	c.logger.Info("leading", "term", term)
	var work sync.WaitGroup
	work.Go(func() { c.restart(ctx, "promotion", func(ctx context.Context) error { return c.promote(ctx, r) }) })
	if c.opts.Lead != nil {
		work.Go(func() {
			c.restart(ctx, "leader work", func(ctx context.Context) error { return c.opts.Lead(ctx, term) })
		})
	}
	work.Wait()
	c.logger.Info("no longer leading", "term", term)
}

// takeOffice waits until everything that earlier leaders committed is in the FSM.
func (c *Cluster) takeOffice(ctx context.Context, r *raft.Raft) (term uint64, ok bool) {
	pause := restartFirst
	for {
		term = r.CurrentTerm()
		err := r.Barrier(0).Error()
		if err == nil && r.State() == raft.Leader && r.CurrentTerm() == term {
			return term, ctx.Err() == nil
		}
		if errors.Is(err, raft.ErrRaftShutdown) || !sleep(ctx, pause) || r.State() != raft.Leader {
			return 0, false // the leadership is over; raft says so by its channel, too
		}
		c.logger.Warn("leadership not yet ready", "term", term, "err", err)
		pause = min(2*pause, restartLast)
	}
}

// restart runs work until ctx ends, again and again: a leader whose work has died leads nothing.
func (c *Cluster) restart(ctx context.Context, name string, work func(ctx context.Context) error) {
	pause := restartFirst
	for {
		began := time.Now()
		err := work(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > restartCalm {
			pause = restartFirst
		}
		c.logger.Error("work of the leader ended early, it is started again", "work", name, "pause", pause, "err", err)
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, restartLast)
	}
}

// promote gives members a vote once they have caught up.
func (c *Cluster) promote(ctx context.Context, r *raft.Raft) error {
	tick := time.NewTicker(promoteEvery)
	defer tick.Stop()
	for {
		for _, server := range servers(r) {
			if server.Suffrage == raft.Voter || !c.deservesVote(ctx, r, server) {
				continue
			}
			if err := r.AddVoter(server.ID, server.Address, 0, proposeTimeout).Error(); err != nil {
				c.logger.Warn("member not promoted", "member", server.ID, "err", err)
				continue
			}
			c.logger.Info("member promoted to voter", "member", server.ID, "address", server.Address)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// deservesVote asks the member itself. What it has committed it has matched, so this is a little stricter than what raft knows.
func (c *Cluster) deservesVote(ctx context.Context, r *raft.Raft, server raft.Server) bool {
	status, err := c.peerStatus(ctx, string(server.Address))
	if err != nil {
		c.logger.Debug("member does not answer", "member", server.ID, "address", server.Address, "err", err)
		return false
	}
	return status.GetId() == string(server.ID) &&
		status.GetTerm() == r.CurrentTerm() &&
		status.GetCommitIndex() > 0 &&
		status.GetCommitIndex()+caughtUp >= r.CommitIndex()
}

// sleep waits; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

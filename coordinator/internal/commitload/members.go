package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	memberCount = 3
	startLimit  = 30 * time.Second
	// names that are written in turn.
	names = 10000
)

// members of a cluster in one process, on loopback.
type members struct {
	all      []*member
	cancel   context.CancelFunc
	running  sync.WaitGroup
	mu       sync.Mutex
	errs     []error
	requests atomic.Uint64
}

// member of the cluster. Its raft address is its name to the others.
type member struct {
	*cluster.Cluster

	id, raftAddr string
	server       *grpc.Server
}

// start founds a cluster and lets the others join.
func start(ctx context.Context, dir string) (*members, error) {
	if dir == "" {
		return nil, errors.New("-dir is empty")
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &members{cancel: cancel}
	peers := map[string]string{} // raft address to gRPC address
	type seat struct{ raft, grpc net.Listener }
	var seats []seat
	for range memberCount {
		r, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, m.stop())
		}
		g, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, r.Close(), m.stop())
		}
		seats = append(seats, seat{r, g})
		peers[r.Addr().String()] = g.Addr().String()
	}
	for i, s := range seats {
		o := memberOptions(dir, i, s.raft, peers)
		if i == 0 {
			if err := found(ctx, o); err != nil {
				return nil, errors.Join(err, m.stop())
			}
		}
		c, err := cluster.New(o)
		if err != nil {
			return nil, errors.Join(err, m.stop())
		}
		server := grpc.NewServer()
		coordinatorv1.RegisterPeerServiceServer(server, cluster.NewPeerServer(c))
		m.all = append(m.all, &member{Cluster: c, id: o.ID, raftAddr: o.Address, server: server})
		m.running.Go(func() { m.ended(c.Run(running)) })
		m.running.Go(func() { m.ended(server.Serve(s.grpc)) })
	}
	return m, nil
}

func memberOptions(dir string, i int, raft net.Listener, peers map[string]string) cluster.Options {
	return cluster.Options{
		ID: fmt.Sprintf("c%d", i+1), Address: raft.Addr().String(), ClusterID: "commitload", DataDir: filepath.Join(dir, strconv.Itoa(i)),
		SealKey: bytes.Repeat([]byte{7}, 32), FSM: state.New(), Raft: raft,
		DialRaft: func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		},
		DialPeer: func(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
			return grpc.NewClient("passthrough:///"+peers[addr], grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// found writes the first entry of the log.
func found(ctx context.Context, o cluster.Options) error {
	o.FSM = state.New() // the cluster starts with an empty one
	return cluster.Bootstrap(ctx, o, &raftv1.Command{
		Version: state.CommandVersion,
		Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
			ClusterId: o.ClusterID, ClusterName: o.ClusterID,
			Identity: &raftv1.Identity{Id: o.ID, Role: accessv1.Role_ROLE_COORDINATOR, Name: o.ID, Address: o.Address},
		}},
	})
}

func (m *members) ended(err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errs = append(m.errs, err)
}

// stop ends all members and returns what they ended with.
func (m *members) stop() error {
	m.cancel()
	for _, one := range m.all {
		one.server.Stop()
	}
	m.running.Wait()
	return errors.Join(m.errs...)
}

// voters lets every member join, and waits until all vote.
func (m *members) voters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := m.joined(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d members do not vote yet: %w", memberCount, err)
		case <-tick.C:
		}
	}
}

func (m *members) joined(ctx context.Context) error {
	leader := m.all[0]
	for _, one := range m.all[1:] {
		if err := leader.AddMember(ctx, one.id, one.raftAddr); err != nil {
			return err
		}
	}
	peers, err := leader.Peers()
	if err != nil {
		return err
	}
	for _, p := range peers {
		if !p.Voter {
			return fmt.Errorf("%s does not vote", p.ID)
		}
	}
	return nil
}

// measure lets all callers propose for a while, and returns the commits a second.
func (m *members) measure(ctx context.Context, o options, span time.Duration) (float64, error) {
	id, _ := m.all[0].Leader()
	leader := m.all[0]
	for _, one := range m.all {
		if one.id == id {
			leader = one
		}
	}
	value := bytes.Repeat([]byte("v"), o.size)
	var (
		callers sync.WaitGroup
		count   atomic.Uint64
		errs    = make([]error, o.clients)
	)
	began := time.Now()
	for i := range o.clients {
		callers.Go(func() {
			for time.Since(began) < span && errs[i] == nil {
				n := m.requests.Add(1)
				result, _, err := leader.Propose(ctx, &raftv1.Command{
					Version: state.CommandVersion, Actor: "commitload", RequestId: fmt.Sprintf("request-%016x", n),
					Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: fmt.Sprintf("key-%d", n%names), Value: value}},
				})
				if refused := result.GetError(); err == nil && refused != nil {
					err = errors.New(refused.GetMessage())
				}
				if errs[i] = err; err == nil {
					count.Add(1)
				}
			}
		})
	}
	callers.Wait()
	return float64(count.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// measureRaftCommit measures commits a second with few and many clients, and small and larger values. Each pair has clusters of its own, so that none
// carries what another has written.
func measureRaftCommit(ctx context.Context, out, notes io.Writer, runs int) error {
	for _, clients := range []int{1, 64, 256} {
		for _, size := range []int{256, 1024} {
			err := withFleet(ctx, notes, func(f *fleet.Fleet) error {
				c, err := newRaftCommit(ctx, f, clients, size)
				if err != nil {
					return err
				}
				return errors.Join(c.measure(ctx, out, notes, runs), c.close())
			})
			if err != nil {
				return fmt.Errorf("%d clients, %d B: %w", clients, size, err)
			}
		}
	}
	return nil
}

// raftCommit is three coordinators and three members of etcd, side by side.
type raftCommit struct {
	f             *fleet.Fleet
	clients, size int
	bare          string // path of the program that measures without the API
	muster, peer  []*grpc.ClientConn
	etcd          *etcd
	calls         atomic.Uint64 // first number of the next measurement's calls
	bareRuns      int
}

func newRaftCommit(ctx context.Context, f *fleet.Fleet, clients, size int) (*raftCommit, error) {
	c := &raftCommit{f: f, clients: clients, size: size}
	programs, err := f.Build(ctx)
	if err != nil {
		return nil, err
	}
	if c.bare, err = f.BuildCommitLoad(ctx); err != nil {
		return nil, err
	}
	m, err := startLoopback(ctx, f, programs, 3)
	if err != nil {
		return nil, err
	}
	leader, err := m.Leader(ctx)
	if err != nil {
		return nil, err
	}
	operator, err := login(ctx, m)
	if err != nil {
		return nil, err
	}
	if c.muster, err = connect(clients, leader.Endpoint(), musterDial(operator)); err != nil {
		return nil, err
	}
	if c.etcd, err = startEtcd(ctx, f); err != nil {
		return nil, errors.Join(err, c.close())
	}
	if c.peer, err = connect(clients, c.etcd.leader, c.etcd.dialOptions()...); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *raftCommit) close() error { return errors.Join(closeAll(c.muster), closeAll(c.peer)) }

// startLoopback starts coordinators on this machine's loopback.
func startLoopback(ctx context.Context, f *fleet.Fleet, programs fleet.Programs, n int) (*fleet.Muster, error) {
	addresses, err := freePorts(2 * n)
	if err != nil {
		return nil, err
	}
	var specs []fleet.CoordinatorSpec
	for i := range n {
		port, err := portOf(addresses[2*i])
		if err != nil {
			return nil, err
		}
		http, err := portOf(addresses[2*i+1])
		if err != nil {
			return nil, err
		}
		specs = append(specs, fleet.CoordinatorSpec{Name: fmt.Sprintf("c%d", i+1), Address: "127.0.0.1", Port: port, HTTPPort: http})
	}
	return f.StartMuster(ctx, programs, specs, nil)
}

func portOf(address string) (int, error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// login returns the credentials of an administrator.
func login(ctx context.Context, m *fleet.Muster) (*identity.Credentials, error) {
	_, dir, err := m.Login(ctx, "bench", "admin")
	if err != nil {
		return nil, err
	}
	return identity.LoadCredentials(dir)
}

func musterDial(c *identity.Credentials) grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(mtls.Client(c, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC)))
}

// put writes a secret by the public API.
func (c *raftCommit) put() put {
	value := make([]byte, c.size)
	return func(ctx context.Context, cc *grpc.ClientConn, n uint64) error {
		_, err := coordinatorv1.NewSecretServiceClient(cc).PutSecret(ctx, &coordinatorv1.PutSecretRequest{
			Name: fmt.Sprintf("key-%d", n%commitKeys), Value: value, RequestId: fmt.Sprintf("request-%016x", n),
		})
		return err
	}
}

// measure takes turns between Muster, etcd, and Muster without its API.
func (c *raftCommit) measure(ctx context.Context, out, notes io.Writer, runs int) error {
	name := fmt.Sprintf("raft-commit-%d", c.clients)
	var ours, theirs, bare series
	for i := range runs {
		// More calls than any run makes, so that no two have the same number.
		first := c.calls.Add(1) << 32
		public, err := loadCommits(ctx, c.muster, c.clients, first, c.put())
		if err != nil {
			return err
		}
		peer, err := loadCommits(ctx, c.peer, c.clients, first, c.etcd.put(c.size))
		if err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
		alone, err := c.runBare(ctx)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(notes, "%s %d B %d/%d: muster %.0f/s p50 %s p99 %s; etcd %.0f/s p50 %s p99 %s; without the API %.0f/s\n",
			name, c.size, i+1, runs, public.perSecond, public.p50, public.p99, peer.perSecond, peer.p50, peer.p99, alone)
		ours, theirs, bare = append(ours, public.perSecond), append(theirs, peer.perSecond), append(bare, alone)
	}
	suffix := ""
	if c.size != 256 {
		suffix = "_1k"
	}
	report(out, name, "throughput"+suffix, "commits/s", "etcd", ours, theirs)
	report(out, name, "throughput_bare"+suffix, "commits/s", "etcd", bare, theirs)
	return nil
}

// runBare measures a fresh cluster whose callers are in the leader's process.
func (c *raftCommit) runBare(ctx context.Context) (float64, error) {
	c.bareRuns++
	res, err := c.f.Run(ctx, fleet.Command{Path: c.bare, Args: []string{
		"-dir", filepath.Join(c.f.Dir(), fmt.Sprintf("bare-%d", c.bareRuns)), "-clients", strconv.Itoa(c.clients), "-size", strconv.Itoa(c.size),
		"-warm", commitWarm.String(), "-for", commitSpan.String(),
	}})
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(res.Stdout), 64)
}

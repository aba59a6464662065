package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/procedure"
	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const clusterID = "51b"

// bugs are the mistakes that a test plants to see whether the checkers find them. The zero value has none.
type bugs struct {
	apply   func(node string, command *raftv1.Command) *raftv1.Command // what the state machine gets instead of what is in the log
	outcome func(outcome *raftv1.Outcome)                              // what the engine makes of an outcome
	lead    func(ctx context.Context, s *sim, n *node) error           // what else a leader does
	ticks   bool                                                       // the engine lets no time pass
	hasty   bool                                                       // clients read without asking the leader
	amnesia bool                                                       // requests are tried again without their ids
	gossip  bool                                                       // a write is acknowledged before it is committed
	leaky   bool                                                       // the event stream loses events
}

// sim is one simulated fleet: coordinators, hosts, and the wire between them.
type sim struct {
	t       *testing.T
	seed    uint64
	wire    *wire
	seq     atomic.Int64
	history *history
	bugs    bugs
	names   []string
	hosts   []*host
	dir     string
	memory  map[string]*cluster.Memory

	mu      sync.Mutex
	rng     *rand.Rand
	nodes   map[string]*node // those that run
	skew    map[string]time.Duration
	joined  chan struct{} // closed and replaced when a host connects
	faults  []string      // what was done to the fleet, for people
	started time.Time
}

// node is one incarnation of a coordinator.
type node struct {
	name    string
	state   *state.State
	cluster *cluster.Cluster
	engine  *procedure.Engine
	peer    coordinatorv1.PeerServiceServer
	ctx     context.Context //nolint:containedctx // It is the life of the process.
	cancel  context.CancelFunc
	done    chan struct{}
}

func newSim(t *testing.T, seed uint64, hosts int, temper temper, planted bugs) *sim {
	s := &sim{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), wire: newWire(rand.New(rand.NewPCG(seed, 2))), bugs: planted, dir: t.TempDir(),
		names: []string{"c1", "c2", "c3"}, memory: map[string]*cluster.Memory{}, nodes: map[string]*node{}, skew: map[string]time.Duration{},
		joined: make(chan struct{}), started: time.Now(),
	}
	s.history = &history{seq: &s.seq, entries: map[uint64]*entry{}, shadow: state.New()}
	for i := range hosts {
		s.hosts = append(s.hosts, newHost(fmt.Sprintf("h%d", i+1), seed, s.wire, &s.seq, temper))
	}
	for _, name := range s.names {
		s.memory[name] = cluster.NewMemory()
	}
	return s
}

// note keeps what happens for the report of a failure.
func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf("%8.3fs #%d ", time.Since(s.started).Seconds(), s.seq.Load())+fmt.Sprintf(format, args...))
}

func (s *sim) options(name string, fsm cluster.FSM) cluster.Options {
	return cluster.Options{
		ID: name, Address: name, ClusterID: clusterID, DataDir: s.dir + "/" + name, SealKey: bytes.Repeat([]byte{7}, 32), FSM: fsm,
		Memory: s.memory[name], Logger: slog.New(slog.DiscardHandler),
		Compaction: cluster.Compaction{Interval: 4 * time.Second, Threshold: 60, Trailing: 30},
		Now:        func() time.Time { return time.Now().Add(s.skewOf(name)) },
	}
}

func (s *sim) skewOf(name string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew[name]
}

// found makes the cluster and waits until all of its members vote.
func (s *sim) found() {
	s.t.Helper()
	first := &raftv1.Command{Actor: "init", Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
		ClusterId: clusterID, ClusterName: "sim", Identity: &raftv1.Identity{Id: "spiffe://sim/coordinator/c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1", Address: "c1"},
	}}}
	founder := s.names[0]
	fsm := &recorder{State: state.New(), node: founder, history: s.history, bug: s.bugs.apply}
	if err := cluster.Bootstrap(context.Background(), s.options(founder, fsm), first); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range s.names {
		s.start(name)
	}
	s.until("all members vote", time.Minute, func() bool {
		leader := s.leader()
		if leader == nil {
			return false
		}
		voters := 0
		for _, name := range s.names {
			if err := leader.cluster.AddMember(context.Background(), name, name); err != nil {
				return false
			}
		}
		peers, err := leader.cluster.Peers()
		for _, p := range peers {
			if p.Voter && p.Reachable {
				voters++
			}
		}
		return err == nil && voters == len(s.names)
	})
}

// until waits in simulated time for something to become true.
func (s *sim) until(what string, within time.Duration, met func() bool) bool {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for !met() {
		if time.Now().After(deadline) {
			s.note("never: %s", what)
			return false
		}
		rest(context.Background(), 50*time.Millisecond)
	}
	return true
}

// rest waits; false means that the context ended first.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// start begins an incarnation of a coordinator over what the last one left.
func (s *sim) start(name string) {
	s.t.Helper()
	n := &node{name: name, state: state.New(), done: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	o := s.options(name, &recorder{State: n.state, node: name, history: s.history, bug: s.bugs.apply})
	o.Raft = s.wire.listen(name)
	o.DialRaft = func(ctx context.Context, address string) (net.Conn, error) { return s.wire.dial(ctx, name, address) }
	o.DialPeer = func(_ context.Context, address string) (grpc.ClientConnInterface, error) {
		return peerConn{s, name, address}, nil
	}
	n.engine = procedure.New(procedure.Options{
		ID: name, State: n.state, Conn: func(host string) (grpc.ClientConnInterface, error) { return s.connect(name, host) }, HostsChanged: s.hostsChanged,
		Logger: slog.New(slog.DiscardHandler), Propose: func(ctx context.Context, command *raftv1.Command) (*raftv1.Result, error) {
			return s.propose(ctx, n, command)
		},
	})
	o.Lead = func(ctx context.Context, term uint64) error { return s.lead(ctx, n, term) }
	var err error
	if n.cluster, err = cluster.New(o); err != nil {
		s.t.Fatal(err)
	}
	n.peer = cluster.NewPeerServer(n.cluster)
	s.mu.Lock()
	s.nodes[name] = n
	s.mu.Unlock()
	s.wire.work.Go(func() {
		defer close(n.done)
		if err := n.cluster.Run(n.ctx); err != nil && n.ctx.Err() == nil {
			s.history.blame("coordinator %s ended by itself: %v", name, err)
		}
	})
}

// propose is how the engine of a node commits.
func (s *sim) propose(ctx context.Context, n *node, command *raftv1.Command) (*raftv1.Result, error) {
	if s.bugs.ticks && command.GetTick() != nil {
		return &raftv1.Result{}, nil
	}
	if s.bugs.outcome != nil {
		for _, outcome := range command.GetRecordOutcomes().GetOutcomes() {
			s.bugs.outcome(outcome)
		}
	}
	result, _, err := n.cluster.Propose(ctx, command)
	return result, err
}

func (s *sim) lead(ctx context.Context, n *node, term uint64) error {
	if s.bugs.lead == nil {
		return n.engine.Lead(ctx, term)
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = s.bugs.lead(ctx, s, n) })
	return n.engine.Lead(ctx, term)
}

// kill ends a coordinator without a word to anybody: nothing of it leaves any more.
func (s *sim) kill(name string) {
	s.mu.Lock()
	n := s.nodes[name]
	delete(s.nodes, name)
	s.mu.Unlock()
	if n == nil {
		return
	}
	s.wire.set([]string{name}, s.everybody(), true)
	s.wire.set(s.everybody(), []string{name}, true)
	n.cancel()
	<-n.done
	s.wire.set([]string{name}, s.everybody(), false)
	s.wire.set(s.everybody(), []string{name}, false)
}

// stop ends a coordinator as an operator would.
func (s *sim) stop(name string) {
	s.mu.Lock()
	n := s.nodes[name]
	delete(s.nodes, name)
	s.mu.Unlock()
	if n != nil {
		n.cancel()
		<-n.done
	}
}

func (s *sim) everybody() []string {
	all := slices.Clone(s.names)
	for _, h := range s.hosts {
		all = append(all, h.name)
	}
	return all
}

// node that runs, by its name; nil if it does not.
func (s *sim) node(name string) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name]
}

// leader is the node that says that it leads, in the highest term if several do; nil if there is none.
func (s *sim) leader() *node {
	var leader *node
	for _, name := range s.names {
		n := s.node(name)
		if n == nil {
			continue
		}
		if id, _ := n.cluster.Leader(); id != name || n.cluster.LastContact() != 0 {
			continue
		}
		if leader == nil || n.cluster.Term() > leader.cluster.Term() {
			leader = n
		}
	}
	return leader
}

func (s *sim) host(name string) *host {
	i := slices.IndexFunc(s.hosts, func(h *host) bool { return h.name == name })
	if i < 0 {
		return nil
	}
	return s.hosts[i]
}

func (s *sim) connect(from, name string) (grpc.ClientConnInterface, error) {
	h := s.host(name)
	if h == nil || !h.alive() {
		return nil, errors.New("not connected")
	}
	return hostConn{from: from, host: h, wire: s.wire}, nil
}

func (s *sim) hostsChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joined
}

// revive starts an agent; the engines hear of it.
func (s *sim) revive(h *host) {
	h.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.joined)
	s.joined = make(chan struct{})
}

// end stops everything.
func (s *sim) end() {
	for _, name := range s.names {
		s.stop(name)
	}
	close(s.wire.done)
	for _, h := range s.hosts {
		h.crash()
	}
	s.wire.work.Wait()
}

// peerConn is a coordinator's connection to another one.
type peerConn struct {
	sim      *sim
	from, to string
}

// Invoke calls the other coordinator's PeerService.
func (c peerConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	response, ok := reply.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%s returns no message", method)
	}
	if c.sim.node(c.to) == nil {
		return status.Error(codes.Unavailable, "connection refused")
	}
	for _, o := range opts {
		if at, ok := o.(grpc.PeerCallOption); ok {
			*at.PeerAddr = peer.Peer{Addr: place(c.to)} // from here on it may have been sent
		}
	}
	answer, err := c.sim.wire.call(ctx, c.from, c.to, func(ctx context.Context) (proto.Message, error) {
		n := c.sim.node(c.to)
		if n == nil {
			return nil, status.Error(codes.Unavailable, "connection refused")
		}
		switch r := args.(type) {
		case *coordinatorv1.ProposeRequest:
			return n.peer.Propose(ctx, r)
		case *coordinatorv1.ReadIndexRequest:
			return n.peer.ReadIndex(ctx, r)
		case *coordinatorv1.PeerStatusRequest:
			return n.peer.PeerStatus(ctx, r)
		case *coordinatorv1.HandOverRequest:
			return n.peer.HandOver(ctx, r)
		}
		return nil, status.Errorf(codes.Unimplemented, "%s", method)
	})
	if err != nil {
		return err
	}
	proto.Merge(response, answer)
	return nil
}

// NewStream is not part of what coordinators ask of each other.
func (c peerConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "coordinators have no streams between them")
}

// effectOf reads what a method declares.
func effectOf(method string) accessv1.Effect {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(dotted(method)))
	if err != nil {
		return accessv1.Effect_EFFECT_UNSPECIFIED
	}
	rule, _ := proto.GetExtension(found.Options(), accessv1.E_Rule).(*accessv1.Rule)
	return rule.GetEffect()
}

func dotted(method string) string {
	raw := []byte(method)
	if i := bytes.LastIndexByte(raw, '/'); i >= 0 {
		raw[i] = '.'
	}
	return string(raw)
}

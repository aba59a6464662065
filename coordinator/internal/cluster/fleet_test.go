package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// table is the smallest FSM: names with values, and the requests it has seen.
type table struct {
	// slow makes every Apply take so long.
	slow time.Duration

	mu      sync.Mutex
	held    chan struct{} // Apply waits until it is closed; nil for no wait
	index   uint64
	changed chan struct{}
	rows    map[string]string
	seen    map[string]uint64
	applied map[string]int // times that a name was written
	now     time.Time      // of the last command
}

type frozenTable struct {
	Index   uint64
	Rows    map[string]string
	Seen    map[string]uint64
	Applied map[string]int
}

func newTable() *table {
	return &table{changed: make(chan struct{}), rows: map[string]string{}, seen: map[string]uint64{}, applied: map[string]int{}}
}

func (t *table) Apply(index uint64, cmd *raftv1.Command) *raftv1.Result {
	if t.slow > 0 {
		<-time.After(t.slow)
	}
	t.mu.Lock()
	held := t.held
	t.mu.Unlock()
	if held != nil {
		<-held
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved(index)
	t.now = cmd.GetNow().AsTime()
	if at, ok := t.seen[cmd.GetRequestId()]; ok && cmd.GetRequestId() != "" {
		return &raftv1.Result{Replayed: true, Version: at}
	}
	t.seen[cmd.GetRequestId()] = index
	t.rows[cmd.GetPutSecret().GetName()] = string(cmd.GetPutSecret().GetValue())
	t.applied[cmd.GetPutSecret().GetName()]++
	return &raftv1.Result{Version: index}
}

func (t *table) moved(index uint64) {
	t.index = index
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *table) Snapshot() (io.WriterTo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	data, err := json.Marshal(frozenTable{t.index, t.rows, t.seen, t.applied})
	return bytes.NewBuffer(data), err
}

func (t *table) Restore(r io.Reader) error {
	var f frozenTable
	if err := json.NewDecoder(r).Decode(&f); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows, t.seen, t.applied = f.Rows, f.Seen, f.Applied
	t.moved(f.Index)
	return nil
}

func (t *table) Index() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.index
}

func (t *table) Wait(ctx context.Context, index uint64) error {
	for {
		t.mu.Lock()
		at, changed := t.index, t.changed
		t.mu.Unlock()
		if at >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hold stops Apply until the returned function is called.
func (t *table) hold() (release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	held := make(chan struct{})
	t.held = held
	return sync.OnceFunc(func() {
		t.mu.Lock()
		t.held = nil
		t.mu.Unlock()
		close(held)
	})
}

func (t *table) get(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[name]
}

func (t *table) all() (map[string]string, map[string]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.rows), maps.Clone(t.applied)
}

// network connects members by their names over loopback, and cuts them off.
type network struct {
	mu    sync.Mutex
	raft  map[string]string // name -> address of its raft listener
	grpc  map[string]string
	cut   map[string]bool
	conns map[string][]net.Conn
}

func newNetwork() *network {
	return &network{raft: map[string]string{}, grpc: map[string]string{}, cut: map[string]bool{}, conns: map[string][]net.Conn{}}
}

func (n *network) dial(ctx context.Context, book map[string]string, from, to string) (net.Conn, error) {
	n.mu.Lock()
	addr := book[to]
	n.mu.Unlock()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[from] || n.cut[to] {
		return nil, errors.Join(errors.New("cut off"), c.Close())
	}
	n.conns[from] = append(n.conns[from], c)
	n.conns[to] = append(n.conns[to], c)
	return c, nil
}

// isolate cuts a member off and ends its connections; rejoin takes it back.
func (n *network) isolate(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[name] = true
	for _, c := range n.conns[name] {
		c.Close()
	}
	n.conns[name] = nil
}

func (n *network) rejoin(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[name] = false
}

// node is a running member.
type node struct {
	*cluster.Cluster

	name string
	fsm  *table
	stop func() // ends it gracefully and waits
}

// fleet is a cluster of the test.
type fleet struct {
	t     *testing.T
	net   *network
	dirs  map[string]string
	edit  func(*cluster.Options)
	nodes map[string]*node
	// accept and connect, if there are any, put something between the network and raft.
	accept  func(name string, l net.Listener) net.Listener
	connect func(name string, c net.Conn) net.Conn
}

const clusterID = "8c1b5c0e"

func sealKey() []byte { return bytes.Repeat([]byte{7}, 32) }

func (f *fleet) options(name string, fsm *table) cluster.Options {
	out := io.Discard
	if os.Getenv("CLUSTER_TEST_LOG") != "" {
		out = os.Stderr
	}
	o := cluster.Options{
		ID: name, Address: name, ClusterID: clusterID, DataDir: f.dirs[name], SealKey: sealKey(), FSM: fsm,
		Logger:  slog.New(slog.NewTextHandler(out, nil)).With("member", name),
		Profile: cluster.Timeouts{Heartbeat: 150 * time.Millisecond, Election: 150 * time.Millisecond, LeaderLease: 100 * time.Millisecond},
	}
	if f.edit != nil {
		f.edit(&o)
	}
	return o
}

// newFleet founds a cluster and lets the other members join; edit may change the options of every member.
func newFleet(t *testing.T, edit func(*cluster.Options), names ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, edit: edit}
	f.found(names...)
	return f
}

func (f *fleet) found(names ...string) {
	t := f.t
	t.Helper()
	f.net, f.dirs, f.nodes = newNetwork(), map[string]string{}, map[string]*node{}
	for _, name := range names {
		f.dirs[name] = t.TempDir()
	}
	if err := cluster.Bootstrap(t.Context(), f.options(names[0], newTable()), put("first", "1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f.start(name)
	}
	for _, name := range names[1:] {
		f.join(name)
	}
	f.waitVoters(len(names))
}

func (f *fleet) join(name string) {
	f.t.Helper()
	eventually(f.t, func() error {
		l := f.leader()
		if l == nil {
			return errors.New("no leader")
		}
		return l.AddMember(f.t.Context(), name, name)
	})
}

func (f *fleet) start(name string) *node {
	f.t.Helper()
	n := f.newNode(name)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	inner := n.stop
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("member %s ended with %v", name, err)
		}
		inner()
	})
	f.nodes[name] = n
	f.t.Cleanup(n.stop)
	return n
}

func (f *fleet) newNode(name string) *node {
	f.t.Helper()
	raftListener, grpcListener := listen(f.t), listen(f.t)
	f.net.mu.Lock()
	f.net.raft[name], f.net.grpc[name] = raftListener.Addr().String(), grpcListener.Addr().String()
	f.net.mu.Unlock()
	fsm := newTable()
	o := f.options(name, fsm)
	o.Raft = raftListener
	if f.accept != nil {
		o.Raft = f.accept(name, raftListener)
	}
	o.DialRaft = func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := f.net.dial(ctx, f.net.raft, name, addr)
		if err == nil && f.connect != nil {
			c = f.connect(name, c)
		}
		return c, err
	}
	o.DialPeer = func(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
		return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				return f.net.dial(ctx, f.net.grpc, name, addr)
			}))
	}
	c, err := cluster.New(o)
	if err != nil {
		f.t.Fatal(err)
	}
	server := grpc.NewServer()
	coordinatorv1.RegisterPeerServiceServer(server, cluster.NewPeerServer(c))
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(grpcListener) }()
	return &node{Cluster: c, name: name, fsm: fsm, stop: func() { server.Stop(); <-served }}
}

// kill ends a member without a word to the others.
func (f *fleet) kill(name string) {
	f.net.isolate(name)
	f.nodes[name].stop()
	f.net.rejoin(name)
	delete(f.nodes, name)
}

// leader is the node that says that it leads, in the highest term if several do; nil if there is none.
func (f *fleet) leader() *node {
	var leader *node
	for name, n := range f.nodes {
		if id, _ := n.Leader(); id != name || n.LastContact() != 0 {
			continue
		}
		if leader == nil || n.Term() > leader.Term() {
			leader = n
		}
	}
	return leader
}

func (f *fleet) waitLeader() *node {
	f.t.Helper()
	var l *node
	eventually(f.t, func() error {
		if l = f.leader(); l == nil {
			return errors.New("no leader")
		}
		return nil
	})
	return l
}

func (f *fleet) waitVoters(want int) {
	f.t.Helper()
	eventually(f.t, func() error {
		for _, n := range f.nodes {
			peers, err := n.Peers()
			if err != nil {
				return err
			}
			voters := 0
			for _, p := range peers {
				if p.Voter && p.Reachable {
					voters++
				}
			}
			if voters != want {
				return fmt.Errorf("%s sees %d voters, want %d: %+v", n.name, voters, want, peers)
			}
		}
		return nil
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var requests atomic.Uint64

func put(name, value string) *raftv1.Command {
	return &raftv1.Command{
		RequestId: fmt.Sprintf("r%d", requests.Add(1)),
		Op:        &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: name, Value: []byte(value)}},
	}
}

// eventually calls until there is no error, for 20 s.
func eventually(t *testing.T, call func() error) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		if err = call(); err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("still after 20 s: %v", err)
		case <-tick.C:
		}
	}
}

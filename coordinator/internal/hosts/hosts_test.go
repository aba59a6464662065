package hosts_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
	"github.com/spheroseg/muster/coordinator/internal/port"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	joined     = coordinatorv1.HostState_HOST_STATE_JOINED
	up         = coordinatorv1.HostState_HOST_STATE_UP
	engineDown = coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN
	down       = coordinatorv1.HostState_HOST_STATE_DOWN
)

func anybody(grpcserver.Caller) error { return nil }

// The real thing: an agent dials the coordinator's port over TCP, and is called over that connection.
func TestCoordinatorCallsOverTheAgentsConnection(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := port.New(port.Options{
		Listener: l, Logger: slog.New(slog.DiscardHandler),
		TLS: mtls.Server(cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c1"), mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := hosts.New(hosts.Options{Registered: func(caller grpcserver.Caller) error {
		if caller.ID.Name != "h1" {
			return errors.New("not in the registry")
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("port: %v", err)
		}
	})
	running.Go(func() {
		if err := h.Serve(ctx, p.Agents()); err != nil {
			t.Errorf("hosts: %v", err)
		}
	})
	defer running.Wait()
	defer cancel()
	dial := func(f *fakeHost) *session {
		conn, err := tls.Dial("tcp", l.Addr().String(),
			mtls.Client(cluster.Credentials(t, accessv1.Role_ROLE_AGENT, f.name), accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent))
		if err != nil {
			t.Fatal(err)
		}
		s := f.serve(conn)
		t.Cleanup(s.stop)
		return s
	}

	stranger := dial(newFakeHost("stranger"))
	changed := h.Changed()
	first := dial(newFakeHost("h1"))
	cc := await(t, h, changed, "h1")
	stream, err := agentv1.NewHostServiceClient(cc).WatchHost(t.Context(), &agentv1.WatchHostRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || resp.GetInventory().GetHostname() != "h1" {
		t.Errorf("got %v, %v, want the inventory of h1", resp, err)
	}
	called, ok := peer.FromContext(stream.Context())
	if !ok {
		t.Fatal("the call has no peer")
	}
	info, ok := called.AuthInfo.(credentials.TLSInfo)
	if id, _ := mtls.PeerID(info.State); !ok || id.Name != "h1" {
		t.Errorf("the call went to %v, want h1 by its certificate", id)
	}
	if _, err := h.Conn("stranger"); !errors.Is(err, hosts.ErrNotConnected) || status.Code(err) != codes.Unavailable ||
		rpcerr.Reason(err) != "HOST_DOWN" {
		t.Errorf("connection of a stranger: %v, want ErrNotConnected", err)
	}

	// It comes back after its connection has ended; the old connection never does.
	changed = h.Changed()
	first.stop()
	if _, err := stream.Recv(); err == nil {
		t.Error("a call goes on over a connection that has ended")
	}
	dial(newFakeHost("h1"))
	second := await(t, h, changed, "h1")
	if _, err := agentv1.NewHostServiceClient(second).WatchHost(t.Context(), &agentv1.WatchHostRequest{}); err != nil {
		t.Errorf("call over the second connection: %v", err)
	}
	if _, err := agentv1.NewHostServiceClient(cc).WatchHost(t.Context(), &agentv1.WatchHostRequest{}); err == nil {
		t.Error("the first connection is alive again")
	}
	stranger.stop()
}

// await returns the connection of a host once it has one. changed must have been taken before the host connected.
func await(t *testing.T, h *hosts.Hosts, changed <-chan struct{}, host string) grpc.ClientConnInterface {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-changed:
		case <-timer.C:
			t.Fatalf("%s has not connected", host)
		}
		changed = h.Changed()
		if cc, err := h.Conn(host); err == nil {
			return cc
		}
	}
}

func TestNewestConnectionWins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		old := w.connect(newFakeHost("h1"))
		wait(t, time.Second)
		first, err := w.Conn("h1")
		if err != nil {
			t.Fatal(err)
		}
		r.taken()
		newer := newFakeHost("h1")
		w.connect(newer)
		wait(t, time.Second)
		second, err := w.Conn("h1")
		if err != nil || first == second {
			t.Fatalf("after a second connection: %v, %v, want another one than before", second, err)
		}
		if cc, ok := first.(*grpc.ClientConn); !ok || cc.GetState().String() != "SHUTDOWN" {
			t.Errorf("the older connection is %v, want it shut down", first)
		}
		old.stop()
		wait(t, time.Minute)
		if _, err := w.Conn("h1"); err != nil {
			t.Errorf("the end of the older connection took the newer one with it: %v", err)
		}
		if got := r.taken(); len(got) != 0 {
			t.Errorf("transitions %v, want none", got)
		}
	})
}

func TestStatesFollowWhatIsSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1", "h2")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		h1 := newFakeHost("h1")
		s := w.connect(h1)
		expect(t, r, time.Second, "h1 UP +inventory")

		h1.set(func(i *agentv1.Inventory) { i.Engine = &agentv1.EngineStatus{Error: "cannot connect"} })
		expect(t, r, time.Second, "h1 ENGINE_DOWN +inventory")
		h1.set(func(i *agentv1.Inventory) { i.Engine.Error = "cannot connect, second time"; i.MemoryBytes += 4096 })
		expect(t, r, time.Minute) // noise
		h1.set(func(i *agentv1.Inventory) { i.Engine = &agentv1.EngineStatus{Up: true, Version: "28.0"} })
		expect(t, r, time.Second, "h1 UP +inventory")
		h1.set(func(i *agentv1.Inventory) { i.Labels = map[string]string{"zone": "b"} })
		expect(t, r, time.Second, "h1 UP +inventory")

		s.stop()
		expect(t, r, 4*time.Second) // it may come back
		s = w.connect(h1)
		expect(t, r, time.Minute)
		s.stop()
		expect(t, r, 4*time.Second)
		expect(t, r, 3*time.Second, "h1 DOWN")
		w.connect(h1)
		expect(t, r, time.Second, "h1 UP")

		h1.silence(true) // the agent hangs, its kernel still answers
		expect(t, r, 25*time.Second)
		expect(t, r, 12*time.Second, "h1 DOWN")
		h1.silence(false)
		expect(t, r, 6*time.Second, "h1 UP")
		if got := r.states()["h2"].GetState(); got != joined {
			t.Errorf("the host that was never seen is %v", got)
		}
	})
}

// A partition drops packets and tells nobody.
func TestBlackHoleIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		h1 := newFakeHost("h1")
		a, c := net.Pipe()
		hole := &holeConn{Conn: a, open: make(chan struct{})}
		agent, coordinator := w.handshake(hole, c, "h1")
		t.Cleanup(h1.serve(agent).stop)
		w.pipes.conns <- coordinator
		expect(t, r, 7*time.Second, "h1 UP +inventory")
		close(hole.open)
		wait(t, 21*time.Second) // ping after 10 s without a word, no answer for 10 s more
		if _, err := w.Conn("h1"); !errors.Is(err, hosts.ErrNotConnected) {
			t.Errorf("Conn over a black hole: %v", err)
		}
		expect(t, r, 6*time.Second, "h1 DOWN")
		w.connect(h1)
		expect(t, r, time.Second, "h1 UP")
	})
}

func TestNewLeaderIsNotRash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1", "h2", "h3")
		for _, host := range r.hosts {
			host.State = up
		}
		r.hosts["h3"].State = engineDown
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		stop := w.lead()
		expect(t, r, 14*time.Second)
		w.connect(newFakeHost("h1"))
		expect(t, r, 500*time.Millisecond, "h1 UP +inventory")
		expect(t, r, 2*time.Second, "h2 DOWN", "h3 DOWN")
		stop()
		r.mu.Lock()
		r.hosts["h2"].State = up // by another leader
		r.mu.Unlock()
		wait(t, time.Hour)
		w.lead() // the office begins anew, and so does the patience
		expect(t, r, 14*time.Second)
		expect(t, r, 2*time.Second, "h2 DOWN")
	})
}

func TestFailedTransitionIsMadeUpFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1")
		r.fail = errors.New("no leader")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		w.connect(newFakeHost("h1"))
		expect(t, r, 5*time.Second)
		r.mu.Lock()
		r.fail = nil
		r.mu.Unlock()
		expect(t, r, 2*time.Second, "h1 UP +inventory")
	})
}

func TestManyTransitionsAreCommittedTogether(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 250 {
		names = append(names, fmt.Sprintf("h%03d", i))
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(names...)
		for _, host := range r.hosts {
			host.State = up
		}
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		wait(t, 17*time.Second)
		if got := len(r.taken()); got != 250 || r.calls != 3 {
			t.Errorf("%d transitions in %d commits, want 250 in 3", got, r.calls)
		}
	})
}

func TestRefusedWatchIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		h1 := newFakeHost("h1")
		h1.refusals = 3
		w.connect(h1)
		expect(t, r, 2500*time.Millisecond)
		if _, err := w.Conn("h1"); err != nil {
			t.Errorf("a host that does not tell how it is cannot be called: %v", err)
		}
		expect(t, r, time.Second, "h1 UP +inventory")
		if h1.streams != 4 {
			t.Errorf("asked %d times, want 4", h1.streams)
		}
	})
}

func TestConnectionThatServesNothingTakesNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition})
		w.lead()
		w.connect(newFakeHost("h1"))
		expect(t, r, time.Second, "h1 UP +inventory")
		agent, coordinator := w.tls("h1")
		w.pipes.conns <- coordinator
		got := make(chan error, 1)
		go func() { // it listens, but never says a word
			_, err := io.Copy(io.Discard, agent)
			got <- err
		}()
		wait(t, 15*time.Second)
		select {
		case err := <-got:
			t.Logf("ended with %v", err)
		default:
			t.Error("a connection on which nobody serves is still open after 15 s")
		}
		if _, err := w.Conn("h1"); err != nil {
			t.Errorf("it took the place of the one that serves: %v", err)
		}
		expect(t, r, time.Minute)
	})
}

func TestOtherRolesAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, hosts.Options{Registered: anybody})
		a, c := net.Pipe()
		creds := w.cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c2")
		peerEnd := tls.Client(a, mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC))
		ourEnd := tls.Server(c, mtls.Server(w.cluster.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c1"), mtls.ALPNgRPC))
		go func() { _ = ourEnd.Handshake() }()
		if err := peerEnd.Handshake(); err != nil {
			t.Fatal(err)
		}
		w.pipes.conns <- ourEnd
		if _, err := peerEnd.Read(make([]byte, 1)); err == nil {
			t.Error("a coordinator is taken for a host")
		}
		if _, err := w.Conn("c2"); !errors.Is(err, hosts.ErrNotConnected) {
			t.Errorf("Conn: %v", err)
		}
	})
}

func TestEachAnswersInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, hosts.Options{Registered: anybody})
		var names []string
		for i := range 10 {
			names = append(names, fmt.Sprintf("h%d", i))
		}
		for _, name := range names[:9] { // h9 is away
			w.connect(newFakeHost(name))
		}
		wait(t, time.Second)
		slices.Reverse(names)
		broken := errors.New("broken")
		var now, most atomic.Int32
		began := time.Now()
		answers := hosts.Each(t.Context(), w.Hosts, names, 3, 2*time.Second, func(ctx context.Context, host string, cc grpc.ClientConnInterface) (string, error) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			stream, err := agentv1.NewHostServiceClient(cc).WatchHost(ctx, &agentv1.WatchHostRequest{})
			if err != nil {
				return "", err
			}
			resp, err := stream.Recv()
			switch host {
			case "h5":
				return "ignored", broken
			case "h6":
				<-ctx.Done() // it hangs
				return "", ctx.Err()
			}
			timer := time.NewTimer(time.Second)
			defer timer.Stop()
			<-timer.C
			return resp.GetInventory().GetHostname(), err
		})
		for i, a := range answers {
			want, wantErr := names[i], error(nil)
			switch names[i] {
			case "h9":
				want, wantErr = "", hosts.ErrNotConnected
			case "h5":
				want, wantErr = "", broken
			case "h6":
				want, wantErr = "", context.DeadlineExceeded
			}
			if a.Host != names[i] || a.Value != want || !errors.Is(a.Err, wantErr) {
				t.Errorf("answer %d is %+v, want %q, %v", i, a, want, wantErr)
			}
		}
		if most.Load() != 3 {
			t.Errorf("%d calls at a time, want 3", most.Load())
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("it took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, a := range hosts.Each(ctx, w.Hosts, names, 3, time.Second, func(context.Context, string, grpc.ClientConnInterface) (int, error) { return 1, nil }) {
			if !errors.Is(a.Err, context.Canceled) {
				t.Errorf("after the context has ended: %+v", a)
			}
		}
	})
}

func TestServeEndsAllConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := hosts.New(hosts.Options{Registered: anybody})
		w := &world{t: t, cluster: identitytest.New(t, "test"), Hosts: h, pipes: &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Serve(ctx, w.pipes) }()
		w.connect(newFakeHost("h1"))
		wait(t, time.Second)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := h.Conn("h1"); !errors.Is(err, hosts.ErrNotConnected) {
			t.Errorf("after Serve: %v", err)
		}
	})
}

// wait lets simulated time pass, and everybody finish what they do then.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// expect lets time pass and compares the transitions that were recorded meanwhile.
func expect(t *testing.T, r *registry, d time.Duration, want ...string) {
	t.Helper()
	wait(t, d)
	var got []string
	for _, u := range r.taken() {
		line := u.GetHost() + " " + u.GetState().String()[len("HOST_STATE_"):]
		if u.GetInventory() != nil {
			line += " +inventory"
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		t.Errorf("within %v: transitions %q, want %q", d, got, want)
	}
}

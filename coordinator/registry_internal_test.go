package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	roleAgent       = accessv1.Role_ROLE_AGENT
	roleCoordinator = accessv1.Role_ROLE_COORDINATOR
)

func registered(role accessv1.Role, name string, serial byte) *raftv1.Identity {
	id := identity.ID{Cluster: "test", Role: role, Name: name}
	return &raftv1.Identity{Id: id.String(), Role: role, Name: name, Address: name + ":7443", Serial: []byte{serial}}
}

func callerWith(role accessv1.Role, name string, serial byte) grpcserver.Caller {
	return grpcserver.Caller{ID: identity.ID{Cluster: "test", Role: role, Name: name}, Serial: []byte{serial}}
}

// book is a state whose log has more commands than were applied.
type book struct {
	t     *testing.T
	state *state.State
	index uint64
}

func (b *book) apply(command *raftv1.Command) {
	b.t.Helper()
	b.index++
	command.Version, command.Now = state.CommandVersion, timestamppb.Now()
	if result := b.state.Apply(b.index, command); result.GetError() != nil {
		b.t.Fatalf("command %d: %s", b.index, result.GetError().GetMessage())
	}
}

// join registers an identity as a join does.
func (b *book) join(i *raftv1.Identity) {
	b.t.Helper()
	token := &raftv1.Token{
		Id: i.GetName() + string(i.GetSerial()), SecretHash: []byte("s"), Role: i.GetRole(), Name: i.GetName(), ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
	}
	b.apply(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: token}}})
	b.apply(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: token.GetId(), SecretHash: token.GetSecretHash(), Identity: i}}})
}

// newBook is a state with coordinator c1, host h1 and, evicted, coordinator c9.
func newBook(t *testing.T) *book {
	b := &book{t: t, state: state.New()}
	b.apply(&raftv1.Command{Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{ClusterId: "test", Identity: registered(roleCoordinator, "c1", 1)}}})
	b.join(registered(roleAgent, "h1", 1))
	evicted := registered(roleCoordinator, "c9", 1)
	evicted.Evicted = true
	b.join(evicted)
	return b
}

func TestRegistry(t *testing.T) {
	unreachable := func(context.Context) error { return errors.New("no leader") }
	for _, test := range []struct {
		name    string
		caller  grpcserver.Caller
		behind  func(*book) // what a read brings; nil if the leader cannot be reached
		current bool        // the leader was reached and has nothing new
		leader  string
		lookup  string // reason of the refusal; empty if there is none
		admit   bool
		empty   bool
	}{
		{name: "known", caller: callerWith(roleCoordinator, "c1", 1), admit: true},
		{name: "unknown", caller: callerWith(roleCoordinator, "c7", 1), current: true, leader: "c1", lookup: "UNKNOWN_IDENTITY"},
		{name: "older certificate", caller: callerWith(roleCoordinator, "c1", 7), current: true, leader: "c1", lookup: "UNKNOWN_IDENTITY"},
		{name: "older certificate of a host", caller: callerWith(roleAgent, "h1", 7), current: true, leader: "c1", lookup: "UNKNOWN_IDENTITY"},
		{name: "evicted", caller: callerWith(roleCoordinator, "c9", 1), leader: "c1", lookup: "UNKNOWN_IDENTITY"},
		{name: "evicted, no leader", caller: callerWith(roleCoordinator, "c9", 1), lookup: "UNKNOWN_IDENTITY"},
		{
			name: "joined a moment ago", caller: callerWith(roleCoordinator, "c2", 1), leader: "c1", admit: true,
			behind: func(b *book) { b.join(registered(roleCoordinator, "c2", 1)) },
		},
		{
			name: "logged in anew a moment ago", caller: callerWith(roleAgent, "h1", 2), leader: "c1", admit: true,
			behind: func(b *book) { b.join(registered(roleAgent, "h1", 2)) },
		},
		{
			name: "replaced a moment ago", caller: callerWith(roleAgent, "h1", 3), leader: "c1", lookup: "UNKNOWN_IDENTITY",
			behind: func(b *book) { b.join(registered(roleAgent, "h1", 2)) },
		},
		// This coordinator has restarted from a snapshot that is older than c5, and c5 leads: it must be let in to tell.
		{name: "this one is behind", caller: callerWith(roleCoordinator, "c5", 1), lookup: "NO_LEADER", admit: true},
		{name: "the leader that this one knew is gone", caller: callerWith(roleCoordinator, "c5", 1), leader: "c1", lookup: "NO_LEADER", admit: true},
		{name: "this one has no state yet", caller: callerWith(roleCoordinator, "c1", 1), empty: true, admit: true},
		{name: "no state yet, a host", caller: callerWith(roleAgent, "h1", 1), empty: true, lookup: "NO_LEADER", admit: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			fresh := func() *registry {
				b := newBook(t)
				if test.empty {
					b = &book{t: t, state: state.New()}
				}
				read := unreachable
				if test.current || test.behind != nil {
					read = func(context.Context) error {
						if test.behind != nil {
							test.behind(b)
						}
						return nil
					}
				}
				return &registry{state: b.state, read: read, leader: func() string { return test.leader }}
			}
			if err := fresh().lookup(test.caller); rpcerr.Reason(err) != test.lookup || (err == nil) != (test.lookup == "") {
				t.Errorf("lookup: %v, want %q", err, test.lookup)
			}
			if err := fresh().admit(mtls.ALPNRaft, test.caller); (err == nil) != test.admit {
				t.Errorf("raft: %v, want it admitted: %t", err, test.admit)
			}
			for _, alpn := range []string{mtls.ALPNgRPC, mtls.ALPNAgent} {
				if err := fresh().admit(alpn, test.caller); err != nil {
					t.Errorf("%s is not left to the gate: %v", alpn, err)
				}
			}
		})
	}
}

// founder is a real cluster of one.
func founder(t *testing.T) *coordinator {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "c1")
	logger := slog.New(slog.DiscardHandler)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), InitOptions{
		Settings: Settings{Name: "c1", Listen: address, Advertise: address}, DataDir: dir, ClusterName: "test", Logger: logger,
	}); err != nil {
		t.Fatal(err)
	}
	c, err := open(Options{DataDir: dir, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	if err := c.cluster.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// issue makes credentials with the cluster's own authority, and registers them if asked.
func (c *coordinator) issue(t *testing.T, role accessv1.Role, name string, register bool) *identity.Credentials {
	t.Helper()
	meta := c.state.View().Meta()
	id := identity.ID{Cluster: meta.GetClusterId(), Role: role, Name: name}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := identity.Issue(meta.GetAuthority(), id, csr, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root := meta.GetAuthority().GetRoot().GetCertificate()
	credentials, err := identity.NewCredentials(key, certificate.Chain, [][]byte{root})
	if err != nil {
		t.Fatal(err)
	}
	if !register {
		return credentials
	}
	address := ""
	if role == roleCoordinator {
		address = name + ":7443"
	}
	token, err := identity.NewToken(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []*raftv1.Command{
		{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
			Id: token.ID, SecretHash: token.SecretHash(), Role: role, Name: name, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
		}}}},
		{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: token.ID, SecretHash: token.SecretHash(), Identity: &raftv1.Identity{
			Id: id.String(), Role: role, Name: name, Address: address, Serial: certificate.Serial, ExpiresAt: timestamppb.New(certificate.NotAfter),
		}}}},
	} {
		result, err := c.propose(t.Context(), command)
		if err != nil || result.GetError() != nil {
			t.Fatalf("register %s: %v %v", id, err, result.GetError())
		}
	}
	return credentials
}

// taken says whether the coordinator keeps a connection: one that it refuses it closes, one of an agent it greets, and raft waits for the
// dialler's first word.
func (c *coordinator) taken(t *testing.T, credentials *identity.Credentials, alpn string) bool {
	t.Helper()
	conn, err := (&tls.Dialer{Config: mtls.Client(credentials, roleCoordinator, alpn)}).DialContext(t.Context(), "tcp", c.settings.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return true
	case errors.Is(err, io.EOF):
		return false
	}
	t.Logf("%s over %s: %v", credentials.ID(), alpn, err)
	return false
}

func TestConnectionsNeedTheRegistry(t *testing.T) {
	c := founder(t)
	older := c.issue(t, roleAgent, "h1", true)
	if !c.taken(t, older, mtls.ALPNAgent) {
		t.Error("the certificate of h1 is refused")
	}
	newer := c.issue(t, roleAgent, "h1", true)
	if c.taken(t, older, mtls.ALPNAgent) {
		t.Error("the certificate that h1 had before gets the host")
	}
	if !c.taken(t, newer, mtls.ALPNAgent) {
		t.Error("the newer certificate of h1 is refused")
	}
	if c.taken(t, c.issue(t, roleAgent, "h2", false), mtls.ALPNAgent) {
		t.Error("a host that never joined is taken")
	}
	if c.taken(t, c.issue(t, roleCoordinator, "c2", false), mtls.ALPNRaft) {
		t.Error("a coordinator that never joined may speak raft")
	}
	if !c.taken(t, c.credentials, mtls.ALPNRaft) {
		t.Error("a coordinator of the registry may not speak raft")
	}
}

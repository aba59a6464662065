package uplink_test

import (
	"crypto/tls"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/identity/identitytest"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// cluster returns the TLS of an agent, and of coordinators by name.
func cluster(t *testing.T) (*tls.Config, func(name string) *tls.Config) {
	t.Helper()
	c := identitytest.New(t, "test")
	agent := mtls.Client(c.Credentials(t, accessv1.Role_ROLE_AGENT, "h1"), accessv1.Role_ROLE_COORDINATOR, mtls.ALPNAgent)
	return agent, func(name string) *tls.Config {
		return mtls.Server(c.Credentials(t, accessv1.Role_ROLE_COORDINATOR, name), mtls.ALPNAgent)
	}
}

// none fails the test if the peer is dialled within the time in which it would be.
func none(t *testing.T, p *peer, why string) {
	t.Helper()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-p.accepted:
		t.Fatalf("%s is dialled: %s", p.Addr(), why)
	case <-timer.C:
	}
}

func TestSetDialsANewAddressAndKeepsWhatAnswers(t *testing.T) {
	t.Parallel()
	client, server := cluster(t)
	a, b := newPeer(t, server("c1")), newPeer(t, server("c2"))
	log := &lines{got: make(chan string, 64)}
	u := start(t, slog.New(slog.NewTextHandler(log, nil)), client, a.Addr().String())
	first := accept(t, u)
	a.take(t)

	u.Set([]string{b.Addr().String(), b.Addr().String()})
	if got := accept(t, u).RemoteAddr().String(); got != b.Addr().String() {
		t.Fatalf("got a connection to %s, want one to %s", got, b.Addr())
	}
	b.take(t)
	u.Set([]string{b.Addr().String()})
	none(t, b, "it has a connection")

	// The first answers, though nobody names it any more: it may be that the others are wrong.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	first = accept(t, u)
	a.take(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	// It does not, and the other does: it is dropped, and stays so when it comes back.
	for dropped := false; !dropped; {
		select {
		case line := <-log.got:
			dropped = strings.Contains(line, "dialled no longer") && strings.Contains(line, a.Addr().String())
		case <-time.After(10 * time.Second):
			t.Fatal("the address is not dropped")
		}
	}
	none(t, newPeerAt(t, a.Addr().String(), server("c1")), "it was dropped")
}

func TestAnAddressThatIsNotNamedIsTheWayBackWhileNoOtherAnswers(t *testing.T) {
	t.Parallel()
	client, server := cluster(t)
	a := newPeer(t, server("c1"))
	address := a.Addr().String()
	u := start(t, slog.New(slog.DiscardHandler), client, address)
	conn := accept(t, u)
	a.take(t)
	u.Set([]string{"127.0.0.1:1"}) // as a coordinator behind NAT that names itself by an address of its own side.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(time.Second) // some attempts fail.
	<-timer.C
	newPeerAt(t, address, server("c1")).take(t)
}

// TestOneConnectionToACoordinatorWithTwoAddresses: a coordinator keeps the newest connection of a host, so two would end one another for ever.
func TestOneConnectionToACoordinatorWithTwoAddresses(t *testing.T) {
	t.Parallel()
	client, server := cluster(t)
	config := server("c1")
	a, b := newPeer(t, config), newPeer(t, config)
	u := start(t, slog.New(slog.DiscardHandler), client, a.Addr().String())
	old := accept(t, u)
	a.take(t)
	u.Set([]string{b.Addr().String()})
	accept(t, u)
	b.take(t)
	if err := old.Close(); err != nil { // as the coordinator's end of it makes the agent do.
		t.Fatal(err)
	}
	none(t, a, "its coordinator is reached at the address that is named")

	// Both are named: whichever connection is newer holds.
	u.Set([]string{a.Addr().String(), b.Addr().String()})
	accept(t, u)
	a.take(t)
	none(t, b, "its connection holds")
}

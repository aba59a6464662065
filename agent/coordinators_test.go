package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/internal/identity/identitytest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// watch opens a watch that names coordinators, waits for its first beat, and leaves it open.
func watch(t *testing.T, cc *grpc.ClientConn, coordinators ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := agentv1.NewHostServiceClient(cc).WatchHost(ctx, &agentv1.WatchHostRequest{Coordinators: coordinators})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
}

// stored is what the agent remembers.
func stored(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestACoordinatorThatJoinsLaterIsDialled(t *testing.T) {
	for _, given := range []bool{false, true} {
		t.Run(fmt.Sprintf("coordinator given %t", given), func(t *testing.T) {
			t.Parallel()
			cluster := identitytest.New(t, "test")
			a := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c1")
			b := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c2")
			dir := join(t, a)
			var flags []string
			if given {
				flags = []string{a.address}
			}
			stop := run(t, dir, flags...)
			cc, _ := a.next()
			inventory(t, cc) // of a coordinator that knows no such field.
			if got := stored(t, dir); !strings.Contains(got, a.address) || strings.Contains(got, b.address) {
				t.Fatalf("got %q remembered, want the first coordinator", got)
			}

			watch(t, cc, a.address, b.address)
			second, _ := b.next()
			inventory(t, second)
			for _, want := range []string{a.address, b.address} {
				if got := stored(t, dir); !strings.Contains(got, want) {
					t.Errorf("got %q remembered, want %s in it", got, want)
				}
			}
			watch(t, cc) // an empty list says nothing.
			if got := stored(t, dir); !strings.Contains(got, b.address) {
				t.Errorf("got %q remembered after an empty list, want %s in it", got, b.address)
			}

			stop()
			run(t, dir, flags...)
			cc, _ = a.next()
			inventory(t, cc)
			cc, _ = b.next()
			inventory(t, cc)
		})
	}
}

func TestACoordinatorThatLeftIsForgotten(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test")
	a := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c1")
	b := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c2")
	dir := join(t, a)
	stop := run(t, dir)
	cc, _ := a.next()
	watch(t, cc, a.address, b.address)
	second, conn := b.next()
	inventory(t, second)
	address := b.address
	b.down()
	if err := conn.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	stop()

	run(t, dir)
	cc, _ = a.next()
	watch(t, cc, a.address)
	if got := stored(t, dir); strings.Contains(got, address) {
		t.Errorf("got %q remembered, want that %s is not", got, address)
	}
}

func TestAListThatCannotBeDialledIsTakenForWhatItIsWorth(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test")
	a := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c1")
	b := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c2")
	dir := join(t, a)
	run(t, dir)
	cc, _ := a.next()
	before := stored(t, dir)
	watch(t, cc, "c1", ":7443", "c1:https")
	if got := stored(t, dir); got != before {
		t.Errorf("got %q remembered after a list of no addresses, want %q", got, before)
	}
	list := []string{"nowhere", a.address, b.address}
	for i := range 30 {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", i+1))
	}
	watch(t, cc, list...)
	second, _ := b.next()
	inventory(t, second)
	if got := stored(t, dir); strings.Count(got, "127.0.0.1:") != 16 || strings.Contains(got, "nowhere") {
		t.Errorf("got %q remembered, want the first 16 addresses", got)
	}
}

// TestOneThatIsBehindForgetsNobody: of two watches that are open, one may come from a coordinator that has not heard of the newest yet.
func TestOneThatIsBehindForgetsNobody(t *testing.T) {
	t.Parallel()
	cluster := identitytest.New(t, "test")
	a := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c1")
	b := namedCoordinator(t, cluster, accessv1.Role_ROLE_COORDINATOR, "c2")
	dir := join(t, a)
	run(t, dir)
	cc, _ := a.next()
	watch(t, cc, a.address, b.address, "127.0.0.1:1")
	second, _ := b.next()
	watch(t, second, a.address, b.address)
	if got := stored(t, dir); strings.Count(got, "127.0.0.1:") != 3 {
		t.Errorf("got %q remembered, want all three", got)
	}
}

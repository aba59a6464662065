package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
)

func noConn(context.Context, string) (net.Conn, error) { return nil, errors.New("no network") }
func noPeer(context.Context, string) (grpc.ClientConnInterface, error) {
	return nil, errors.New("no network")
}

// offices records who leads when.
type offices struct {
	mu     sync.Mutex
	active map[string]int
	begun  map[string]int // by member and term
	errs   []error
}

// lead holds the office of a member until ctx ends, and a little longer.
func (o *offices) lead(member string) func(context.Context, uint64) error {
	return func(ctx context.Context, term uint64) error {
		o.mu.Lock()
		o.begun[fmt.Sprintf("%s/%d", member, term)]++
		if o.active[member]++; o.active[member] > 1 {
			o.errs = append(o.errs, fmt.Errorf("%s leads twice at a time, in term %d", member, term))
		}
		o.mu.Unlock()
		<-ctx.Done()
		<-time.After(20 * time.Millisecond)
		o.mu.Lock()
		o.active[member]--
		o.mu.Unlock()
		return nil
	}
}

func (o *offices) leading() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for name, n := range o.active {
		if n > 0 {
			names = append(names, name)
		}
	}
	return names
}

func TestLeadOncePerLeadershipAndWaitedFor(t *testing.T) {
	t.Parallel()
	o := &offices{active: map[string]int{}, begun: map[string]int{}}
	f := newFleet(t, func(opts *cluster.Options) { opts.Lead = o.lead(opts.ID) }, "c1", "c2", "c3")
	for round := range 5 {
		l := f.waitLeader()
		eventually(t, func() error {
			if names := o.leading(); len(names) != 1 || names[0] != l.name {
				return fmt.Errorf("leading: %v, want %s", names, l.name)
			}
			return nil
		})
		f.net.isolate(l.name)
		if round%2 == 0 { // it loses the office, and may win it again
			eventually(t, func() error {
				if n := f.leader(); n == nil || n == l {
					return errors.New("no new leader")
				}
				return nil
			})
		}
		f.net.rejoin(l.name)
	}
	for _, n := range f.nodes {
		n.stop()
		o.mu.Lock()
		if o.active[n.name] != 0 {
			t.Errorf("Run of %s returned before its Lead", n.name)
		}
		o.mu.Unlock()
	}
	for _, err := range o.errs {
		t.Error(err)
	}
	for office, times := range o.begun {
		if times != 1 {
			t.Errorf("office %s begun %d times", office, times)
		}
	}
	if len(o.begun) < 3 { // what the odd rounds add is up to chance
		t.Errorf("offices %v, want several", o.begun)
	}
}

func TestDeadWorkOfALeaderIsStartedAgain(t *testing.T) {
	t.Parallel()
	starts := make(chan uint64)
	f := newFleet(t, func(o *cluster.Options) {
		o.Lead = func(ctx context.Context, term uint64) error {
			select {
			case starts <- term:
				return errors.New("broken")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}, "c1")
	deadline := time.After(10 * time.Second)
	for range 3 {
		select {
		case <-starts:
		case <-deadline:
			t.Fatal("the work was not started again")
		}
	}
	if _, _, err := f.nodes["c1"].Propose(t.Context(), put("a", "b")); err != nil {
		t.Errorf("Propose while the work is broken: %v", err)
	}
}

func TestMembersAndAddressesAreUnique(t *testing.T) {
	t.Parallel()
	f := newFleet(t, nil, "c1", "c2", "c3")
	l := f.waitLeader()
	var moved string
	for name := range f.nodes {
		if name != l.name {
			moved = name
		}
	}
	if err := l.AddMember(t.Context(), moved, moved); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := l.AddMember(t.Context(), "c9", moved); !errors.Is(err, cluster.ErrInvalidCommand) {
		t.Errorf("a second member at one address: %v, want ErrInvalidCommand", err)
	}
	if err := l.AddMember(t.Context(), moved, "new"); !errors.Is(err, cluster.ErrInvalidCommand) {
		t.Errorf("a member at a second address: %v, want ErrInvalidCommand", err)
	}
	peers, err := l.Peers()
	if err != nil {
		t.Fatal(err)
	}
	if len(peers) != 3 {
		t.Errorf("peers %+v, want 3", peers)
	}
}

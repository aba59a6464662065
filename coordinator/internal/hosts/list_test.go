package hosts_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
)

// members is a list of coordinators that changes.
type members struct {
	mu      sync.Mutex
	list    []string
	changed chan struct{}
}

func (m *members) addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list
}

func (m *members) signal() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *members) set(list ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = list
	close(m.changed)
	m.changed = make(chan struct{})
}

func TestHostsAreToldOfAllCoordinators(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &members{list: []string{"c1:7443"}, changed: make(chan struct{})}
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{
			Registered: anybody, States: r.states, Transition: r.transition, Coordinators: m.addresses, CoordinatorsChanged: m.signal,
		})
		w.lead()
		h1 := newFakeHost("h1")
		w.connect(h1)
		told := func(want string, streams int) {
			t.Helper()
			h1.mu.Lock()
			defer h1.mu.Unlock()
			if got := fmt.Sprint(h1.told[len(h1.told)-1]); got != want || h1.streams != streams || h1.open != 1 {
				t.Errorf("told %s in watch %d, %d are open; want %s in watch %d, and that one open", got, h1.streams, h1.open, want, streams)
			}
		}
		expect(t, r, time.Second, "h1 UP +inventory")
		told("[c1:7443]", 1)
		m.set("c1:7443", "c2:7443")
		m.set("c1:7443", "c2:7443", "c3:7443")
		wait(t, 1500*time.Millisecond)
		told("[c1:7443 c2:7443 c3:7443]", 2)
		m.set("c1:7443", "c2:7443", "c3:7443") // another change of the state, which is none to hosts
		wait(t, 3*time.Second)
		told("[c1:7443 c2:7443 c3:7443]", 2)
		m.set("c1:7443", "c3:7443")
		wait(t, 1500*time.Millisecond)
		told("[c1:7443 c3:7443]", 3)
		many := make([]string, 20)
		for i := range many {
			many[i] = fmt.Sprintf("c%d:7443", i)
		}
		m.set(many...)
		wait(t, 1500*time.Millisecond)
		told(fmt.Sprint(many[:16]), 4)
		expect(t, r, time.Second) // The host has been up all the time.
	})
}

package hosts_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
)

// members is a list of coordinators that changes.
type members struct {
	mu   sync.Mutex
	list []string
}

func (m *members) addresses(context.Context) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list
}

func (m *members) set(list ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = list
}

func TestHostsAreToldOfAllCoordinators(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &members{list: []string{"c1:7443"}}
		r := newRegistry("h1")
		w := newWorld(t, hosts.Options{Registered: anybody, States: r.states, Transition: r.transition, Coordinators: m.addresses})
		w.lead()
		synctest.Wait()
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
		wait(t, 3*time.Second)
		told("[c1:7443 c2:7443 c3:7443]", 2)
		wait(t, 5*time.Second)
		told("[c1:7443 c2:7443 c3:7443]", 2)
		m.set("c1:7443", "c3:7443")
		wait(t, 3*time.Second)
		told("[c1:7443 c3:7443]", 3)
		m.set() // this coordinator is cut off: nothing is news to a host that is watched, and one that comes now is told nothing
		wait(t, 3*time.Second)
		told("[c1:7443 c3:7443]", 3)
		h2 := newFakeHost("h2")
		w.connect(h2)
		wait(t, time.Second)
		if got := fmt.Sprint(h2.told); got != "[[]]" {
			t.Errorf("a coordinator that is not sure told %s", got)
		}
		many := make([]string, 20)
		for i := range many {
			many[i] = fmt.Sprintf("c%d:7443", i)
		}
		m.set(many...)
		wait(t, 3*time.Second)
		told(fmt.Sprint(many[:16]), 4)
		expect(t, r, time.Second) // The host has been up all the time.
	})
}

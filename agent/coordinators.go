package agent

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/spheroseg/muster/agent/internal/uplink"
)

// maxCoordinators is what the contract allows in WatchHostRequest.coordinators.
const maxCoordinators = 16

// coordinators is what the agent knows of where its coordinators are. Each watch of the host tells it; it dials them and remembers them.
type coordinators struct {
	dir    string
	links  *uplink.Uplink
	logger *slog.Logger

	mu    sync.Mutex
	saved []string // in the data directory, sorted; nil if that is not known.
	next  int      // key of the next watch in told.
	told  map[int][]string
}

func newCoordinators(dir string, links *uplink.Uplink, logger *slog.Logger) *coordinators {
	c := &coordinators{dir: dir, links: links, logger: logger.With("component", "coordinators"), told: make(map[int][]string)}
	if stored, err := storedCoordinators(dir); err == nil {
		c.saved = sorted(stored)
	}
	return c
}

// Learn dials the coordinators at these addresses from now on, and those that other open watches told: one of the coordinators may be
// behind the others. When a watch ends, what it told stays until the next one.
func (c *coordinators) Learn(addresses []string) (forget func()) {
	list := c.usable(addresses)
	if len(list) == 0 {
		return func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := c.next
	c.next++
	c.told[key] = list
	all := slices.Clone(list)
	for _, other := range c.told {
		all = append(all, other...)
	}
	all = sorted(all)
	if len(all) > maxCoordinators { // the others are far behind, or lie.
		all = sorted(list)
	}
	c.links.Set(all)
	c.save(all)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.told, key)
	}
}

// usable leaves out what is no address, and what is more than the contract allows: a coordinator with a wrong address must not keep the
// others from the host.
func (c *coordinators) usable(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		if len(out) == maxCoordinators {
			c.logger.Warn("a coordinator names too many coordinators, the last ones are not dialled", "named", len(addresses), "dialled", maxCoordinators)
			break
		}
		if err := uplink.CheckAddress(a); err != nil {
			c.logger.Warn("a coordinator names one that cannot be dialled; correct its --advertise", "err", err)
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (c *coordinators) save(all []string) {
	if slices.Equal(all, c.saved) {
		return
	}
	if err := saveMembership(c.dir, membership{Coordinators: all}); err != nil {
		c.logger.Warn("the coordinators are dialled, but not remembered for the next start", "coordinators", all, "err", err)
		return
	}
	c.saved = all
	c.logger.Info("the coordinators are other ones now", "coordinators", all)
}

// sorted returns the addresses in order, each once.
func sorted(addresses []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(addresses)))
}

package coordinator

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// slew is by how much time runs slower while it is ahead of this machine's clock: a tenth.
	slew = 10
	// aheadTold is from which difference on it is told.
	aheadTold = time.Second
)

// clock is what a leader stamps commands with. Time in the state never goes back, so that after a leader whose clock was ahead it would stand
// still until this machine's clock has caught up, and with it every delay and deadline. The clock goes on from the state's time instead, a
// little slower, until both agree.
type clock struct {
	machine func() time.Time
	state   func() time.Time // highest time that a command carried
	log     *slog.Logger

	mu    sync.Mutex
	last  time.Time // of the machine, when it was asked last
	ahead time.Duration
}

func newClock(state func() time.Time, log *slog.Logger) *clock {
	return &clock{machine: time.Now, state: state, log: log}
}

// Now returns the time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	machine := c.machine()
	if !c.last.IsZero() {
		c.ahead = max(0, c.ahead-machine.Sub(c.last)/slew)
	}
	c.last = machine
	now := machine.Add(c.ahead)
	if state := c.state(); state.After(now) {
		if was := c.ahead; state.Sub(machine)-was > aheadTold {
			c.log.Warn("the clock of an earlier leader was ahead of this machine's: time goes on from there, a tenth slower; check the clocks of the coordinators",
				"ahead", state.Sub(machine).Round(time.Millisecond))
		}
		c.ahead, now = state.Sub(machine), state
	}
	return now
}

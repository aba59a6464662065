package runbook

import "time"

// place is where in a plan one slot of a service stands: what must come before its parts.
type place struct {
	create []string      // before its new container is created
	start  []string      // before anything of it is started or stopped
	delay  time.Duration // after that
}

// ends are the steps of a slot that others wait for.
type ends struct {
	started string
	serves  []string // its new container takes requests
	gone    []string // its old container does not run any more
}

// admission keeps the ready floor of a service: it lets at most `parallelism` slots be on their way to serve, and bounds by twice that how many old
// containers still end beside them. Every procedure that takes instances away asks it.
type admission struct {
	parallelism int
	delay       time.Duration
	past        []ends
}

// at returns the place of the i-th slot.
func (a *admission) at(i int) place {
	var p place
	if before := i - a.parallelism; before >= 0 {
		// Creating ahead takes no room: the container does not run. It waits for the wave before so that a failure leaves little to remove.
		p.create = []string{a.past[before].started}
		p.start = append(p.start, a.past[before].serves...)
		p.delay = a.delay
	}
	if before := i - 2*a.parallelism; before >= 0 {
		p.start = append(p.start, a.past[before].gone...)
	}
	return p
}

func (a *admission) record(e ends) { a.past = append(a.past, e) }

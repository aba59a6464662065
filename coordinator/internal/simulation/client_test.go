package simulation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	clients     = 3
	maxActive   = 5
	proposeTime = 12 * time.Second
)

// ack is a command whose result a client was told.
type ack struct {
	request string
	index   uint64
	answer  []byte
}

// access is one read or write of a register, as a client saw it.
type access struct {
	client   int
	key      string
	write    bool
	value    string // written or read
	version  uint64 // that it got; 0 for a read of nothing
	from, to int64
	unknown  bool // a write whose outcome nobody told
}

// crowd is the clients of a campaign and what they were told.
type crowd struct {
	sim     *sim
	planner *planner

	mu       sync.Mutex
	made     int
	acks     []ack
	accesses []access
	watches  []*watch
}

// rngFor gives every client its own dice.
func (s *sim) rngFor(who string) *rand.Rand { return rand.New(rand.NewPCG(s.seed, hash(who))) }

func (c *crowd) request() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	return fmt.Sprintf("q%d", c.made)
}

// anyNode that runs; nil if none does.
func (s *sim) anyNode(rng *rand.Rand) *node {
	at := rng.IntN(len(s.names))
	for i := range s.names {
		if n := s.node(s.names[(at+i)%len(s.names)]); n != nil {
			return n
		}
	}
	return nil
}

// propose tries a command on coordinators until one tells what became of it, three times at most.
func (c *crowd) propose(ctx context.Context, rng *rand.Rand, command *raftv1.Command) (result *raftv1.Result, unknown bool, err error) {
	command.RequestId = c.request()
	for range 3 {
		n := c.sim.anyNode(rng)
		if n == nil {
			return nil, unknown, cluster.ErrNoLeader
		}
		sent := proto.CloneOf(command)
		if c.sim.bugs.amnesia {
			sent.RequestId = ""
		}
		if c.sim.bugs.gossip && command.GetPutSecret() != nil && rng.IntN(4) == 0 {
			c.told(command.GetRequestId(), n.state.Index()+1, &raftv1.Result{Version: 1})
			return &raftv1.Result{Version: 1}, false, nil
		}
		var index uint64
		trying, cancel := context.WithTimeout(ctx, proposeTime)
		stop := context.AfterFunc(n.ctx, cancel) // a client hears nothing more from a coordinator that died
		result, index, err = n.cluster.Propose(trying, sent)
		stop()
		cancel()
		switch {
		case err == nil:
			c.told(command.GetRequestId(), index, result)
			return result, false, nil
		case errors.Is(err, cluster.ErrOutcomeUnknown):
			unknown = true
		case ctx.Err() != nil:
			return nil, unknown, err
		}
	}
	return nil, unknown, err
}

func (c *crowd) told(request string, index uint64, result *raftv1.Result) {
	result = proto.CloneOf(result)
	result.Replayed = false // is said of a repetition only
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks = append(c.acks, ack{request: request, index: index, answer: marshal(result)})
}

// client is one person who works until the context ends.
func (c *crowd) client(ctx context.Context, number int) {
	rng := c.sim.rngFor(fmt.Sprintf("client %d", number))
	for rest(ctx, 100*time.Millisecond+time.Duration(rng.Int64N(int64(3*time.Second)))) {
		switch dice := rng.IntN(10); {
		case dice < 3:
			c.write(ctx, rng, number)
		case dice < 7:
			c.read(ctx, rng, number)
		case dice < 9:
			c.startRun(ctx, rng)
		default:
			c.control(ctx, rng)
			c.answer(ctx, rng, 0.8)
		}
	}
}

// answer answers what some run asks: approvals with yes, mostly, and what became of an operation by what its host knows.
func (c *crowd) answer(ctx context.Context, rng *rand.Rand, yes float64) {
	n := c.sim.anyNode(rng)
	if n == nil {
		return
	}
	view := n.state.View()
	for _, run := range view.ActiveRuns() {
		for _, s := range view.Steps(run.GetId()) {
			if s.GetState() != coordinatorv1.StepState_STEP_STATE_ASKING {
				continue
			}
			command := &raftv1.Command{Actor: []string{"ann", "bob", "starter"}[rng.IntN(3)]}
			if s.GetAttempt() == 0 {
				command.Op = &raftv1.Command_DecideStep{DecideStep: &raftv1.DecideStep{
					RunId: run.GetId(), StepId: s.GetStepId(), PlanHash: run.GetPlanHash(), Approve: rng.Float64() < yes, Role: accessv1.Role_ROLE_OPERATOR,
				}}
			} else {
				command.Op = &raftv1.Command_ResolveStep{ResolveStep: &raftv1.ResolveStep{
					RunId: run.GetId(), StepId: s.GetStepId(), Resolution: c.sim.whatBecame(s),
				}}
			}
			_, _, _ = c.propose(ctx, rng, command) // What was told is kept.
		}
	}
}

// whatBecame looks at the host, as a person would.
func (s *sim) whatBecame(step *coordinatorv1.StepStatus) coordinatorv1.Resolution {
	h := s.host(step.GetHost())
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.effects[state.OperationID(step)] > 0 {
		return coordinatorv1.Resolution_RESOLUTION_DONE
	}
	return coordinatorv1.Resolution_RESOLUTION_NOT_DONE
}

func (c *crowd) key(rng *rand.Rand) string { return []string{"jwt", "smtp"}[rng.IntN(2)] }

func (c *crowd) write(ctx context.Context, rng *rand.Rand, number int) {
	a := access{client: number, key: c.key(rng), write: true, from: c.sim.seq.Add(1)}
	a.value = fmt.Sprintf("%d/%d", number, a.from)
	result, unknown, err := c.propose(ctx, rng, &raftv1.Command{
		Actor: fmt.Sprintf("client %d", number), Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: a.key, Value: []byte(a.value)}},
	})
	a.to = c.sim.seq.Add(1)
	switch {
	case err == nil && result.GetError() != nil:
		return // refused: nothing changed
	case err == nil:
		a.version = result.GetVersion()
	case unknown:
		a.unknown = true
	default:
		return // nothing was done
	}
	c.keep(a)
}

func (c *crowd) keep(a access) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accesses = append(c.accesses, a)
}

func (c *crowd) read(ctx context.Context, rng *rand.Rand, number int) {
	n := c.sim.anyNode(rng)
	if n == nil {
		return
	}
	a := access{client: number, key: c.key(rng), from: c.sim.seq.Add(1)}
	if !c.sim.bugs.hasty {
		reading, cancel := context.WithTimeout(ctx, proposeTime)
		defer cancel()
		defer context.AfterFunc(n.ctx, cancel)()
		if n.cluster.Read(reading) != nil {
			return
		}
	}
	secret := n.state.View().Secret(a.key, 0)
	a.value, a.version, a.to = string(secret.GetValue()), secret.GetVersion(), c.sim.seq.Add(1)
	c.keep(a)
}

func (c *crowd) startRun(ctx context.Context, rng *rand.Rand) {
	n := c.sim.anyNode(rng)
	if n == nil || len(n.state.View().ActiveRuns()) >= maxActive {
		return
	}
	if rng.IntN(2) == 0 {
		c.rollOut(ctx, rng)
		return
	}
	c.mu.Lock()
	plan := c.planner.plan()
	c.mu.Unlock()
	_, _, _ = c.propose(ctx, rng, &raftv1.Command{ // What was told is kept.
		Actor: "starter", Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan, Reason: "simulation"}},
	})
}

func (c *crowd) control(ctx context.Context, rng *rand.Rand) {
	n := c.sim.anyNode(rng)
	if n == nil {
		return
	}
	active := n.state.View().ActiveRuns()
	if len(active) == 0 {
		return
	}
	run := active[rng.IntN(len(active))]
	control := raftv1.RunControl(1 + rng.IntN(3))
	c.sim.note("%v of %s", control, run.GetId())
	c.steer(ctx, rng, run.GetId(), control)
}

func (c *crowd) steer(ctx context.Context, rng *rand.Rand, run string, control raftv1.RunControl) {
	_, _, _ = c.propose(ctx, rng, &raftv1.Command{ // What was told is kept.
		Actor: "operator", Op: &raftv1.Command_ControlRun{ControlRun: &raftv1.ControlRun{RunId: run, Control: control, Reason: "simulation"}},
	})
}

// settle lets every run end: it resumes what is paused, tries rollbacks again, and gives those up that cannot be done. False means that
// some run has not ended after all.
func (c *crowd) settle(within time.Duration) bool {
	rng, tried := c.sim.rngFor("caretaker"), map[string]int{}
	return c.sim.until("all runs end", within, func() bool {
		ctx := context.Background()
		n := c.sim.anyNode(rng)
		if n == nil || n.cluster.Read(ctx) != nil {
			return false
		}
		active := n.state.View().ActiveRuns()
		c.answer(ctx, rng, 1)
		for _, run := range active {
			switch run.GetState() {
			case coordinatorv1.RunState_RUN_STATE_PAUSED:
				c.steer(ctx, rng, run.GetId(), raftv1.RunControl_RUN_CONTROL_RESUME)
			case coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
				if tried[run.GetId()]++; tried[run.GetId()] < 4 {
					c.steer(ctx, rng, run.GetId(), raftv1.RunControl_RUN_CONTROL_RESUME)
				} else {
					c.steer(ctx, rng, run.GetId(), raftv1.RunControl_RUN_CONTROL_CANCEL)
				}
			}
		}
		if len(active) > 0 {
			rest(ctx, 2*time.Second)
		}
		return len(active) == 0
	})
}

// watch is one subscriber's stream of events, over one coordinator after the other.
type watch struct {
	pieces []piece
}

// piece is what a subscriber was told to be everything between two indexes.
type piece struct {
	after, upTo uint64
	events      []state.Event
}

// watch follows the events until the context ends. When a coordinator does not have them any more, it goes on at that one's present.
func (c *crowd) watch(ctx context.Context, number int) {
	w, rng := &watch{}, c.sim.rngFor(fmt.Sprintf("watch %d", number))
	c.mu.Lock()
	c.watches = append(c.watches, w)
	c.mu.Unlock()
	var at uint64
	for ctx.Err() == nil {
		n := c.sim.anyNode(rng)
		if n == nil {
			rest(ctx, time.Second)
			continue
		}
		session, cancel := context.WithTimeout(ctx, 500*time.Millisecond+time.Duration(rng.Int64N(int64(10*time.Second))))
		stop := context.AfterFunc(n.ctx, cancel)
		for session.Err() == nil {
			events, upTo, complete, err := n.state.Events(session, at)
			if err != nil {
				break
			}
			if !complete {
				at = max(at, n.state.View().Index())
				continue
			}
			if c.sim.bugs.leaky && len(events) > 1 && rng.IntN(10) == 0 {
				events = events[1:]
			}
			w.pieces = append(w.pieces, piece{after: at, upTo: upTo, events: events})
			at = upTo
		}
		stop()
		cancel()
		rest(ctx, 10*time.Millisecond)
	}
}

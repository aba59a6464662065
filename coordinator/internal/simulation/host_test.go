package simulation

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// deed is what a line of a host's journal tells.
type deed int

const (
	refused  deed = iota // a call with an old epoch was turned away
	called               // a call was admitted
	accepted             // an operation may have started, for the first time
	started              // its action began
	effected             // its effect happened
	finished             // its outcome was recorded
	crashed              // the agent died
)

func (d deed) String() string {
	return [...]string{"refused", "called", "accepted", "started", "effected", "finished", "crashed"}[d]
}

// fact is one line of a host's journal. The journal outlives the agent: it is what really happened.
type fact struct {
	seq         int64 // order over all hosts and the log
	deed        deed
	host        string
	op          string
	method      string
	container   string
	effect      accessv1.Effect
	epoch       uint64
	fence       uint64
	incarnation int
	response    []byte
	failure     *agentv1.OperationFailure
}

func (f fact) String() string {
	text := fmt.Sprintf("#%d %s %s %s %s epoch %d", f.seq, f.host, f.deed, f.op, f.method, f.epoch)
	if f.failure != nil {
		text += " failed: " + f.failure.GetMessage()
	}
	return text
}

// temper is how the hosts of a campaign behave.
type temper struct {
	failing    float64 // share of the attempts that fail
	slow       float64 // share of the actions that take longer than their timeout may be
	forgetful  bool    // bug: an agent that died forgets its ledger, and its actions do not find what they did
	indulgent  bool    // bug: an agent takes calls of any epoch
	impatience bool    // bug: an agent performs a once-only operation again after it died
}

// host is a simulated agent: the contract of proto/muster/agent/v1/operation.proto, and containers that are only counted.
type host struct {
	name   string
	wire   *wire
	seq    *atomic.Int64
	temper temper
	seed   uint64

	mu          sync.Mutex
	rng         *rand.Rand
	up          bool
	incarnation int
	epoch       uint64
	ledger      map[string]*operation
	effects     map[string]int // by operation id: what the containers' labels tell
	running     map[string]bool
	journal     []fact
}

// operation is an entry of the ledger.
type operation struct {
	method, digest string
	container      string
	effect         accessv1.Effect
	attempt        *attempt // nil unless it runs
	ended          bool
	response       proto.Message
	failure        *agentv1.OperationFailure
}

type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newHost(name string, seed uint64, w *wire, seq *atomic.Int64, temper temper) *host {
	return &host{
		name: name, wire: w, seq: seq, temper: temper, seed: seed, rng: rand.New(rand.NewPCG(seed, hash(name))), up: true,
		ledger: map[string]*operation{}, effects: map[string]int{}, running: map[string]bool{},
	}
}

func hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	return h.Sum64()
}

// write adds a line to the journal; the lock is held.
func (h *host) write(f fact) {
	f.seq, f.host, f.incarnation = h.seq.Add(1), h.name, h.incarnation
	h.journal = append(h.journal, f)
}

// crash ends the agent: what runs is cut off without an outcome, and only the ledger and the containers stay.
func (h *host) crash() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.up {
		return
	}
	h.up = false
	h.write(fact{deed: crashed})
	h.incarnation++
	for id, op := range h.ledger {
		if op.attempt == nil {
			continue
		}
		op.attempt.cancel()
		close(op.attempt.done)
		op.attempt = nil
		switch {
		case op.effect == accessv1.Effect_EFFECT_NONE:
			delete(h.ledger, id) // not worth a write before it ends
		case op.effect == accessv1.Effect_EFFECT_ONCE && !h.temper.impatience:
			op.ended = true
			op.failure = &agentv1.OperationFailure{OperationId: id, Reason: agentv1.FailureReason_FAILURE_REASON_INTERRUPTED, Message: "the agent died meanwhile"}
			h.write(fact{deed: finished, op: id, method: op.method, container: op.container, effect: op.effect, failure: op.failure})
		}
	}
	if h.temper.forgetful {
		clear(h.ledger)
		clear(h.effects)
	}
}

func (h *host) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.up = true
}

func (h *host) alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up
}

// facts of the journal so far.
func (h *host) facts() []fact {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]fact(nil), h.journal...)
}

// serve is one call that reached the host.
func (h *host) serve(ctx context.Context, method string, effect accessv1.Effect, request, response proto.Message) (proto.Message, error) {
	if cancel, ok := request.(*agentv1.CancelOperationRequest); ok {
		h.giveUp(cancel.GetOperationId(), cancel.GetEpoch())
		return response, nil
	}
	if list, ok := request.(*agentv1.ListOperationsRequest); ok {
		return h.list(list.GetPrefix(), list.GetEpoch())
	}
	op, running, err := h.claim(method, effect, request, response)
	if err != nil {
		return nil, err
	}
	if running != nil {
		select {
		case <-running.done:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !op.ended:
		return nil, status.Error(codes.Unavailable, "the agent died")
	case op.failure != nil:
		return nil, &rpcerr.OperationError{Failure: op.failure}
	}
	return op.response, nil
}

// list says which operations the ledger knows. An engine that asks makes the host deaf to those before it.
func (h *host) list(prefix string, epoch uint64) (proto.Message, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.up {
		return nil, status.Error(codes.Unavailable, "the agent does not run")
	}
	if epoch > 0 && epoch < h.epoch && !h.temper.indulgent {
		return nil, status.Errorf(codes.FailedPrecondition, "epoch %d is old, the highest seen is %d", epoch, h.epoch)
	}
	h.epoch = max(h.epoch, epoch)
	answer := &agentv1.ListOperationsResponse{}
	for id := range h.ledger {
		if strings.HasPrefix(id, prefix) {
			answer.Operations = append(answer.Operations, &agentv1.LedgerEntry{OperationId: id})
		}
	}
	return answer, nil
}

// named is every request with an operation and a container.
type named interface {
	proto.Message
	GetOperation() *agentv1.Operation
}

func containerOf(request proto.Message) string {
	switch r := request.(type) {
	case interface{ GetName() string }:
		return r.GetName()
	case *agentv1.CreateContainerRequest:
		return r.GetSpec().GetName()
	}
	return ""
}

// claim admits a call and finds or starts its operation.
func (h *host) claim(method string, effect accessv1.Effect, request, response proto.Message) (*operation, *attempt, error) {
	r, ok := request.(named)
	if !ok {
		return nil, nil, status.Errorf(codes.Unimplemented, "simulated hosts do not know %s", method)
	}
	asked, container := r.GetOperation(), containerOf(request)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.up {
		return nil, nil, status.Error(codes.Unavailable, "the agent does not run")
	}
	f := fact{op: asked.GetId(), method: method, container: container, effect: effect, epoch: asked.GetEpoch(), fence: asked.GetFence()}
	if asked.GetEpoch() < h.epoch && !h.temper.indulgent {
		f.deed = refused
		h.write(f)
		return nil, nil, status.Errorf(codes.FailedPrecondition, "epoch %d is old, the highest seen is %d", asked.GetEpoch(), h.epoch)
	}
	h.epoch = max(h.epoch, asked.GetEpoch())
	f.deed = called
	h.write(f)
	op := h.ledger[asked.GetId()]
	if op == nil {
		op = &operation{method: method, digest: asked.GetDigest(), container: container, effect: effect}
		h.ledger[asked.GetId()] = op
		f.deed = accepted
		h.write(f)
	}
	switch {
	case op.digest != asked.GetDigest() || op.method != method:
		return nil, nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, "operation %s is another one here", asked.GetId())
	case op.attempt == nil && !op.ended:
		ctx, cancel := context.WithCancel(context.Background())
		mine := &attempt{cancel: cancel, done: make(chan struct{})}
		op.attempt = mine
		f.deed = started
		h.write(f)
		h.wire.work.Go(func() {
			defer cancel()
			h.act(ctx, op, mine, asked, f, proto.Clone(response))
		})
	}
	return op, op.attempt, nil
}

// act performs an operation in its time: the effect is in the middle of it.
func (h *host) act(ctx context.Context, op *operation, mine *attempt, asked *agentv1.Operation, f fact, response proto.Message) {
	takes, limit := h.pace(), asked.GetTimeout().AsDuration()
	timedOut := limit > 0 && takes > limit
	if timedOut {
		takes = limit
	}
	if !h.wait(ctx, takes/2) {
		return
	}
	verdict, failing := rand.New(rand.NewPCG(h.seed, hash(asked.GetId()))).Float64(), h.temper.failing
	if strings.Contains(op.container, shop) {
		failing /= 8 // An update has so many steps that hardly one would succeed.
	}
	h.mu.Lock()
	if op.attempt == mine && f.effect != accessv1.Effect_EFFECT_NONE && (h.effects[asked.GetId()] == 0 || f.effect == accessv1.Effect_EFFECT_ONCE) {
		h.effects[asked.GetId()]++
		h.happen(f)
	}
	h.mu.Unlock()
	if !h.wait(ctx, takes-takes/2) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if op.attempt != mine {
		return
	}
	switch {
	case timedOut:
		op.failure = &agentv1.OperationFailure{OperationId: asked.GetId(), Reason: agentv1.FailureReason_FAILURE_REASON_TIMEOUT, Message: "too slow"}
	case verdict < failing:
		op.failure = &agentv1.OperationFailure{
			OperationId: asked.GetId(), Reason: agentv1.FailureReason_FAILURE_REASON_ENGINE, Message: "the simulated engine said no", Permanent: verdict < failing/3,
		}
	}
	op.ended, op.attempt, op.response = true, nil, response
	switch r := response.(type) {
	case *agentv1.CreateContainerResponse:
		r.Id = fmt.Sprintf("%x", hash(asked.GetId()))
	case *agentv1.InspectContainerResponse:
		if r.State = "exited"; h.running[f.container] {
			r.State = "running"
		}
	}
	f.deed, f.failure = finished, op.failure
	if op.failure == nil {
		f.response, _ = proto.Marshal(response) // Messages of ours always marshal.
	}
	h.write(f)
	close(mine.done)
}

// happen changes the containers; the lock is held.
func (h *host) happen(f fact) {
	f.deed = effected
	h.write(f)
	switch _, verb, _ := strings.Cut(f.method, "/"); verb {
	case "StartContainer":
		h.running[f.container] = true
	case "StopContainer", "RemoveContainer":
		delete(h.running, f.container)
	}
}

// pace is how long an action takes.
func (h *host) pace() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rng.Float64() < h.temper.slow {
		return 5*time.Second + time.Duration(h.rng.Int64N(int64(40*time.Second)))
	}
	return 5*time.Millisecond + time.Duration(h.rng.Int64N(int64(1500*time.Millisecond)))
}

func (h *host) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-h.wire.done:
	}
	return false
}

// giveUp cancels an operation without an effect.
func (h *host) giveUp(id string, epoch uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := h.ledger[id]
	if op == nil || op.attempt == nil || op.effect != accessv1.Effect_EFFECT_NONE || epoch < h.epoch || !h.up {
		return
	}
	op.attempt.cancel()
	op.ended, op.failure = true, &agentv1.OperationFailure{OperationId: id, Reason: agentv1.FailureReason_FAILURE_REASON_CANCELLED, Message: "cancelled"}
	h.write(fact{deed: finished, op: id, method: op.method, container: op.container, failure: op.failure})
	close(op.attempt.done)
	op.attempt = nil
}

// hostConn is a coordinator's connection to a host.
type hostConn struct {
	from string
	host *host
	wire *wire
}

var _ grpc.ClientConnInterface = hostConn{}

// Invoke calls the host. Requests may arrive twice and answers may be lost, as on any network.
func (c hostConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	request, ok := args.(proto.Message)
	response, ok2 := reply.(proto.Message)
	if !ok || !ok2 {
		return status.Errorf(codes.Internal, "%s takes no messages", method)
	}
	request, method = proto.Clone(request), strings.TrimPrefix(method, "/")
	if c.wire.gate != nil {
		c.wire.gate(c.from, method)
	}
	effect, blank := effectOf(method), proto.Clone(response)
	serve := func(ctx context.Context) (proto.Message, error) {
		return c.host.serve(ctx, method, effect, request, blank)
	}
	c.wire.mu.Lock()
	twice, lost := c.wire.rng.Float64() < c.wire.doubling, c.wire.rng.Float64() < c.wire.losing
	again := time.Duration(c.wire.rng.Int64N(int64(5 * time.Second)))
	c.wire.mu.Unlock()
	if twice {
		c.wire.work.Go(func() {
			if !c.host.wait(context.Background(), again) {
				return
			}
			late, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, _ = c.wire.call(late, c.from, c.host.name, serve) // nobody waits for it
		})
	}
	answer, err := c.wire.call(ctx, c.from, c.host.name, serve)
	if lost && ctx.Err() == nil {
		return status.Error(codes.Unavailable, "the answer was lost")
	}
	if err != nil {
		return err
	}
	proto.Reset(response)
	proto.Merge(response, answer)
	return nil
}

// NewStream is not part of what the engine needs.
func (c hostConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "simulated hosts have no streams")
}

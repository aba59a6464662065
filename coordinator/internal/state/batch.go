package state

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"

	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// ApplyBatch applies commands at their raft indexes as Apply does one after the other, and makes them visible together: a table is copied once a
// batch, and waiters wake once. How the log is cut into batches differs from member to member, so the outcome must not depend on it.
func (s *State) ApplyBatch(indexes []uint64, commands []*raftv1.Command) []*raftv1.Result {
	results := make([]*raftv1.Result, 0, len(commands))
	for len(results) < len(commands) {
		done := len(results)
		results = append(results, s.together(indexes[done:], commands[done:])...)
	}
	return results
}

// together applies commands in one transaction, at least the first. A command that is refused after it has written takes the transaction with it:
// then those before it are applied anew without it, and it gets a transaction of its own.
func (s *State) together(indexes []uint64, commands []*raftv1.Command) []*raftv1.Result {
	b := s.begin()
	results := make([]*raftv1.Result, 0, len(commands))
	for i, command := range commands {
		result, spoiled := b.apply(indexes[i], command)
		if spoiled && i > 0 {
			b.txn.Abort()
			return s.together(indexes[:i], commands[:i])
		}
		results = append(results, result)
		if spoiled {
			b.txn.Abort()
			s.remember(indexes[i], b.meta)
			return results
		}
	}
	b.commit(indexes[len(indexes)-1])
	return results
}

// batch is a transaction in which one or more commands are applied. What nearly every command changes (the meta object, the requests, the newest
// versions of secrets) is kept beside the transaction until the end, because a read of a table that the transaction has changed copies it.
type batch struct {
	state  *State
	before *View
	txn    *memdb.Txn
	meta   *raftv1.Meta
	events []Event

	// oldest of the requests in before, and the one that it stands at; nil when none is left. begun says that it was asked.
	oldest memdb.ResultIterator
	head   *raftv1.Request
	begun  bool
	// forgotten requests of before, fresh ones in order of arrival, of which the first gone are forgotten again, and both by their ids.
	forgotten    []*raftv1.Request
	forgottenIDs map[string]bool
	fresh        []*raftv1.Request
	freshByID    map[string]*raftv1.Request
	gone         int
	// secrets are the newest versions of those that were written.
	secrets map[string]uint64
}

func (s *State) begin() *batch {
	before := s.View()
	return &batch{
		state: s, before: before, txn: s.db.Txn(true), meta: clone(before.Meta()),
		forgottenIDs: map[string]bool{}, freshByID: map[string]*raftv1.Request{}, secrets: map[string]uint64{},
	}
}

// apply applies one command. spoiled says that it is refused and has written nevertheless.
func (b *batch) apply(index uint64, command *raftv1.Command) (result *raftv1.Result, spoiled bool) {
	if command.GetVersion() != CommandVersion {
		panic(fmt.Sprintf("state: command %d has version %d; this program knows version %d only", index, command.GetVersion(), CommandVersion))
	}
	c := &change{batch: b, txn: b.txn, index: index, actor: command.GetActor(), meta: b.meta}
	c.now = command.GetNow().AsTime()
	if last := c.meta.GetNow().AsTime(); c.now.Before(last) {
		c.now = last
	}
	c.meta.Now, c.meta.Index = c.stamp(), index

	digest := commandDigest(command)
	if replayed := replay(b.request(command.GetRequestId()), command.GetRequestId(), digest); replayed != nil {
		return replayed, false
	}
	result, err := c.guarded(command)
	if err != nil {
		return refused(err), len(c.events) > 0
	}
	c.rememberRequest(command.GetRequestId(), digest, result)
	b.events = append(b.events, c.events...)
	return result, false
}

// commit writes what was kept beside the transaction and makes all of it visible.
func (b *batch) commit(index uint64) {
	c := &change{txn: b.txn, index: index}
	for _, request := range b.forgotten {
		c.drop(tableRequest, request.GetId(), request)
	}
	for _, request := range b.fresh[b.gone:] {
		c.put(tableRequest, request.GetId(), request)
	}
	c.put(tableMeta, "meta", b.meta)
	b.txn.Commit()
	b.state.publish(index, b.events)
}

// request that was seen, by its id; nil if there is none.
func (b *batch) request(id string) *raftv1.Request {
	if id == "" {
		return nil
	}
	if seen := b.freshByID[id]; seen != nil || b.forgottenIDs[id] {
		return seen
	}
	return b.before.Request(id)
}

// addRequest takes a request, and forgets those that are too old or too many at this moment.
func (b *batch) addRequest(request *raftv1.Request, now time.Time) {
	b.fresh = append(b.fresh, request)
	b.freshByID[request.GetId()] = request
	b.meta.Requests++
	for {
		old := b.oldestRequest()
		if old == nil || b.meta.GetRequests() <= requestsKept && now.Sub(old.GetAt().AsTime()) <= requestAge {
			return
		}
		b.meta.Requests--
		if b.head == nil { // all of before are forgotten, so the oldest is a fresh one
			b.gone++
			delete(b.freshByID, old.GetId())
			continue
		}
		b.forgotten = append(b.forgotten, old)
		b.forgottenIDs[old.GetId()] = true
		b.next()
	}
}

// oldestRequest that is not forgotten; nil if there is none.
func (b *batch) oldestRequest() *raftv1.Request {
	if !b.begun {
		b.begun = true
		it, err := b.before.txn.Get(tableRequest, indexOrder+"_prefix", "")
		if err != nil {
			panic("state: list requests: " + err.Error())
		}
		b.oldest = it
		b.next()
	}
	switch {
	case b.head != nil:
		return b.head
	case b.gone < len(b.fresh):
		return b.fresh[b.gone]
	}
	return nil
}

func (b *batch) next() {
	b.head = nil
	if raw := b.oldest.Next(); raw != nil {
		b.head = raw.(*raftv1.Request)
	}
}

// newestVersion of a secret.
func (b *batch) newestVersion(name string) uint64 {
	if newest, written := b.secrets[name]; written {
		return newest
	}
	return b.before.Secret(name, 0).GetVersion()
}

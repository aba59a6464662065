package state

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// Tables of the state. Those that clients may watch are kinds of events, too.
const (
	tableMeta     = "meta"
	tableIdentity = "identity"
	tableToken    = "token"
	tableHost     = "host"
	tableStack    = "stack"
	tableRelease  = "release"
	tableRun      = "run"
	tablePlan     = "plan"
	tableStep     = "step"
	tableLock     = "lock"
	tableSecret   = "secret"
	tableRequest  = "request"

	tableProcedure = "procedure"
)

const (
	indexID     = "id"
	indexOrder  = "order"  // runs by start, requests by arrival, steps by ordinal within their run
	indexActive = "active" // runs that have not ended, steps whose operation is open
)

// keyed indexes objects of type T by a key that a function derives; objects without a key are not in the index.
type keyed[T any] struct{ key func(T) []byte }

// FromObject returns the key of an object.
func (k keyed[T]) FromObject(raw any) (bool, []byte, error) {
	object, ok := raw.(T)
	if !ok {
		return false, nil, fmt.Errorf("state: %T in an index of %T", raw, object)
	}
	key := k.key(object)
	return key != nil, key, nil
}

// FromArgs returns the key that is looked up.
func (k keyed[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("state: %d arguments for a key", len(args))
	}
	switch key := args[0].(type) {
	case string:
		return []byte(key), nil
	case []byte:
		return key, nil
	default:
		return nil, fmt.Errorf("state: %T as a key", args[0])
	}
}

// PrefixFromArgs returns the prefix that is looked up.
func (k keyed[T]) PrefixFromArgs(args ...any) ([]byte, error) { return k.FromArgs(args...) }

func byKey[T any](name string, unique, sparse bool, key func(T) []byte) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, Unique: unique, AllowMissing: sparse, Indexer: keyed[T]{key: key}}
}

func table(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
	schema := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, index := range indexes {
		schema.Indexes[index.Name] = index
	}
	return schema
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func numbered(prefix string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(prefix), 0), n)
}

func stepKey(run, step string) []byte { return []byte(run + "\x00" + step) }

func schema() *memdb.DBSchema {
	tables := []*memdb.TableSchema{
		table(tableMeta, byKey(indexID, true, false, func(*raftv1.Meta) []byte { return []byte("meta") })),
		table(tableIdentity, byKey(indexID, true, false, func(i *raftv1.Identity) []byte { return []byte(i.GetId()) })),
		table(tableToken, byKey(indexID, true, false, func(t *raftv1.Token) []byte { return []byte(t.GetId()) })),
		table(tableHost, byKey(indexID, true, false, func(h *coordinatorv1.Host) []byte { return []byte(h.GetName()) })),
		table(tableStack, byKey(indexID, true, false, func(s *coordinatorv1.Stack) []byte { return []byte(s.GetName()) })),
		table(tableRelease, byKey(indexID, true, false, func(r *coordinatorv1.Release) []byte {
			return numbered(r.GetStack(), r.GetNumber())
		})),
		table(tableRun,
			byKey(indexID, true, false, func(r *coordinatorv1.Run) []byte { return []byte(r.GetId()) }),
			byKey(indexOrder, true, false, func(r *coordinatorv1.Run) []byte { return number(r.GetFence()) }),
			byKey(indexActive, true, true, func(r *coordinatorv1.Run) []byte {
				if Terminal(r.GetState()) {
					return nil
				}
				return number(r.GetFence())
			})),
		table(tablePlan, byKey(indexID, true, false, func(p *raftv1.PlanRecord) []byte { return []byte(p.GetRunId()) })),
		table(tableStep,
			byKey(indexID, true, false, func(s *coordinatorv1.StepStatus) []byte { return stepKey(s.GetRunId(), s.GetStepId()) }),
			byKey(indexOrder, true, false, func(s *coordinatorv1.StepStatus) []byte {
				return numbered(s.GetRunId(), uint64(s.GetOrdinal()))
			}),
			byKey(indexActive, true, true, func(s *coordinatorv1.StepStatus) []byte {
				if !open(s.GetState()) {
					return nil
				}
				return stepKey(s.GetRunId(), s.GetStepId())
			})),
		table(tableLock, byKey(indexID, true, false, func(l *raftv1.Lock) []byte { return []byte(l.GetName()) })),
		table(tableSecret, byKey(indexID, true, false, func(s *raftv1.Secret) []byte {
			return numbered(s.GetName(), s.GetVersion())
		})),
		table(tableProcedure, byKey(indexID, true, false, func(p *coordinatorv1.StoredProcedure) []byte { return []byte(p.GetName()) })),
		table(tableRequest,
			byKey(indexID, true, false, func(r *raftv1.Request) []byte { return []byte(r.GetId()) }),
			byKey(indexOrder, true, false, func(r *raftv1.Request) []byte { return number(r.GetIndex()) })),
	}
	schema := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		schema.Tables[t.Name] = t
	}
	return schema
}

package container

import (
	"context"
	"fmt"
	"sync"
)

// nameLocks are locks by name that exist only while somebody holds or awaits them.
type nameLocks struct {
	mu   sync.Mutex
	held map[string]*nameLock
}

type nameLock struct {
	slot  chan struct{} // holds one token while the lock is taken.
	users int
}

func newNameLocks() *nameLocks { return &nameLocks{held: make(map[string]*nameLock)} }

// lock takes the lock of name, or gives up when ctx ends. The caller runs the returned function once, to release it.
func (l *nameLocks) lock(ctx context.Context, name string) (func(), error) {
	l.mu.Lock()
	n := l.held[name]
	if n == nil {
		n = &nameLock{slot: make(chan struct{}, 1)}
		l.held[name] = n
	}
	n.users++
	l.mu.Unlock()

	select {
	case n.slot <- struct{}{}:
		return func() {
			<-n.slot
			l.leave(name, n)
		}, nil
	case <-ctx.Done():
		l.leave(name, n)
		return nil, fmt.Errorf("wait for another operation on %q: %w", name, ctx.Err())
	}
}

func (l *nameLocks) leave(name string, n *nameLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.users--; n.users == 0 {
		delete(l.held, name)
	}
}

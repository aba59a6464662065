package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Witness writes down what the engines themselves tell of containers. It is how the fleet proves that something happened exactly once.
type Witness struct {
	mu     sync.Mutex
	events []Event
	wake   chan struct{} // closed and replaced with every event
}

// Watch starts a witness of the engines' events from now on. It follows an engine that is restarted; what the engine did while nobody could hear it is
// told by the engine's own memory of events, if it was not the engine that was killed.
func (f *Fleet) Watch(ctx context.Context, engines ...*Engine) *Witness {
	w := &Witness{wake: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	f.OnClose("witness", func(context.Context) error {
		cancel()
		wg.Wait()
		return nil
	})
	since := time.Now()
	for _, e := range engines {
		wg.Go(func() { w.follow(ctx, e, since) })
	}
	return w
}

func (w *Witness) follow(ctx context.Context, e *Engine, since time.Time) {
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		// An engine that is down ends the stream with an error, which the next try outlives.
		_ = e.Events(ctx, since, time.Time{}, func(ev Event) {
			since = time.Unix(0, ev.TimeNano+1)
			ev.Engine = e
			w.add(ev)
		})
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
	}
}

func (w *Witness) add(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	close(w.wake)
	w.wake = make(chan struct{})
}

// Mark is a point in the record to which later questions can be limited.
func (w *Witness) Mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// Names returns the names of containers with the action since mark, one for each event and so several for what happened several times, sorted.
func (w *Witness) Names(mark int, action, prefix string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, e := range w.events[mark:] {
		if e.Action == action && strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// Await waits until the action has happened n times since mark.
func (w *Witness) Await(ctx context.Context, mark int, action, prefix string, n int) error {
	for {
		w.mu.Lock()
		wake := w.wake
		w.mu.Unlock()
		if len(w.Names(mark, action, prefix)) >= n {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d × %s of %s…: %w", n, action, prefix, ctx.Err())
		}
	}
}

// OnceEach says in which way the creations since mark differ from exactly one for each of the names; nil if they do not.
func (w *Witness) OnceEach(mark int, prefix string, names []string) error {
	created := w.Names(mark, "create", prefix)
	want := slices.Sorted(slices.Values(names))
	if slices.Equal(created, want) {
		return nil
	}
	return fmt.Errorf("the engines created %v, want exactly %v", created, want)
}

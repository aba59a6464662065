package command

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
)

// router sends interrupts to where they are understood: they end the command, or only the following of a run.
type router struct {
	following atomic.Bool
	ended     atomic.Bool // the command was.
	follower  chan os.Signal
}

// interruptible returns a context that an interrupt ends, unless a run is being followed. The function ends the watching.
func (a *app) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	a.router = &router{follower: make(chan os.Signal, 1)}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case s := <-a.Interrupts:
				a.router.route(s, cancel)
			case <-stop:
				return
			}
		}
	})
	return ctx, func() {
		close(stop)
		done.Wait()
		cancel()
	}
}

func (r *router) route(s os.Signal, cancel context.CancelFunc) {
	if !r.following.Load() {
		r.ended.Store(true)
		cancel()
		return
	}
	select {
	case r.follower <- s:
	default: // one is waiting to be seen.
	}
}

// divert sends interrupts to the channel until the function is called.
func (r *router) divert() (<-chan os.Signal, func()) {
	r.following.Store(true)
	return r.follower, func() { r.following.Store(false) }
}

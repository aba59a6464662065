package hosts

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Answer is what one host answered.
type Answer[T any] struct {
	// Host by its name.
	Host string
	// Value is what the call returned; zero if there is an error.
	Value T
	// Err of this host; the other answers count nevertheless.
	Err error
}

// Each calls many hosts at once, at most limit at a time and each for at most timeout, and returns one answer a host in the order of
// hosts. A host that is not connected answers ErrNotConnected; those not yet called when ctx ends answer its error.
func Each[T any](ctx context.Context, h *Hosts, hosts []string, limit int, timeout time.Duration,
	call func(ctx context.Context, host string, cc grpc.ClientConnInterface) (T, error),
) []Answer[T] {
	answers := make([]Answer[T], len(hosts))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(max(limit, 1), len(hosts)) {
		workers.Go(func() {
			for i := range next {
				answers[i] = ask(ctx, h, hosts[i], timeout, call)
			}
		})
	}
	for i := range hosts {
		next <- i // after ctx has ended each takes no time
	}
	close(next)
	workers.Wait()
	return answers
}

func ask[T any](ctx context.Context, h *Hosts, host string, timeout time.Duration,
	call func(ctx context.Context, host string, cc grpc.ClientConnInterface) (T, error),
) Answer[T] {
	if ctx.Err() != nil {
		return Answer[T]{Host: host, Err: context.Cause(ctx)}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cc, err := h.Await(ctx, host)
	if err != nil {
		return Answer[T]{Host: host, Err: err}
	}
	value, err := call(ctx, host, cc)
	if err != nil {
		return Answer[T]{Host: host, Err: err}
	}
	return Answer[T]{Host: host, Value: value}
}

package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

const (
	// commitConns is how many connections the clients of one system share, at most.
	commitConns = 8
	// commitKeys is how many keys are written in turn.
	commitKeys = 10000
	commitWarm = time.Second
	commitSpan = 3 * time.Second
)

// put writes one value under a key over a connection, and returns when it is committed. n is another for every call.
type put func(ctx context.Context, cc *grpc.ClientConn, n uint64) error

// commitSample is what one measurement showed.
type commitSample struct {
	perSecond float64
	p50, p99  time.Duration
}

// loadCommits lets clients put, each one after the other, and measures after a while of warming up. first is the number of the first call.
func loadCommits(ctx context.Context, conns []*grpc.ClientConn, clients int, first uint64, do put) (commitSample, error) {
	var (
		running sync.WaitGroup
		taken   = make([][]time.Duration, clients)
		errs    = make([]error, clients)
	)
	began := time.Now().Add(commitWarm)
	for i := range clients {
		running.Go(func() {
			cc := conns[i%len(conns)]
			for n := first + uint64(i); ; n += uint64(clients) {
				start := time.Now()
				if start.Sub(began) >= commitSpan {
					return
				}
				if errs[i] = do(ctx, cc, n); errs[i] != nil {
					return
				}
				// Counted by its end, so that every commit within the time is counted once.
				if end := time.Now(); end.After(began) && end.Sub(began) < commitSpan {
					taken[i] = append(taken[i], end.Sub(start))
				}
			}
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return commitSample{}, err
	}
	all := slices.Concat(taken...)
	slices.Sort(all)
	if len(all) == 0 {
		return commitSample{}, errors.New("nothing was committed")
	}
	return commitSample{
		perSecond: float64(len(all)) / commitSpan.Seconds(),
		p50:       all[len(all)/2],
		p99:       all[len(all)*99/100],
	}, nil
}

// connect makes the connections that the clients of one system share.
func connect(clients int, target string, opts ...grpc.DialOption) ([]*grpc.ClientConn, error) {
	var conns []*grpc.ClientConn
	for range min(clients, commitConns) {
		cc, err := grpc.NewClient("passthrough:///"+target, opts...)
		if err != nil {
			return nil, errors.Join(err, closeAll(conns))
		}
		conns = append(conns, cc)
	}
	return conns, nil
}

func closeAll(conns []*grpc.ClientConn) error {
	var errs []error
	for _, cc := range conns {
		errs = append(errs, cc.Close())
	}
	return errors.Join(errs...)
}

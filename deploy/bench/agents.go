package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/spheroseg/muster/deploy/fleet"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// What a coordinator may cost for each agent, for the beats of 10,000, and for one call to all of those.
const (
	mostAgents   = 10000
	targetBytes  = 60000
	targetCores  = 0.2
	targetFanOut = 2.5
	fanOutCalls  = 20
	beatSpan     = 20 * time.Second
	settleSpan   = 15 * time.Second
	agentsLimit  = 5 * time.Minute
	answerMost   = 64 << 20
)

// measureAgents connects 100, 1,000 and 10,000 simulated agents to one coordinator, with certificates that they got by joining.
func measureAgents(ctx context.Context, out, notes io.Writer, runs int) error {
	return withFleet(ctx, notes, func(f *fleet.Fleet) error {
		a, err := newAgents(ctx, f, notes)
		if err != nil {
			return err
		}
		for _, n := range []int{mostAgents / 100, mostAgents / 10, mostAgents} {
			if err := a.measure(ctx, out, n, runs); err != nil {
				return errors.Join(fmt.Errorf("%d agents: %w", n, err), a.close())
			}
		}
		return a.close()
	})
}

// agents is a coordinator and those who connect to it.
type agents struct {
	muster      *fleet.Muster
	coordinator *fleet.Coordinator
	operator    *grpc.ClientConn
	sim         *simulator
	notes       io.Writer
	alone       float64 // bytes of the coordinator without any agent
}

func newAgents(ctx context.Context, f *fleet.Fleet, notes io.Writer) (*agents, error) {
	programs, err := f.Build(ctx)
	if err != nil {
		return nil, err
	}
	m, err := startLoopback(ctx, f, programs, 1)
	if err != nil {
		return nil, err
	}
	credentials, err := login(ctx, m)
	if err != nil {
		return nil, err
	}
	a := &agents{muster: m, coordinator: m.Coordinators[0], notes: notes}
	a.operator, err = grpc.NewClient("passthrough:///"+a.coordinator.Endpoint(), musterDial(credentials),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(answerMost)))
	if err != nil {
		return nil, err
	}
	a.sim = newSimulator(a.coordinator.Endpoint(), coordinatorv1.NewHostServiceClient(a.operator))
	if err := a.restart(ctx); err != nil {
		return nil, errors.Join(err, a.close())
	}
	if err := pause(ctx, settleSpan); err != nil {
		return nil, errors.Join(err, a.close())
	}
	a.alone, err = residentBytes(a.coordinator.PID())
	return a, err
}

func (a *agents) close() error {
	a.sim.disconnect()
	return a.operator.Close()
}

// restart starts the coordinator anew, so that what the joins left in its memory is not counted.
func (a *agents) restart(ctx context.Context) error {
	if err := a.coordinator.Stop(ctx); err != nil {
		return err
	}
	if err := a.coordinator.Restart(); err != nil {
		return err
	}
	return a.hostsUp(ctx, 0)
}

// hostsUp waits until so many hosts are up.
func (a *agents) hostsUp(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, agentsLimit)
	defer cancel()
	return fleet.Poll(ctx, 200*time.Millisecond, fmt.Sprintf("%d hosts to be up", n), func() (bool, error) {
		response, err := coordinatorv1.NewHostServiceClient(a.operator).ListHosts(ctx, &coordinatorv1.ListHostsRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return false, nil //nolint:nilerr // It starts, or elects itself; the time is limited.
		}
		up := 0
		for _, host := range response.GetHosts() {
			if host.GetState() == coordinatorv1.HostState_HOST_STATE_UP {
				up++
			}
		}
		return up >= n, nil
	})
}

// measure lets n agents join and connect, and reports what they cost. The target of fewer agents than the most is their share of it.
func (a *agents) measure(ctx context.Context, out io.Writer, n, runs int) error {
	began := time.Now()
	if err := a.sim.enroll(ctx, n); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	joined := time.Since(began)
	a.sim.disconnect()
	if err := a.restart(ctx); err != nil {
		return err
	}
	began = time.Now()
	if err := a.sim.connect(ctx, n); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	connected := time.Since(began)
	if err := a.hostsUp(ctx, n); err != nil {
		return err
	}
	if err := pause(ctx, settleSpan); err != nil {
		return err
	}
	var beats series
	for range runs {
		cores, err := coresOver(ctx, a.coordinator.PID(), beatSpan)
		if err != nil {
			return err
		}
		beats = append(beats, cores)
	}
	resident, err := residentBytes(a.coordinator.PID())
	if err != nil {
		return err
	}
	calls, err := a.fanOut(ctx, n)
	if err != nil {
		return err
	}
	each := (resident - a.alone) / float64(n)
	_, _ = fmt.Fprintf(a.notes, "%d agents: joined in %.1f s, connected in %.1f s (%.1f s with their states recorded); %.0f MB, %.0f MB without agents, %.0f B each; beats %.3f cores; call to all %.3f s, slowest of %d %.3f s\n",
		n, joined.Seconds(), connected.Seconds(), time.Since(began).Seconds(), resident/1e6, a.alone/1e6, each, beats.median(), calls.median(), len(calls), calls.slowest())
	name := fmt.Sprintf("agents-%d", n)
	if n == mostAgents {
		name = "agents-10k"
	}
	share := float64(n) / mostAgents
	report(out, name, "rss_per_agent", "bytes", "target", series{each}, series{targetBytes})
	report(out, name, "heartbeat_cpu", "cores", "target", beats, series{targetCores * share})
	report(out, name, "fanout", "s", "target", calls, series{targetFanOut * share})
	report(out, name, "fanout_p99", "s", "target", series{calls.slowest()}, series{targetFanOut * share})
	return nil
}

// fanOut asks all hosts for their instances, of which there are none, again and again.
func (a *agents) fanOut(ctx context.Context, n int) (series, error) {
	var calls series
	for range fanOutCalls {
		before := a.sim.asked.Load()
		began := time.Now()
		response, err := coordinatorv1.NewStackServiceClient(a.operator).ListInstances(ctx, &coordinatorv1.ListInstancesRequest{})
		took := time.Since(began)
		if err != nil {
			return nil, err
		}
		if asked := a.sim.asked.Load() - before; len(response.GetUnreachable()) > 0 || asked != uint64(n) {
			return nil, fmt.Errorf("a call to %d hosts asked %d, and %d did not answer", n, asked, len(response.GetUnreachable()))
		}
		calls = append(calls, took.Seconds())
	}
	return calls, nil
}

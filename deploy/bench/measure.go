package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// measure runs Muster, swarm and floor in turn, so that a busy moment of the machine meets all of them, and reports the medians.
func (u *rollingUpdate) measure(ctx context.Context, out io.Writer, parallelism, runs int) error {
	name := fmt.Sprintf("rolling-update-p%d", parallelism)
	var wall, failed, gated, swarmWall, swarmFailed, floor series
	// Not counted: it brings caches, and the settings of this parallelism, into place.
	if err := u.apply(ctx, parallelism, httpGate()); err != nil {
		return err
	}
	for i := range runs {
		ours, err := u.muster(ctx, parallelism, httpGate())
		if err != nil {
			return err
		}
		theirs, err := u.swarmRun(ctx, parallelism)
		if err != nil {
			return fmt.Errorf("swarm: %w", err)
		}
		least, err := u.floor(ctx, parallelism)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		same, err := u.sameGate(ctx, parallelism)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(u.notes, "%s %d/%d: muster %.2f s, %d failed %v; swarm %.2f s, %d failed; floor %.2f s; muster with HEALTHCHECK %.2f s\n",
			name, i+1, runs, ours.wall.Seconds(), ours.failed, ours.errs, theirs.wall.Seconds(), theirs.failed, least.wall.Seconds(), same.wall.Seconds())
		wall, failed = append(wall, ours.wall.Seconds()), append(failed, float64(ours.failed))
		swarmWall, swarmFailed = append(swarmWall, theirs.wall.Seconds()), append(swarmFailed, float64(theirs.failed))
		floor, gated = append(floor, least.wall.Seconds()), append(gated, same.wall.Seconds())
	}
	report(out, name, "wall", "s", "swarm", wall, swarmWall)
	report(out, name, "wall", "s", "floor", wall, floor)
	report(out, name, "wall_healthcheck_gate", "s", "swarm", gated, swarmWall)
	report(out, name, "failed_requests", "requests", "swarm", failed, swarmFailed)
	return nil
}

// sameGate measures Muster with Docker's HEALTHCHECK as its gate, as swarm has it, and then returns to the gate of the other runs.
func (u *rollingUpdate) sameGate(ctx context.Context, parallelism int) (sample, error) {
	if err := u.apply(ctx, parallelism, dockerGate()); err != nil {
		return sample{}, err
	}
	s, err := u.muster(ctx, parallelism, dockerGate())
	if err != nil {
		return s, err
	}
	return s, u.apply(ctx, parallelism, httpGate())
}

// floor measures what the engines need for the least that an update is: for each instance, in groups of the parallelism, create a container, start it
// until it is ready, and stop an old one. The containers are published and networked as Muster's are, and Muster's stack gets the same load meanwhile.
func (u *rollingUpdate) floor(ctx context.Context, parallelism int) (s sample, err error) {
	var parts []part
	defer func() {
		for _, p := range parts {
			if p.id != "" {
				err = errors.Join(err, p.engine.Remove(ctx, p.id))
			}
		}
	}()
	for i := range replicas {
		p, err := u.instance(ctx, "old", i)
		parts = append(parts, p)
		if err != nil {
			return s, err
		}
	}
	return u.loaded(ctx, u.bed.Proxy.URL, func() error {
		for first := 0; first < replicas; first += parallelism {
			var wg sync.WaitGroup
			errs := make([]error, parallelism)
			fresh := make([]part, parallelism)
			for n := range parallelism {
				old := parts[first+n]
				wg.Go(func() {
					if fresh[n], errs[n] = u.instance(ctx, "new", first+n); errs[n] == nil {
						errs[n] = old.engine.StopContainer(ctx, old.id, 10*time.Second)
					}
				})
			}
			wg.Wait()
			parts = append(parts, fresh...)
			if err := errors.Join(errs...); err != nil {
				return err
			}
		}
		return nil
	})
}

// part is a container of the floor.
type part struct {
	engine *fleet.Engine
	id     string
}

// instance creates a container, starts it, and asks it directly until it is ready.
func (u *rollingUpdate) instance(ctx context.Context, age string, i int) (part, error) {
	p := part{engine: u.bed.Engines[i%hosts]}
	name := fmt.Sprintf("floor-%s-%d", age, i)
	address := u.bed.Hosts[i%hosts].Address
	port := strconv.Itoa(map[string]int{"old": 25000, "new": 26000}[age] + i)
	var err error
	p.id, err = p.engine.Create(ctx, name, map[string]any{
		"Image":        u.images[0].ID(),
		"Env":          []string{"STARTUP_MS=0", "WORK_MS=20"},
		"ExposedPorts": map[string]any{"8080/tcp": struct{}{}},
		"HostConfig": map[string]any{
			"NetworkMode":  "floor",
			"PortBindings": map[string]any{"8080/tcp": []any{map[string]any{"HostIp": address, "HostPort": port}}},
		},
	})
	if err != nil {
		return p, err
	}
	if err := p.engine.StartContainer(ctx, p.id); err != nil {
		return p, err
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return p, fleet.Poll(ctx, 5*time.Millisecond, name, func() (bool, error) {
		resp, err := client.Get("http://" + net.JoinHostPort(address, port) + "/healthz")
		if err != nil {
			return false, nil
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

const (
	replicas = 6
	hosts    = 3
	rate     = 200
	// rest comes before every measurement, so that none pays for what the engines still clean up after the one before.
	rest = 2 * time.Second
	// before and after an update the load runs alone, so that late failures are counted with it.
	before = 500 * time.Millisecond
	after  = time.Second
)

// composeFile is the stack that Muster rolls: the settings are those of SwarmService.
const composeFile = `name: bench
services:
  web:
    image: %s
    restart: unless-stopped
    ports: ["8080"]
    environment: {STARTUP_MS: "0", WORK_MS: "20"}
    healthcheck: %s
    deploy:
      replicas: 6
      update_config: {parallelism: %d, order: start-first, monitor: 1ms, failure_action: rollback}
    x-muster: {%sroute: {port: 8080}}
`

// rollingUpdate holds what all its benchmarks share.
type rollingUpdate struct {
	bed    *fleet.Bed
	swarm  *fleet.Swarm
	proxy  *fleet.Proxy // of the swarm: the same program with the same settings as Muster's
	images [2]*fleet.Image
	notes  io.Writer
	dir    string
	now    int // index of the image that Muster's stack runs
}

func health() *fleet.Healthcheck {
	return &fleet.Healthcheck{Test: []string{"CMD", "/app", "-check"}, Interval: time.Second, Timeout: 2 * time.Second, Retries: 1}
}

func newRollingUpdate(ctx context.Context, f *fleet.Fleet, notes io.Writer) (*rollingUpdate, error) {
	bed, err := f.MakeBed(ctx, fleet.BedOptions{Hosts: hosts})
	if err != nil {
		return nil, err
	}
	u := &rollingUpdate{bed: bed, notes: notes, dir: filepath.Join(f.Dir(), "stack")}
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		return nil, err
	}
	for i := range u.images {
		version := fmt.Sprintf("v%d", i+1)
		u.images[i], err = fleet.NewImage(fleet.ImageSpec{
			Tag: "muster-bench-app:" + version, Program: bed.Programs.App, Env: []string{"VERSION=" + version}, Labels: map[string]string{"version": version},
		})
		if err != nil {
			return nil, err
		}
	}
	for _, e := range bed.Engines {
		if err := errors.Join(e.LoadImages(ctx, u.images[:]...), e.CreateNetwork(ctx, "floor")); err != nil {
			return nil, err
		}
	}
	if u.swarm, err = bed.StartSwarm(ctx); err != nil {
		return nil, err
	}
	at := bed.Hosts[0].Address
	if u.proxy, err = f.StartCaddy(ctx, bed.Hosts[0], "caddy-swarm", net.JoinHostPort(at, "8089"), net.JoinHostPort(at, "2020")); err != nil {
		return nil, err
	}
	return u, u.apply(ctx, 1, httpGate())
}

// gate is how readiness is asked for; the application's /healthz answers either way.
type gate struct{ healthcheck, gate string }

// httpGate lets the agent ask.
func httpGate() gate { return gate{"{disable: true}", "gate: {http: {port: 8080, path: /healthz}}, "} }

// dockerGate lets the engine ask by its HEALTHCHECK, the only gate that swarm knows.
func dockerGate() gate {
	return gate{`{test: ["CMD", "/app", "-check"], interval: 1s, timeout: 2s, retries: 1}`, ""}
}

// apply rolls Muster's stack to the image that it does not run.
func (u *rollingUpdate) apply(ctx context.Context, parallelism int, g gate) error {
	u.now = 1 - u.now
	file := filepath.Join(u.dir, "compose.yaml")
	text := fmt.Sprintf(composeFile, u.images[u.now].Tag, g.healthcheck, parallelism, g.gate)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := u.bed.Muster.Ctl(ctx, "stack", "apply", "-f", file, "--yes", "--progress", "quiet")
	return err
}

// sample is what one update showed.
type sample struct {
	wall   time.Duration
	failed int
	errs   []string
}

// loaded measures an update under load.
func (u *rollingUpdate) loaded(ctx context.Context, url string, update func() error) (sample, error) {
	if err := pause(ctx, rest); err != nil {
		return sample{}, err
	}
	l, err := load.New(load.Options{URL: url, Rate: rate})
	if err != nil {
		return sample{}, err
	}
	loadCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(loadCtx) })
	defer wg.Wait()
	defer cancel()
	if err := pause(ctx, before); err != nil {
		return sample{}, err
	}
	if r := l.Report(); r.Failed > 0 || r.Total == 0 {
		return sample{}, fmt.Errorf("the load failed before the update: %s: %v", r, r.Errors)
	}
	start := time.Now()
	if err := update(); err != nil {
		return sample{}, err
	}
	s := sample{wall: time.Since(start)}
	if err := pause(ctx, after); err != nil {
		return s, err
	}
	cancel()
	wg.Wait()
	r := l.Report()
	s.failed, s.errs = r.Failed, r.Errors
	return s, nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// muster measures one update of Muster's stack: from the start of musterctl to its end.
func (u *rollingUpdate) muster(ctx context.Context, parallelism int, g gate) (sample, error) {
	return u.loaded(ctx, u.bed.Proxy.URL, func() error { return u.apply(ctx, parallelism, g) })
}

// swarmRun measures one update of a fresh service: from the API call to the state "completed".
func (u *rollingUpdate) swarmRun(ctx context.Context, parallelism int) (s sample, err error) {
	service := fleet.SwarmService{
		Name: "bench", Image: u.images[0].ID(), Env: []string{"STARTUP_MS=0", "WORK_MS=20"}, Replicas: replicas, Parallelism: parallelism,
		Health: health(), Monitor: time.Millisecond,
	}
	id, err := u.swarm.Create(ctx, service)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, u.swarm.Remove(ctx, id)) }()
	up := &upstreams{bed: u.bed, proxy: u.proxy, label: "com.docker.swarm.service.id=" + id}
	pollCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { up.follow(pollCtx) })
	defer wg.Wait()
	defer cancel()
	ready, done := context.WithTimeout(ctx, time.Minute)
	defer done()
	err = fleet.Poll(ready, 50*time.Millisecond, "the swarm's instances", func() (bool, error) { n, err := up.state(); return n == replicas, err })
	if err != nil {
		return s, err
	}
	service.Image = u.images[1].ID()
	return u.loaded(ctx, u.proxy.URL, func() error { return u.swarm.Update(ctx, id, service) })
}

// upstreams keeps a proxy's upstreams at what the engines say runs and is healthy. This is what an orchestrator needs that cannot tell a proxy itself.
type upstreams struct {
	bed   *fleet.Bed
	proxy *fleet.Proxy
	label string

	mu   sync.Mutex
	have int
	err  error
}

func (u *upstreams) state() (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.have, u.err
}

func (u *upstreams) follow(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		dials, err := u.healthy(ctx)
		if now := strings.Join(dials, " "); err == nil && now != last {
			last, err = now, u.write(ctx, dials)
		}
		u.mu.Lock()
		u.have, u.err = len(dials), err
		u.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (u *upstreams) healthy(ctx context.Context) ([]string, error) {
	var dials []string
	for i, e := range u.bed.Engines {
		containers, err := e.Containers(ctx, u.label)
		if err != nil {
			return nil, err
		}
		for _, c := range containers {
			if c.State != "running" || !strings.Contains(c.Status, "(healthy)") {
				continue
			}
			for _, p := range c.Ports {
				if p.PublicPort > 0 {
					dials = append(dials, net.JoinHostPort(u.bed.Hosts[i].Address, strconv.Itoa(p.PublicPort)))
					break
				}
			}
		}
	}
	return dials, nil
}

func (u *upstreams) write(ctx context.Context, dials []string) error {
	list := []any{}
	for _, d := range dials {
		list = append(list, map[string]string{"dial": d})
	}
	return u.proxy.Put(ctx, http.MethodPatch, "/config/apps/http/servers/public/routes", []any{
		map[string]any{"handle": []any{map[string]any{"handler": "reverse_proxy", "upstreams": list}}},
	})
}

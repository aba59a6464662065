package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Bed is the fleet of the tests and the benchmark: coordinators and hosts on machines of their own, each host with its own engine, a proxy that the
// first host's agent drives, and a registry if it is asked for.
type Bed struct {
	// Fleet that everything belongs to.
	*Fleet
	// Programs that run.
	Programs Programs
	// Hosts by number from 0; they are called h1, h2, ….
	Hosts []*Machine
	// Engines of the hosts.
	Engines []*Engine
	// Seats are the machines of the coordinators c1, c2, ….
	Seats []*Machine
	// Proxy in front of the fleet, on h1.
	Proxy *Proxy
	// Registry that the engines may pull from; nil if it was not asked for.
	Registry *Registry
	// Muster that runs on all this.
	Muster *Muster
	// Witness of all engines.
	Witness *Witness
}

// BedOptions say what a bed holds.
type BedOptions struct {
	// Coordinators wanted; default 3.
	Coordinators int
	// Hosts wanted; default 3.
	Hosts int
	// Registry says that there is one, on a machine of its own.
	Registry bool
}

// MakeBed makes a bed. It returns when every member votes and every host is up.
func (f *Fleet) MakeBed(ctx context.Context, opts BedOptions) (*Bed, error) {
	if opts.Coordinators == 0 {
		opts.Coordinators = 3
	}
	if opts.Hosts == 0 {
		opts.Hosts = 3
	}
	programs, err := f.Build(ctx)
	if err != nil {
		return nil, err
	}
	b := &Bed{Fleet: f, Programs: programs}
	if err := b.startEngines(ctx, opts.Hosts); err != nil {
		return nil, err
	}
	if opts.Registry {
		store, err := f.Machine(ctx, "store")
		if err != nil {
			return nil, err
		}
		if b.Registry, err = f.StartRegistry(ctx, store); err != nil {
			return nil, err
		}
	}
	first := b.Hosts[0]
	b.Proxy, err = f.StartCaddy(ctx, first, "caddy", net.JoinHostPort(first.Address, "8088"), "127.0.0.1:2019")
	if err != nil {
		return nil, err
	}
	var coordinators []CoordinatorSpec
	for i := range opts.Coordinators {
		name := fmt.Sprintf("c%d", i+1)
		m, err := f.Machine(ctx, name)
		if err != nil {
			return nil, err
		}
		b.Seats = append(b.Seats, m)
		coordinators = append(coordinators, CoordinatorSpec{Name: name, Machine: m, Address: m.Address, Port: 7443, HTTPPort: 7480})
	}
	var agents []AgentSpec
	for i, m := range b.Hosts {
		agents = append(agents, AgentSpec{
			Name: m.Name, Machine: m, Engine: b.Engines[i], Address: m.Address, Ports: "21000-21999", Labels: map[string]string{"zone": string(rune('a' + i))},
		})
	}
	agents[0].CaddyAdmin = b.Proxy.Admin
	b.Witness = f.Watch(ctx, b.Engines...)
	b.Muster, err = f.StartMuster(ctx, programs, coordinators, agents)
	return b, err
}

func (b *Bed) startEngines(ctx context.Context, n int) error {
	b.Engines = make([]*Engine, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range n {
		m, err := b.Machine(ctx, fmt.Sprintf("h%d", i+1))
		if err != nil {
			return err
		}
		b.Hosts = append(b.Hosts, m)
		wg.Go(func() { b.Engines[i], errs[i] = b.StartEngine(ctx, m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Containers of all hosts with the label.
func (b *Bed) Containers(ctx context.Context, label string) ([]Container, error) {
	var all []Container
	var errs []error
	for _, e := range b.Engines {
		list, err := e.Containers(ctx, label)
		all = append(all, list...)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

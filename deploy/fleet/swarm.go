package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Swarm is Docker's own orchestrator over the engines of a bed: the peer of the benchmark.
type Swarm struct {
	network string
	manager *Engine
	engines []*Engine
}

// StartSwarm makes the engines of the bed a swarm: the first manages, the others join it.
func (b *Bed) StartSwarm(ctx context.Context) (*Swarm, error) {
	s := &Swarm{manager: b.Engines[0], engines: b.Engines}
	address := b.Hosts[0].Address
	err := s.manager.do(ctx, http.MethodPost, "/swarm/init", map[string]any{"ListenAddr": address + ":2377", "AdvertiseAddr": address}, nil)
	if err != nil {
		return nil, err
	}
	var swarm struct {
		JoinTokens struct{ Worker string }
	}
	if err := s.manager.do(ctx, http.MethodGet, "/swarm", nil, &swarm); err != nil {
		return nil, err
	}
	for i, e := range b.Engines[1:] {
		own := b.Hosts[i+1].Address
		err := e.do(ctx, http.MethodPost, "/swarm/join", map[string]any{
			"ListenAddr": own + ":2377", "AdvertiseAddr": own, "RemoteAddrs": []string{address + ":2377"}, "JoinToken": swarm.JoinTokens.Worker,
		}, nil)
		if err != nil {
			return nil, err
		}
	}
	// A bridge of its own on every host, as the compose file's default network is on Muster's.
	var created struct{ ID string }
	err = s.manager.do(ctx, http.MethodPost, "/networks/create", map[string]any{"Name": "swarm-bridge", "Driver": "bridge", "Scope": "swarm"}, &created)
	s.network = created.ID
	return s, err
}

// SwarmService is what the benchmark sets of a service; everything else is as Muster's stack has it.
type SwarmService struct {
	// Name of the service.
	Name string
	// Image by its id: a tag makes every task wait for a registry.
	Image string
	// Env of its containers.
	Env []string
	// Replicas wanted.
	Replicas int
	// Parallelism of the update.
	Parallelism int
	// Health is the gate: Docker's HEALTHCHECK.
	Health *Healthcheck
	// Monitor of the update.
	Monitor time.Duration
}

func (s SwarmService) spec(network string) map[string]any {
	container := map[string]any{"Image": s.Image, "Env": s.Env}
	if s.Health != nil {
		container["Healthcheck"] = s.Health
	}
	return map[string]any{
		"Name": s.Name,
		"TaskTemplate": map[string]any{
			"ContainerSpec": container,
			"RestartPolicy": map[string]any{"Condition": "any"},
			"Networks":      []any{map[string]any{"Target": network}},
		},
		"Mode": map[string]any{"Replicated": map[string]any{"Replicas": s.Replicas}},
		"UpdateConfig": map[string]any{
			"Parallelism": s.Parallelism, "Order": "start-first", "Monitor": s.Monitor, "FailureAction": "rollback",
		},
		"EndpointSpec": map[string]any{"Mode": "dnsrr", "Ports": []any{
			map[string]any{"Protocol": "tcp", "TargetPort": 8080, "PublishMode": "host"},
		}},
	}
}

// Create creates a service and returns its id.
func (s *Swarm) Create(ctx context.Context, service SwarmService) (string, error) {
	var created struct{ ID string }
	err := s.manager.do(ctx, http.MethodPost, "/services/create", service.spec(s.network), &created)
	return created.ID, err
}

// Update changes a service and returns when the swarm calls the update completed.
func (s *Swarm) Update(ctx context.Context, id string, service SwarmService) error {
	type status struct {
		Version      struct{ Index uint64 }
		UpdateStatus struct{ State, Message string }
	}
	var now status
	if err := s.manager.do(ctx, http.MethodGet, "/services/"+id, nil, &now); err != nil {
		return err
	}
	err := s.manager.do(ctx, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", id, now.Version.Index), service.spec(s.network), nil)
	if err != nil {
		return err
	}
	return Poll(ctx, 10*time.Millisecond, "the swarm's update", func() (bool, error) {
		var now status
		if err := s.manager.do(ctx, http.MethodGet, "/services/"+id, nil, &now); err != nil {
			return false, err
		}
		switch now.UpdateStatus.State {
		case "completed":
			return true, nil
		case "", "updating":
			return false, nil
		}
		return false, fmt.Errorf("the update is %s: %s", now.UpdateStatus.State, now.UpdateStatus.Message)
	})
}

// Remove removes a service and waits until its containers are gone.
func (s *Swarm) Remove(ctx context.Context, id string) error {
	if err := s.manager.do(ctx, http.MethodDelete, "/services/"+id, nil, nil); err != nil {
		return err
	}
	return Poll(ctx, 50*time.Millisecond, "the swarm's containers to go", func() (bool, error) {
		n := 0
		var errs []error
		for _, e := range s.engines {
			list, err := e.Containers(ctx, "com.docker.swarm.service.id="+id)
			n += len(list)
			errs = append(errs, err)
		}
		return n == 0, errors.Join(errs...)
	})
}

// CreateNetwork creates a bridge network on an engine.
func (a *API) CreateNetwork(ctx context.Context, name string) error {
	return a.do(ctx, http.MethodPost, "/networks/create", map[string]any{"Name": name, "CheckDuplicate": true}, nil)
}

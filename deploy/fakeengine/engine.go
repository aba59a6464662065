package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spheroseg/muster/internal/crashpoint"
)

// effect is a line of the file.
type effect struct {
	// At is the time in nanoseconds.
	At int64
	// Action is create, start, die, destroy, policy or network.
	Action string
	// ID of the container.
	ID string
	// Name of the container, or of the network.
	Name string
	// Body of the call that creates or changes something.
	Body json.RawMessage `json:",omitempty"`
}

// body is what the engine keeps of a container's creation.
type body struct {
	Image            string
	Cmd              []string
	Labels           map[string]string
	Env              []string
	HostConfig       map[string]any
	NetworkingConfig struct{ EndpointsConfig map[string]any }
}

type container struct {
	id, name         string
	body             body
	created, started time.Time
	finished         time.Time
	status           string // created, running or exited
	policy           map[string]any
	servers          []*http.Server
}

type engine struct {
	ready time.Duration

	mu         sync.Mutex
	file       *os.File
	effects    int
	images     map[string]string // tag by id
	containers []*container
	networks   []string
	schema     string // of the last migration
}

func imageID(tag string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(tag))) }

// open reads the effects of earlier lives. A line that a kill cut short had no effect.
func open(path string, images []string, ready time.Duration) (*engine, error) {
	e := &engine{ready: ready, images: map[string]string{}}
	for _, tag := range images {
		e.images[imageID(tag)] = tag
	}
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	for line := range bytes.Lines(whole) {
		var f effect
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := e.apply(f); err != nil {
			return nil, err
		}
	}
	if e.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	if err := e.file.Truncate(int64(len(whole))); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.status == "running" {
			if err := e.awake(c); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// do makes an effect: from the write on, it has happened. e.mu is held.
func (e *engine) do(f effect) error {
	f.At = time.Now().UnixNano()
	line, err := json.Marshal(f)
	if err != nil {
		return err
	}
	crashpoint.Hit(crashpoint.EffectBefore)
	if _, err := e.file.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := e.apply(f); err != nil {
		return err
	}
	if f.Action == "start" {
		if err := e.awake(e.find(f.ID)); err != nil {
			return err
		}
	}
	crashpoint.Hit(crashpoint.EffectAfter)
	return nil
}

func (e *engine) apply(f effect) error {
	e.effects++
	at := time.Unix(0, f.At)
	if f.Action == "network" {
		e.networks = append(e.networks, f.Name)
		return nil
	}
	if f.Action == "create" {
		c := &container{id: f.ID, name: f.Name, created: at, status: "created"}
		if err := json.Unmarshal(f.Body, &c.body); err != nil {
			return err
		}
		c.policy, _ = c.body.HostConfig["RestartPolicy"].(map[string]any)
		e.containers = append(e.containers, c)
		return nil
	}
	c := e.find(f.ID)
	if c == nil {
		return fmt.Errorf("%s of %s: there is no such container", f.Action, f.ID)
	}
	switch f.Action {
	case "start":
		c.status, c.started = "running", at
	case "die":
		c.status, c.finished = "exited", at
		c.asleep()
		if to, ok := c.migrates(); ok {
			e.schema = to
		}
	case "destroy":
		e.containers = slices.DeleteFunc(e.containers, func(other *container) bool { return other == c })
	case "policy":
		var change struct{ RestartPolicy map[string]any }
		if err := json.Unmarshal(f.Body, &change); err != nil {
			return err
		}
		c.policy = change.RestartPolicy
	}
	return nil
}

// find takes an id or a name.
func (e *engine) find(ref string) *container {
	for _, c := range e.containers {
		if c.id == ref || c.name == strings.TrimPrefix(ref, "/") {
			return c
		}
	}
	return nil
}

func (c *container) state(tag string, ready time.Duration) map[string]any {
	state := map[string]any{
		"Status": c.status, "Running": c.status == "running", "Pid": 0, "ExitCode": 0,
		"StartedAt": c.started.UTC().Format(time.RFC3339Nano), "FinishedAt": c.finished.UTC().Format(time.RFC3339Nano),
	}
	if c.status != "running" {
		return state
	}
	health := "healthy"
	_, version, _ := strings.Cut(tag, ":")
	if strings.HasPrefix(version, "bad") {
		health = "unhealthy"
	}
	if time.Since(c.started) < ready || strings.HasPrefix(version, "slow") {
		health = "starting"
	}
	state["Pid"] = 1 // the same in every life of the engine, as that of a container that outlives it
	state["Health"] = map[string]any{"Status": health}
	return state
}

func (c *container) inspect(tag string, ready time.Duration) map[string]any {
	host := map[string]any{}
	for key, value := range c.body.HostConfig {
		host[key] = value
	}
	host["RestartPolicy"] = c.policy
	networks := map[string]any{}
	for name := range c.body.NetworkingConfig.EndpointsConfig {
		networks[name] = map[string]any{"IPAddress": "127.0.0.1"}
	}
	return map[string]any{
		"Id": c.id, "Name": "/" + c.name, "Created": c.created.UTC().Format(time.RFC3339Nano), "Image": c.body.Image, "RestartCount": 0,
		"State": c.state(tag, ready), "HostConfig": host, "NetworkSettings": map[string]any{"Networks": networks},
		"Config": map[string]any{"Image": c.body.Image, "Labels": c.body.Labels, "Env": c.body.Env},
	}
}

func (c *container) summary() map[string]any {
	return map[string]any{
		"Id": c.id, "Names": []string{"/" + c.name}, "Image": c.body.Image, "ImageID": c.body.Image, "State": c.status, "Labels": c.body.Labels,
	}
}

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// What a container does while it runs: it answers on its published ports, and one whose command is -migrate ends by itself.

// schema that the last migration left, of all containers of this engine.
const migrate = "-migrate"

func (c *container) migrates() (to string, ok bool) {
	if len(c.body.Cmd) == 2 && c.body.Cmd[0] == migrate {
		return c.body.Cmd[1], true
	}
	return "", false
}

// awake starts what a running container does. e.mu is held.
func (e *engine) awake(c *container) error {
	if _, job := c.migrates(); job {
		id := c.id
		time.AfterFunc(e.ready, func() { e.finish(id) })
		return nil
	}
	bindings, _ := c.body.HostConfig["PortBindings"].(map[string]any)
	for _, list := range bindings {
		all, _ := list.([]any)
		for _, one := range all {
			binding, _ := one.(map[string]any)
			listener, err := net.Listen("tcp", net.JoinHostPort(fmt.Sprint(binding["HostIp"]), fmt.Sprint(binding["HostPort"])))
			if err != nil {
				return err
			}
			server := &http.Server{Handler: e.answers(c.started), ReadHeaderTimeout: 5 * time.Second}
			c.servers = append(c.servers, server)
			go func() { _ = server.Serve(listener) }()
		}
	}
	return nil
}

// asleep ends it. e.mu is held.
func (c *container) asleep() {
	for _, s := range c.servers {
		_ = s.Close()
	}
	c.servers = nil
}

// finish is the end of a migration.
func (e *engine) finish(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.find(id); c != nil && c.status == "running" {
		if err := e.do(effect{Action: "die", ID: c.id, Name: c.name}); err != nil {
			panic(err) // the file is the test's witness: without it there is nothing to go on for
		}
	}
}

func (e *engine) answers(started time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/schema", func(w http.ResponseWriter, _ *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		_, _ = io.WriteString(w, e.schema)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(started) < e.ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return mux
}

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// version of the API at the beginning of a path.
var version = regexp.MustCompile(`^/v1\.[0-9]+/`)

func (e *engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Ostype", "linux")
		_, _ = io.WriteString(w, "OK")
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"Version": "0-fake", "ApiVersion": "1.41", "Os": "linux"})
	})
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"Driver": "fake", "ServerVersion": "0-fake"})
	})
	mux.HandleFunc("GET /images/{name...}", e.image)
	mux.HandleFunc("GET /networks", e.listNetworks)
	mux.HandleFunc("POST /networks/create", e.createNetwork)
	mux.HandleFunc("GET /containers/json", e.list)
	mux.HandleFunc("POST /containers/create", e.create)
	mux.HandleFunc("GET /containers/{id}/json", e.with(func(c *container, w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, c.inspect(e.images[c.body.Image], e.ready))
	}))
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("POST /containers/{id}/wait", e.wait)
	mux.HandleFunc("GET /containers/{id}/logs", e.with(func(_ *container, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	mux.HandleFunc("POST /containers/{id}/start", e.with(func(c *container, w http.ResponseWriter, _ *http.Request) {
		e.change(w, c.status == "running", effect{Action: "start", ID: c.id, Name: c.name})
	}))
	stop := e.with(func(c *container, w http.ResponseWriter, _ *http.Request) {
		e.change(w, c.status != "running", effect{Action: "die", ID: c.id, Name: c.name})
	})
	mux.HandleFunc("POST /containers/{id}/stop", stop)
	mux.HandleFunc("POST /containers/{id}/kill", stop)
	mux.HandleFunc("POST /containers/{id}/update", e.with(e.update))
	mux.HandleFunc("DELETE /containers/{id}", e.with(e.destroy))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = version.ReplaceAllString(r.URL.Path, "/")
		r.URL.RawPath = ""
		mux.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code int, format string, args ...any) {
	answer(w, code, map[string]string{"message": fmt.Sprintf(format, args...)})
}

// with calls do with the container of the path, alone.
func (e *engine) with(do func(*container, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		c := e.find(r.PathValue("id"))
		if c == nil {
			refuse(w, http.StatusNotFound, "No such container: %s", r.PathValue("id"))
			return
		}
		do(c, w, r)
	}
}

// change answers 304 for what is so already, which is no effect.
func (e *engine) change(w http.ResponseWriter, already bool, f effect) {
	if already {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if err := e.do(f); err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// wait answers when the container does not run.
func (e *engine) wait(w http.ResponseWriter, r *http.Request) {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		e.mu.Lock()
		c := e.find(r.PathValue("id"))
		ended := c != nil && c.status != "running"
		e.mu.Unlock()
		switch {
		case c == nil:
			refuse(w, http.StatusNotFound, "No such container: %s", r.PathValue("id"))
			return
		case ended:
			answer(w, http.StatusOK, map[string]int{"StatusCode": 0})
			return
		}
		select {
		case <-look.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (e *engine) image(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutSuffix(r.PathValue("name"), "/json")
	for id, tag := range e.images {
		if ok && (name == id || name == tag) {
			check := map[string]any{"Test": []string{"CMD", "/check"}, "Interval": 1_000_000, "Retries": 1}
			answer(w, http.StatusOK, map[string]any{"Id": id, "RepoTags": []string{tag}, "RepoDigests": []string{}, "Config": map[string]any{"Healthcheck": check}})
			return
		}
	}
	refuse(w, http.StatusNotFound, "No such image: %s", name)
}

// wanted reads the values of a filter, in the form of the client: a set.
func wanted(r *http.Request, key string) []string {
	var sets map[string]map[string]bool
	_ = json.Unmarshal([]byte(r.URL.Query().Get("filters")), &sets)
	var values []string
	for value := range sets[key] {
		values = append(values, value)
	}
	if values == nil { // or of curl: a list
		var lists map[string][]string
		_ = json.Unmarshal([]byte(r.URL.Query().Get("filters")), &lists)
		values = lists[key]
	}
	return values
}

func (e *engine) listNetworks(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []any{}
	names := wanted(r, "name")
	for _, name := range e.networks {
		if len(names) == 0 || strings.Contains(name, names[0]) {
			list = append(list, map[string]any{"Id": "network-of-" + name, "Name": name, "Driver": "bridge", "Created": "2026-01-01T00:00:00Z"})
		}
	}
	answer(w, http.StatusOK, list)
}

func (e *engine) createNetwork(w http.ResponseWriter, r *http.Request) {
	var wish struct{ Name string }
	if err := json.NewDecoder(r.Body).Decode(&wish); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.do(effect{Action: "network", Name: wish.Name}); err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	answer(w, http.StatusCreated, map[string]string{"Id": "network-of-" + wish.Name})
}

func (e *engine) list(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	labels := wanted(r, "label")
	all := r.URL.Query().Get("all") == "1" || r.URL.Query().Get("all") == "true"
	list := []any{}
	for _, c := range e.containers {
		if (all || c.status == "running") && c.bears(labels) {
			list = append(list, c.summary())
		}
	}
	answer(w, http.StatusOK, list)
}

func (c *container) bears(labels []string) bool {
	for _, label := range labels {
		key, value, exact := strings.Cut(label, "=")
		if has, ok := c.body.Labels[key]; !ok || exact && has != value {
			return false
		}
	}
	return true
}

func (e *engine) create(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	var wish body
	if err == nil {
		err = json.Unmarshal(data, &wish)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	name := r.URL.Query().Get("name")
	if other := e.find(name); other != nil {
		refuse(w, http.StatusConflict, "Conflict. The container name %q is already in use by container %q.", "/"+name, other.id)
		return
	}
	if e.images[wish.Image] == "" {
		refuse(w, http.StatusNotFound, "No such image: %s", wish.Image)
		return
	}
	id := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %d", name, e.effects)))
	if err := e.do(effect{Action: "create", ID: id, Name: name, Body: data}); err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	answer(w, http.StatusCreated, map[string]any{"Id": id, "Warnings": []string{}})
}

func (e *engine) update(c *container, w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = e.do(effect{Action: "policy", ID: c.id, Name: c.name, Body: data})
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"Warnings": []string{}})
}

// destroy stops a container that runs before it removes it: two effects.
func (e *engine) destroy(c *container, w http.ResponseWriter, _ *http.Request) {
	if c.status == "running" {
		if err := e.do(effect{Action: "die", ID: c.id, Name: c.name}); err != nil {
			refuse(w, http.StatusInternalServerError, "%v", err)
			return
		}
	}
	e.change(w, false, effect{Action: "destroy", ID: c.id, Name: c.name})
}

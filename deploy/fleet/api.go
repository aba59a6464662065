package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// API speaks to a Docker engine over its socket: the few calls with which the fleet sets up, looks on and cleans up. It shares no code with the agent, so
// that it is a witness of what the agent does.
type API struct {
	client *http.Client
}

// NewAPI returns an API that connects when it is used.
func NewAPI(socket string) *API {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &API{client: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}}}
}

// ErrNotFound is returned when the engine does not know the object.
var ErrNotFound = errors.New("fleet: not found by the engine")

// do sends body (JSON, an io.Reader, or nil) and decodes the answer into out unless that is nil.
func (a *API) do(ctx context.Context, method, path string, body, out any) error {
	resp, err := a.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func (a *API) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, kind = b, "application/x-tar"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var problem struct{ Message string }
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil {
		problem.Message = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s %s: %w: %s", method, path, ErrNotFound, problem.Message)
	}
	return nil, fmt.Errorf("%s %s: %s", method, path, problem.Message)
}

// Ping says whether the engine answers.
func (a *API) Ping(ctx context.Context) error { return a.do(ctx, http.MethodGet, "/_ping", nil, nil) }

// Version of the engine.
func (a *API) Version(ctx context.Context) (string, error) {
	var v struct{ Version string }
	err := a.do(ctx, http.MethodGet, "/version", nil, &v)
	return v.Version, err
}

// Container as the engine lists it.
type Container struct {
	// ID of the container.
	ID string `json:"Id"`
	// Names of the container, each with a leading slash.
	Names []string
	// Image it was created from.
	Image string
	// ImageID of that image.
	ImageID string
	// State like running or exited.
	State string
	// Status in words, with the health.
	Status string
	// Labels of the container.
	Labels map[string]string
	// Ports of the container.
	Ports []struct {
		IP          string
		PrivatePort int
		PublicPort  int
		Type        string
	}
}

// Name of the container without the slash.
func (c Container) Name() string {
	if len(c.Names) == 0 {
		return c.ID
	}
	return strings.TrimPrefix(c.Names[0], "/")
}

func filter(label string) string {
	if label == "" {
		return ""
	}
	data, err := json.Marshal(map[string][]string{"label": {label}})
	if err != nil {
		return ""
	}
	return url.QueryEscape(string(data))
}

// Containers returns running and stopped containers with the label ("key" or "key=value"; empty means all).
func (a *API) Containers(ctx context.Context, label string) ([]Container, error) {
	var list []Container
	path := "/containers/json?all=1"
	if label != "" {
		path += "&filters=" + filter(label)
	}
	err := a.do(ctx, http.MethodGet, path, nil, &list)
	return list, err
}

// Create makes a container from an engine's own JSON and returns its id.
func (a *API) Create(ctx context.Context, name string, config any) (string, error) {
	var created struct {
		ID string `json:"Id"`
	}
	err := a.do(ctx, http.MethodPost, "/containers/create?name="+url.QueryEscape(name), config, &created)
	return created.ID, err
}

// StartContainer starts a created container.
func (a *API) StartContainer(ctx context.Context, id string) error {
	return a.do(ctx, http.MethodPost, "/containers/"+id+"/start", nil, nil)
}

// StopContainer stops a container within the grace period.
func (a *API) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	return a.do(ctx, http.MethodPost, fmt.Sprintf("/containers/%s/stop?t=%d", id, int(grace.Seconds())), nil, nil)
}

// Remove removes a container whatever its state. One that is gone is fine.
func (a *API) Remove(ctx context.Context, id string) error {
	err := a.do(ctx, http.MethodDelete, "/containers/"+id+"?force=1&v=1", nil, nil)
	if errors.Is(err, ErrNotFound) || err != nil && strings.Contains(err.Error(), "already in progress") {
		return nil
	}
	return err
}

// Inspect decodes what the engine knows of a container into out.
func (a *API) Inspect(ctx context.Context, id string, out any) error {
	return a.do(ctx, http.MethodGet, "/containers/"+id+"/json", nil, out)
}

// LoadImage takes an image archive.
func (a *API) LoadImage(ctx context.Context, archive io.Reader) error {
	resp, err := a.send(ctx, http.MethodPost, "/images/load?quiet=1", archive)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return trouble(resp.Body, "load image")
}

// Pull pulls an image by its digest, name@sha256:….
func (a *API) Pull(ctx context.Context, ref string) error {
	resp, err := a.send(ctx, http.MethodPost, "/images/create?fromImage="+url.QueryEscape(ref), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return trouble(resp.Body, "pull "+ref)
}

// trouble reads an answer to its end. The status of a long one is 200 before the work is done: what goes wrong comes as a line of the body.
func trouble(answer io.Reader, what string) error {
	for decoder := json.NewDecoder(answer); ; {
		var line struct{ Error string }
		if err := decoder.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if line.Error != "" {
			return fmt.Errorf("%s: %s", what, line.Error)
		}
	}
}

// HasImage says whether the engine has the image.
func (a *API) HasImage(ctx context.Context, ref string) (bool, error) {
	err := a.do(ctx, http.MethodGet, "/images/"+ref+"/json", nil, nil)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// RemoveImage removes an image. One that is gone is fine.
func (a *API) RemoveImage(ctx context.Context, ref string) error {
	err := a.do(ctx, http.MethodDelete, "/images/"+ref+"?force=1", nil, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// prune removes networks and volumes with the label.
func (a *API) prune(ctx context.Context, label string) error {
	return errors.Join(
		a.do(ctx, http.MethodPost, "/networks/prune?filters="+filter(label), nil, nil),
		a.do(ctx, http.MethodPost, "/volumes/prune?filters="+filter(label), nil, nil))
}

// Event of a container.
type Event struct {
	// Action like create, start, die, destroy.
	Action string
	// Actor is the container.
	Actor struct {
		ID         string
		Attributes map[string]string
	}
	// TimeNano is the time of the event.
	TimeNano int64 `json:"timeNano"`
	// Engine that told of it, if a witness wrote it down.
	Engine *Engine `json:"-"`
}

// Name of the container.
func (e Event) Name() string { return e.Actor.Attributes["name"] }

// Events calls each for every event of a container since a time, until ctx ends, the stream breaks, or a time in the past is given as until.
func (a *API) Events(ctx context.Context, since, until time.Time, each func(Event)) error {
	path := fmt.Sprintf("/events?since=%d.%09d&filters=%s", since.Unix(), since.Nanosecond(), url.QueryEscape(`{"type":["container"]}`))
	if !until.IsZero() {
		path += fmt.Sprintf("&until=%d.%09d", until.Unix(), until.Nanosecond())
	}
	resp, err := a.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	decoder := json.NewDecoder(resp.Body)
	for {
		var e Event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) || ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("events: %w", err)
		}
		each(e)
	}
}

// Package route writes the upstreams of the proxy that a host's agent drives, and confirms that the proxy took them. It owns the routes
// that carry Muster's mark and leaves every other part of the proxy's configuration as it is. When an upstream may be added or removed is
// left to the coordinator.
package route

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	serversPath = "/config/apps/http/servers"
	// attemptLimit bounds one request to the admin API; a load of a large configuration takes a fraction of it.
	attemptLimit = 10 * time.Second
	// readPatience is how long List waits for a proxy that does not answer.
	readPatience = 5 * time.Second
	// badConfig is in what Caddy says, with status 500, when it can read a configuration and not run it.
	badConfig = "loading new config"
	// maxAnswer is more than any configuration has.
	maxAnswer = 64 << 20
)

// Caddy drives a Caddy proxy, version 2, through its admin API. Its methods may be called from many goroutines.
type Caddy struct {
	admin  string
	server string
	client *http.Client
	log    *slog.Logger

	update chan struct{} // holds a token during a change: one at a time. Those of other programs are found by their Etag.
}

// Option changes how a Caddy is driven.
type Option func(*Caddy)

// WithServer names the HTTP server of the proxy's configuration that gets new routes; without it, the first by name does.
func WithServer(name string) Option { return func(c *Caddy) { c.server = name } }

// NewCaddy returns a driver of the proxy whose admin API is at adminURL, such as http://127.0.0.1:2019. It does not need the proxy to be up.
func NewCaddy(adminURL string, logger *slog.Logger, opts ...Option) (*Caddy, error) {
	u, err := url.Parse(adminURL)
	if err != nil {
		return nil, fmt.Errorf("admin address of caddy: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("admin address %q of caddy: use http://HOST:PORT", adminURL)
	}
	if logger == nil {
		return nil, errors.New("route: no logger")
	}
	c := &Caddy{
		admin:  strings.TrimSuffix(adminURL, "/"),
		client: &http.Client{Transport: &http.Transport{Proxy: nil, IdleConnTimeout: 30 * time.Second}},
		log:    logger.With("component", "route"),
		update: make(chan struct{}, 1),
	}
	for _, o := range opts {
		o(c)
	}
	return c, nil
}

// List returns Muster's routes in order of their names.
func (c *Caddy) List(ctx context.Context) ([]*agentv1.RouteState, error) {
	short, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	servers, _, err := c.read(short)
	if err != nil {
		if short.Err() != nil && ctx.Err() == nil {
			return nil, fail(false, "caddy at %s does not answer within %s: start it, or correct --caddy-admin", c.admin, readPatience)
		}
		return nil, err
	}
	var out []*agentv1.RouteState
	for _, name := range sortedNames(servers) {
		for _, raw := range servers[name].Routes {
			if r, ok := parseRoute(raw); ok {
				out = append(out, &agentv1.RouteState{Route: r.route, Upstreams: r.upstreams})
			}
		}
	}
	slices.SortFunc(out, func(a, b *agentv1.RouteState) int { return cmp.Compare(a.GetRoute().GetName(), b.GetRoute().GetName()) })
	return out, nil
}

// Update adds and removes upstreams of a route, and creates it if it is missing. It returns the upstreams that the proxy serves by. Doing
// it again changes nothing. A route without upstreams stays: the proxy answers 503 for it.
func (c *Caddy) Update(ctx context.Context, route *agentv1.Route, add, remove []string) ([]string, error) {
	if err := validate(route, add, remove); err != nil {
		return nil, err
	}
	select {
	case c.update <- struct{}{}:
		defer func() { <-c.update }()
	case <-ctx.Done():
		return nil, fmt.Errorf("route %q: wait for another change: %w", route.GetName(), ctx.Err())
	}
	for {
		servers, etag, err := c.read(ctx)
		if err != nil {
			return nil, err
		}
		name, err := c.serverFor(servers, route.GetName())
		if err != nil {
			return nil, err
		}
		routes, upstreams, changed, err := change(servers[name].Routes, route, add, remove)
		if err != nil {
			return nil, err
		}
		if !changed { // which is also how a change is confirmed.
			return upstreams, nil
		}
		method := http.MethodPatch
		if servers[name].Routes == nil { // there is nothing to replace yet.
			method = http.MethodPost
		}
		status, body, _, err := c.do(ctx, method, serversPath+"/"+url.PathEscape(name)+"/routes", routes, etag)
		switch {
		case err != nil: // it may have been taken: look.
			c.log.Warn("caddy did not answer a change, looking what it has", "route", route.GetName(), "err", err)
		case status == http.StatusPreconditionFailed:
			c.log.Debug("caddy was changed by another program, trying again", "route", route.GetName())
		case status >= 500 && !strings.Contains(string(body), badConfig):
			return nil, fail(false, "caddy at %s did not take route %q: %s", c.admin, route.GetName(), refusal(status, body))
		case status >= 400:
			return nil, fail(true, "caddy at %s refused route %q: %s", c.admin, route.GetName(), refusal(status, body))
		default:
			c.log.Info("upstreams changed", "route", route.GetName(), "upstreams", upstreams)
			continue
		}
		if !wait(ctx, 20*time.Millisecond) {
			return nil, fmt.Errorf("route %q: %w", route.GetName(), ctx.Err())
		}
	}
}

// server is the part of an HTTP server's configuration that is looked at.
type server struct {
	Routes []json.RawMessage `json:"routes"`
}

// read returns the HTTP servers of the proxy and the Etag that a change of them must carry. It waits for a proxy that does not answer.
func (c *Caddy) read(ctx context.Context) (map[string]server, string, error) {
	warned := false
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		status, body, etag, err := c.do(ctx, http.MethodGet, serversPath, nil, "")
		if err == nil && status < 500 {
			// A configuration without HTTP servers has no such path, which is 400, or null.
			var servers map[string]server
			if status < 400 {
				if err := json.Unmarshal(body, &servers); err != nil {
					return nil, "", fail(true, "caddy at %s answers what is no configuration of it (%s): correct --caddy-admin", c.admin, err)
				}
			}
			if len(servers) == 0 {
				return nil, "", fail(true, "caddy at %s has no HTTP server: configure one that listens, without it there is nothing to route", c.admin)
			}
			return servers, etag, nil
		}
		if err == nil {
			err = errors.New(refusal(status, body))
		}
		if !warned && ctx.Err() == nil {
			c.log.Warn("caddy does not answer, waiting for it", "admin", c.admin, "err", err)
			warned = true
		}
		if !wait(ctx, delay) {
			return nil, "", fmt.Errorf("caddy at %s does not answer: %w: %s", c.admin, ctx.Err(), err)
		}
	}
}

// serverFor returns the server that has the route, or else the one for new routes.
func (c *Caddy) serverFor(servers map[string]server, route string) (string, error) {
	names := sortedNames(servers)
	for _, name := range names {
		if indexOf(servers[name].Routes, route) >= 0 {
			return name, nil
		}
	}
	if c.server == "" {
		return names[0], nil
	}
	if _, ok := servers[c.server]; !ok {
		return "", fail(true, "caddy at %s has no HTTP server %q, only %q: correct the agent's setting", c.admin, c.server, names)
	}
	return c.server, nil
}

func (c *Caddy) do(ctx context.Context, method, path string, value any, etag string) (status int, body []byte, newEtag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	var payload io.Reader
	if value != nil {
		text, err := json.Marshal(value)
		if err != nil {
			return 0, nil, "", err
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.admin+path, payload)
	if err != nil {
		return 0, nil, "", err
	}
	if value != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-Match", etag)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, resp.Header.Get("Etag"), err
}

// validate refuses what the proxy would misread.
func validate(route *agentv1.Route, add, remove []string) error {
	invalid := func(format string, args ...any) error {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, format, args...)
	}
	if route.GetName() == "" || strings.ContainsAny(route.GetName(), "/\\ \t\n\"") {
		return invalid("route name %q: use stack.service", route.GetName())
	}
	if p := route.GetPathPrefix(); p != "" && (!strings.HasPrefix(p, "/") || strings.ContainsAny(p, "*{}")) {
		return invalid("route %q: path prefix %q must begin with / and hold no pattern", route.GetName(), p)
	}
	for _, h := range route.GetHosts() {
		if h == "" || strings.ContainsAny(h, "/{} ") {
			return invalid("route %q: %q is no host name", route.GetName(), h)
		}
	}
	for _, u := range append(slices.Clone(add), remove...) {
		host, port, err := net.SplitHostPort(u)
		n, errPort := strconv.ParseUint(port, 10, 16)
		if err != nil || errPort != nil || n == 0 || host == "" || strings.ContainsAny(host, "{}/") {
			return invalid("route %q: upstream %q is not address:port", route.GetName(), u)
		}
	}
	for _, u := range add {
		if slices.Contains(remove, u) {
			return invalid("route %q: upstream %q is both added and removed", route.GetName(), u)
		}
	}
	return nil
}

func fail(permanent bool, format string, args ...any) error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_ROUTE, permanent, format, args...)
}

// refusal is what the admin API says when it does not do as asked.
func refusal(status int, body []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(body, &said); err == nil && said.Error != "" {
		return strings.ReplaceAll(said.Error, "\n", "; ")
	}
	return fmt.Sprintf("status %d", status)
}

func sortedNames(servers map[string]server) []string {
	names := make([]string, 0, len(servers))
	for name := range servers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// wait returns false if ctx ended before d was over.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sameRoute says that two routes match the same requests.
func sameRoute(a, b *agentv1.Route) bool { return proto.Equal(a, b) }

// Package route writes the upstreams of the proxy that a host's agent drives, or shows a page in their place for a time, and confirms that the proxy
// took them. It owns the routes that carry Muster's mark and leaves every other part of the proxy's configuration as it is. When an upstream may be
// added or removed, or a page shown, is left to the coordinator; that a page ends is not.
package route

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

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
	// defaultDir holds a folder of slots for each proxy of this host. It is not the agent's own, which the proxy may not read.
	defaultDir = "/var/lib/muster-routes"
	// maxAnswer is more than any configuration has.
	maxAnswer = 64 << 20
)

// Caddy drives a Caddy proxy, version 2, through its admin API. Its methods may be called from many goroutines.
//
// Each change of its configuration makes Caddy replace its servers, and a server that is replaced hangs up on connections whose first
// request it has not read yet. So the configuration is changed only to add a route, and upstreams are changed in a folder that the proxy
// reads. A proxy that cannot read the folder, as one on another host, gets its upstreams by its configuration all the same.
type Caddy struct {
	admin  string
	server string
	slots  slots // without a folder, upstreams are in the configuration.
	keeps  bool  // the folder is this agent's alone, so that what it says of a route which the proxy lost is true.
	client *http.Client
	log    *slog.Logger

	update chan struct{} // holds a token during a change: one at a time. Those of other programs are found by their Etag.
	pages  *pages        // used by who holds the token.
	due    chan struct{} // Run is to look at the pages.
}

// Option changes how a Caddy is driven.
type Option func(*Caddy)

// WithServer names the HTTP server of the proxy's configuration that gets new routes; without it, the first by name does.
func WithServer(name string) Option { return func(c *Caddy) { c.server = name } }

// WithDir names a folder of this agent in which the upstreams are, which the proxy must be able to read, and which should outlive a restart of
// the host. A proxy that forgot its routes gets their upstreams from it with the next change. Empty means to have upstreams in the proxy's
// configuration. The default is a folder of /var/lib/muster-routes if the admin API is on this host.
func WithDir(dir string) Option {
	return func(c *Caddy) { c.slots.dir, c.keeps = dir, true }
}

// WithState names a file that remembers which routes show a page, and until when. Without it, they are forgotten when the agent ends.
func WithState(file string) Option { return func(c *Caddy) { c.pages.file = file } }

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
		pages:  &pages{},
		due:    make(chan struct{}, 1),
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		c.slots.dir = filepath.Join(defaultDir, strings.NewReplacer(":", "-", "[", "", "]", "").Replace(u.Host))
	}
	for _, o := range opts {
		o(c)
	}
	if d := c.slots.dir; d != "" && (!filepath.IsAbs(d) || strings.ContainsAny(d, "{}\\")) {
		return nil, fmt.Errorf("folder %q for upstreams: use an absolute path without braces", d)
	}
	return c, c.pages.load()
}

// List returns Muster's routes in order of their names.
func (c *Caddy) List(ctx context.Context) ([]*agentv1.RouteState, error) {
	short, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	all, _, err := c.read(short)
	if err != nil {
		if short.Err() != nil && ctx.Err() == nil {
			return nil, fail(false, "caddy at %s does not answer within %s: start it, or correct --caddy-admin", c.admin, readPatience)
		}
		return nil, err
	}
	var out []*agentv1.RouteState
	for _, r := range all.own() {
		upstreams, _, err := c.upstreams(r)
		if err != nil {
			return nil, fail(false, "upstreams of route %q: %s", r.route.GetName(), err)
		}
		shows, err := c.shows(r)
		if err != nil {
			return nil, fail(false, "page of route %q: %s", r.route.GetName(), err)
		}
		out = append(out, &agentv1.RouteState{Route: r.route, Upstreams: upstreams, Maintenance: shows})
	}
	return out, nil
}

// upstreams returns those of a route, sorted, and the number of its slots in the folder of this agent.
func (c *Caddy) upstreams(r parsed) ([]string, int, error) {
	name := r.route.GetName()
	if !r.inSlots() && (!c.keeps || c.slots.dir == "" || len(r.dials) > 0) {
		return slices.Sorted(slices.Values(r.dials)), 0, nil
	}
	if dir := r.slotsDir(); dir != "" && dir != c.slots.dir { // the agent was given another folder since.
		had, _, err := slots{dir: dir}.read(name)
		return had, 0, err
	}
	return c.slots.read(name)
}

// Update adds and removes upstreams of a route, and creates it if it is missing. It returns the upstreams that the proxy serves by. Doing
// it again changes nothing. A route without upstreams stays: the proxy answers 502 or 503 for it.
func (c *Caddy) Update(ctx context.Context, route *agentv1.Route, add, remove []string) ([]string, error) {
	if err := validate(route, add, remove); err != nil {
		return nil, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("route %q: %w", route.GetName(), err)
	}
	defer unlock()
	return c.change(ctx, route, add, remove)
}

// lock waits for the end of another change.
func (c *Caddy) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case c.update <- struct{}{}:
		return func() { <-c.update }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another change: %w", ctx.Err())
	}
}

// change makes a route lead to its upstreams, or show its page, and returns when the proxy does. The lock is held.
func (c *Caddy) change(ctx context.Context, route *agentv1.Route, add, remove []string) ([]string, error) {
	change := &change{c: c, route: route, add: add, remove: remove, inSlots: c.slots.dir != ""}
	for {
		done, upstreams, err := change.step(ctx)
		if err != nil || done {
			return upstreams, err
		}
	}
}

// read returns the HTTP servers of the proxy and the Etag that a change of them must carry. It waits for a proxy that does not answer.
func (c *Caddy) read(ctx context.Context) (servers, string, error) {
	warned := false
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		status, body, etag, err := c.do(ctx, http.MethodGet, serversPath, nil, "")
		if err == nil && status < 500 {
			// A configuration without HTTP servers has no such path, which is 400, or null.
			var all servers
			if status < 400 {
				if err := json.Unmarshal(body, &all); err != nil {
					return nil, "", fail(true, "caddy at %s answers what is no configuration of it (%s): correct --caddy-admin", c.admin, err)
				}
			}
			if len(all.names()) == 0 {
				return nil, "", fail(true, "caddy at %s has no HTTP server: configure one that listens, without it there is nothing to route", c.admin)
			}
			return all, etag, nil
		}
		if err == nil {
			err = errors.New(refusal(status, body))
		}
		if !warned && ctx.Err() == nil {
			c.log.Warn("caddy does not answer, waiting for it", "admin", c.admin, "err", err)
			warned = true
		}
		if !wait(ctx, delay) {
			return nil, "", fmt.Errorf("caddy at %s does not answer: %w: %w", c.admin, ctx.Err(), err)
		}
	}
}

// put makes the servers the proxy's. nil means only that it is worth a look whether they are: somebody else may have been faster.
func (c *Caddy) put(ctx context.Context, all servers, etag, route string) error {
	status, body, _, err := c.do(ctx, http.MethodPatch, serversPath, all, etag)
	switch {
	case err != nil:
		c.log.Warn("caddy did not answer a change, looking what it has", "route", route, "err", err)
	case status == http.StatusPreconditionFailed:
		c.log.Debug("caddy was changed by another program, trying again", "route", route)
	case status >= 500 && !strings.Contains(string(body), badConfig):
		return fail(false, "caddy at %s did not take route %q: %s", c.admin, route, refusal(status, body))
	case status >= 400:
		return fail(true, "caddy at %s refused route %q: %s", c.admin, route, refusal(status, body))
	default:
		return nil
	}
	if !wait(ctx, 20*time.Millisecond) {
		return fmt.Errorf("route %q: %w", route, ctx.Err())
	}
	return nil
}

// locate returns the server that has the route and what it has, or else the server for new routes.
func (c *Caddy) locate(all servers, route *agentv1.Route) (string, parsed, error) {
	if server, r := all.find(route.GetName()); server != "" {
		return server, r, nil
	}
	names, none := all.names(), parsed{route: route}
	if c.server == "" {
		return names[0], none, nil
	}
	if !slices.Contains(names, c.server) {
		return "", none, fail(true, "caddy at %s has no HTTP server %q, only %q: correct the agent's setting", c.admin, c.server, names)
	}
	return c.server, none, nil
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
	if route.GetName() == "" || strings.HasPrefix(route.GetName(), ".") || strings.ContainsAny(route.GetName(), "/\\{} \t\n\"") {
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

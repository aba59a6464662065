package route

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	defaultMaintenance = 4 * time.Hour
	// maxPage is less than what Caddy reads of a file.
	maxPage = 512 << 10
	// retryAfter is what a page tells clients.
	retryAfter = time.Minute
	// tendLimit bounds one try of Run, so that calls get their turn while the proxy is away. Tries that fail are tendPause apart, and later more.
	tendLimit, tendPause = 30 * time.Second, 2 * time.Second
	// lookAgain is how long Run trusts the clock: a host may sleep, and a clock may be set.
	lookAgain = 30 * time.Second

	defaultPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Maintenance</title>
<style>body{font:18px/1.5 system-ui,sans-serif;margin:20vh auto;max-width:32em;padding:0 1em;color:#222}</style></head>
<body><h1>Down for maintenance</h1><p>This service is being worked on and will be back soon. Please try again in a few minutes.</p></body></html>
`
)

// SetMaintenance makes routes show a page, with the status 503, instead of what they lead to, or ends that. It returns the routes that show
// one now, when the proxy does so. A route that is created later shows the page of its stack. The page ends after the limit, whoever asked
// for it and whether this agent ran meanwhile: Run sees to that.
//
// The page is in the folder of slots, and so is whether it is shown: changing that needs no new configuration, so that every request gets one
// of both answers. A proxy that cannot read the folder gets the page by its configuration.
func (c *Caddy) SetMaintenance(ctx context.Context, req *agentv1.SetMaintenanceRequest) ([]string, error) {
	limit, err := validateMaintenance(req)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("maintenance: %w", err)
	}
	defer unlock()
	all, _, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetEnabled() {
		if err := c.present(all, req.GetRoutes()); err != nil {
			return nil, err
		}
	}
	page := req.GetPage()
	if page == "" {
		page = defaultPage
	}
	before := c.pages.all
	for _, pattern := range req.GetRoutes() {
		e := pageEntry{Pattern: pattern}
		if req.GetEnabled() {
			e = pageEntry{Pattern: pattern, On: true, Until: time.Now().Add(limit).UTC(), Page: page}
		}
		c.pages.set(e)
	}
	// First remembered, then shown: no page is ever shown that nobody would end.
	if err := c.pages.save(); err != nil {
		c.pages.all = before
		return nil, fail(false, "maintenance: %s", err)
	}
	defer c.wake()
	c.pages.unsettled = true
	if err := c.settle(ctx); err != nil {
		if _, definite := rpcerr.Failure(err); definite && req.GetEnabled() {
			c.pages.takeBack(before, req.GetRoutes())
			err = errors.Join(err, c.pages.save())
		}
		return nil, err
	}
	return c.showing(ctx)
}

func validateMaintenance(req *agentv1.SetMaintenanceRequest) (time.Duration, error) {
	invalid := func(format string, args ...any) error {
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, format, args...)
	}
	if len(req.GetRoutes()) == 0 {
		return 0, invalid("maintenance: name at least one route, as stack.service, or stack.* for those of a stack")
	}
	for _, pattern := range req.GetRoutes() {
		name := strings.TrimSuffix(pattern, ".*")
		if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "*/\\{} \t\n\"") {
			return 0, invalid("maintenance: route %q: use stack.service, or stack.* for those of a stack", pattern)
		}
	}
	if n := len(req.GetPage()); n > maxPage {
		return 0, invalid("maintenance: the page has %d bytes: use at most %d", n, maxPage)
	}
	switch limit := req.GetLimit().AsDuration(); {
	case limit < 0:
		return 0, invalid("maintenance: limit %s is negative", limit)
	case limit == 0:
		return defaultMaintenance, nil
	default:
		return limit, nil
	}
}

// present fails for a pattern that matches nothing: somebody would believe that a page is shown.
func (c *Caddy) present(all servers, patterns []string) error {
	own := all.own()
	names := make([]string, 0, len(own))
	for _, r := range own {
		names = append(names, r.route.GetName())
	}
	for _, pattern := range patterns {
		if !slices.ContainsFunc(names, func(name string) bool { return covers(pattern, name) }) {
			return fail(true, "caddy at %s has no route %q, only %q", c.admin, pattern, names)
		}
	}
	return nil
}

// settle makes the proxy show what is remembered. The lock is held.
func (c *Caddy) settle(ctx context.Context) error {
	all, _, err := c.read(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, r := range all.own() {
		name := r.route.GetName()
		if !c.pages.known(name) {
			continue
		}
		// One route must not keep the page of another.
		if r.edited {
			failed = cmp.Or(failed, fail(true, "route %q of caddy at %s was edited by hand, and what it matches is not known: correct it, or remove it and update the service", name, c.admin))
			continue
		}
		if _, err := c.change(ctx, r.route, nil, nil); err != nil {
			failed = cmp.Or(failed, err)
		}
	}
	if failed != nil {
		return failed
	}
	c.pages.settled()
	if err := c.pages.save(); err != nil {
		return fail(false, "maintenance: %s", err)
	}
	return nil
}

// showing returns the routes that show a page.
func (c *Caddy) showing(ctx context.Context) ([]string, error) {
	all, _, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range all.own() {
		shows, err := c.shows(r)
		if err != nil {
			return nil, fail(false, "page of route %q: %s", r.route.GetName(), err)
		}
		if shows {
			out = append(out, r.route.GetName())
		}
	}
	return out, nil
}

// shows says that the proxy shows a page for the route.
func (c *Caddy) shows(r parsed) (bool, error) {
	if dir := r.slotsDir(); dir != "" && !r.shows {
		return slots{dir: dir}.shows(r.route.GetName())
	}
	return r.shows, nil
}

// wake makes Run look at the pages.
func (c *Caddy) wake() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// Run ends pages whose time is over, until ctx ends. It begins with what an agent before this one left: a page is shown again whose time
// is not over, and ended whose time passed meanwhile.
func (c *Caddy) Run(ctx context.Context) error {
	failures := 0
	for {
		pause, err := c.tend(ctx)
		if err != nil {
			pause = min(tendPause<<min(failures, 10), lookAgain)
			failures++
			if ctx.Err() == nil {
				c.log.Warn("the proxy does not show what it shall, trying again", "in", pause, "err", err)
			}
		} else {
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-c.due:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// tend does what is due, and returns when to look again.
func (c *Caddy) tend(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, tendLimit)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if ended := c.pages.expire(time.Now()); len(ended) > 0 {
		c.log.Warn("maintenance ends by itself: its time is over", "routes", ended)
		c.pages.unsettled = true
		if err := c.pages.save(); err != nil {
			c.log.Error("the end of a maintenance was not written down", "err", err)
		}
	}
	if c.pages.unsettled {
		if err := c.settle(ctx); err != nil {
			return 0, err
		}
	}
	if at, ok := c.pages.next(); ok {
		return min(time.Until(at), lookAgain), nil
	}
	return lookAgain, nil
}

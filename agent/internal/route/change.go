package route

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// confirmLimit is how long the proxy gets to answer what it reads in the folder of slots.
const confirmLimit = 2 * time.Second

// change is one call of Update.
type change struct {
	c           *Caddy
	route       *agentv1.Route
	add, remove []string
	inSlots     bool // becomes false when the proxy turns out not to read the folder.
}

// step looks at the proxy and does the next thing, if there is one; done says that there is none, and that the proxy serves by the upstreams.
func (ch *change) step(ctx context.Context) (done bool, upstreams []string, err error) {
	c, name := ch.c, ch.route.GetName()
	all, etag, err := c.read(ctx)
	if err != nil {
		return false, nil, err
	}
	server, before, err := c.locate(all, ch.route)
	if err != nil {
		return false, nil, err
	}
	had, n, err := c.upstreams(before)
	if err != nil {
		return false, nil, fail(false, "upstreams of route %q: %s", name, err)
	}
	wanted := ch.apply(had)
	text, shown := c.pages.shown(name, time.Now())
	dials, page := wanted, (*notice)(nil)
	if shown {
		page = &notice{body: literal(text)}
	}
	if ch.inSlots {
		listen, probe, ok := all.confirmAt()
		if !ok || probe != c.slots.probe() {
			return false, nil, ch.addConfirm(ctx, all, etag)
		}
		// A route that is not in slots yet works as it is: only a proxy that reads them may be led there.
		if !before.inSlots() {
			if ok, err := ch.confirm(ctx, listen); err != nil || !ok {
				return false, nil, err
			}
		}
		if n, err = ch.writeSlots(had, wanted, n, text, shown); err != nil {
			return false, nil, fail(false, "upstreams of route %q: %s", name, err)
		}
		page = c.slots.notice(name)
		dials = make([]string, 0, n)
		for i := range n {
			dials = append(dials, "{file."+c.slots.slot(name, i)+"}")
		}
	}
	next, changed, err := all.with(server, ch.route, dials, page)
	if err != nil {
		return false, nil, fail(true, "caddy at %s has a configuration that cannot be changed: %s", c.admin, err)
	}
	if changed {
		c.log.Info("route changed", "route", name, "hosts", ch.route.GetHosts(), "path_prefix", ch.route.GetPathPrefix(), "upstreams", wanted)
		return false, nil, c.put(ctx, next, etag, name)
	}
	if !ch.inSlots {
		return true, wanted, ch.dropSlots()
	}
	listen, _, _ := all.confirmAt()
	done, err = ch.confirm(ctx, listen)
	return done, wanted, err
}

// writeSlots puts a generation in force that differs, and returns the number of its slots.
func (ch *change) writeSlots(had, wanted []string, n int, text string, shown bool) (int, error) {
	c, name := ch.c, ch.route.GetName()
	if shown {
		if err := c.slots.writePage(name, text); err != nil {
			return 0, err
		}
	}
	before, err := c.slots.shows(name)
	if err != nil || n > 0 && before == shown && slices.Equal(had, wanted) {
		return n, err
	}
	if n, err = c.slots.write(name, wanted, n, shown); err == nil {
		c.log.Info("upstreams changed", "route", name, "upstreams", wanted, "maintenance", shown)
	}
	return n, err
}

func (ch *change) apply(had []string) []string {
	out := slices.DeleteFunc(append(slices.Clone(had), ch.add...), func(u string) bool { return slices.Contains(ch.remove, u) })
	slices.Sort(out)
	return slices.Compact(out)
}

// addConfirm gives the proxy the server by which it shows what it reads.
func (ch *change) addConfirm(ctx context.Context, all servers, etag string) error {
	c := ch.c
	if err := c.slots.challenge(rand.Text()); err != nil {
		ch.fallBack(err)
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fail(false, "route %q: no free port for %s: %s", ch.route.GetName(), confirmServer, err)
	}
	listen := l.Addr().String()
	if err := l.Close(); err != nil {
		return fail(false, "route %q: no free port for %s: %s", ch.route.GetName(), confirmServer, err)
	}
	next, err := all.withConfirm(listen, c.slots.probe())
	if err != nil {
		return fail(true, "caddy at %s has a configuration that cannot be changed: %s", c.admin, err)
	}
	return c.put(ctx, next, etag, ch.route.GetName())
}

// confirm asks the proxy for a value that was just written to the folder of slots. If it has another, it does not read the folder, and its
// upstreams go to its configuration. The value is written after the slots, so who reads it reads them too.
func (ch *change) confirm(ctx context.Context, listen string) (bool, error) {
	c := ch.c
	value := rand.Text()
	if err := c.slots.challenge(value); err != nil {
		ch.fallBack(err)
		return false, nil
	}
	limit, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	for {
		got, err := ask(limit, listen)
		if err == nil && got == value {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, fmt.Errorf("route %q: %w: caddy at %s has not confirmed its upstreams", ch.route.GetName(), ctx.Err(), c.admin)
		}
		// An answer is the truth; no answer may be a server that is about to listen.
		if err == nil || !wait(limit, 20*time.Millisecond) {
			ch.fallBack(err)
			return false, nil
		}
	}
}

func ask(ctx context.Context, listen string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/", nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	return string(body), err
}

func (ch *change) fallBack(err error) {
	ch.inSlots = false
	ch.c.log.Warn("caddy does not read the folder of upstreams, so each change reloads its configuration, which can cut off new connections",
		"dir", ch.c.slots.dir, "fix", "make the folder readable for caddy, and mount it at the same path if caddy runs in a container", "err", err)
}

// dropSlots removes what must not be taken for the truth later.
func (ch *change) dropSlots() error {
	if ch.c.slots.dir == "" {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(ch.c.slots.dir, ch.route.GetName())); err != nil {
		return fail(false, "route %q: %s", ch.route.GetName(), err)
	}
	return nil
}

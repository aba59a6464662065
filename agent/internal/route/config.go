package route

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// idleTimeout of a connection to an upstream: long enough to serve a steady load, short enough to be waited for.
const idleTimeout = "1s"

// mark begins the @id of every route of Muster.
const mark = "muster-"

// caddyRoute is a route as Caddy's configuration has it.
type caddyRoute struct {
	ID       string         `json:"@id"`
	Match    []caddyMatch   `json:"match,omitempty"`
	Handle   []caddyHandler `json:"handle"`
	Terminal bool           `json:"terminal"`
}

type caddyMatch struct {
	Host []string `json:"host,omitempty"`
	Path []string `json:"path,omitempty"`
}

type caddyHandler struct {
	Handler       string          `json:"handler"`
	Upstreams     []caddyUpstream `json:"upstreams"`
	LoadBalancing caddyBalancing  `json:"load_balancing"`
	Transport     caddyTransport  `json:"transport"`
}

// caddyTransport is written out because Caddy closes the idle connections to upstreams that a change removed only for a transport that the
// configuration names. One that escapes, because a request took it during the change, ends by the idle timeout: a drain waits for it.
type caddyTransport struct {
	Protocol  string `json:"protocol"`
	KeepAlive struct {
		IdleTimeout string `json:"idle_timeout"`
	} `json:"keep_alive"`
}

type caddyUpstream struct {
	Dial string `json:"dial"`
}

// caddyBalancing has no retries: they would hide the failures that a rollout must see.
type caddyBalancing struct {
	Policy struct {
		Name string `json:"policy"`
	} `json:"selection_policy"`
}

// parsed is one of Muster's routes.
type parsed struct {
	route     *agentv1.Route
	upstreams []string
}

// parseRoute returns false for a route that is not Muster's.
func parseRoute(raw json.RawMessage) (parsed, bool) {
	var c caddyRoute
	if !bytes.Contains(raw, []byte(mark)) {
		return parsed{}, false
	}
	// Others' routes need not fit these types; only the mark decides whose a route is.
	var id struct {
		ID any `json:"@id"`
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return parsed{}, false
	}
	name, ok := id.ID.(string)
	if !ok || !strings.HasPrefix(name, mark) {
		return parsed{}, false
	}
	out := parsed{route: &agentv1.Route{Name: strings.TrimPrefix(name, mark)}}
	if err := json.Unmarshal(raw, &c); err != nil { // edited by hand: it is written anew with the next change.
		return out, true
	}
	if len(c.Match) > 0 {
		out.route.Hosts = c.Match[0].Host
		if len(c.Match[0].Path) > 0 {
			out.route.PathPrefix = strings.TrimSuffix(c.Match[0].Path[0], "*")
		}
	}
	if len(c.Handle) > 0 {
		for _, u := range c.Handle[0].Upstreams {
			out.upstreams = append(out.upstreams, u.Dial)
		}
	}
	slices.Sort(out.upstreams)
	return out, true
}

// render is the inverse of parseRoute.
func render(route *agentv1.Route, upstreams []string) (json.RawMessage, error) {
	handler := caddyHandler{Handler: "reverse_proxy", Upstreams: make([]caddyUpstream, 0, len(upstreams))}
	handler.LoadBalancing.Policy.Name = "round_robin"
	handler.Transport.Protocol, handler.Transport.KeepAlive.IdleTimeout = "http", idleTimeout
	for _, u := range upstreams {
		handler.Upstreams = append(handler.Upstreams, caddyUpstream{Dial: u})
	}
	out := caddyRoute{ID: mark + route.GetName(), Handle: []caddyHandler{handler}, Terminal: true}
	match := caddyMatch{Host: route.GetHosts()}
	switch prefix := route.GetPathPrefix(); {
	case prefix == "" || prefix == "/":
	case strings.HasSuffix(prefix, "/"):
		match.Path = []string{prefix + "*"}
	default: // /api matches /api and what is below it, but not /apiary.
		match.Path = []string{prefix, prefix + "/*"}
	}
	if len(match.Host)+len(match.Path) > 0 {
		out.Match = []caddyMatch{match}
	}
	return json.Marshal(out)
}

// change returns the routes of a server after a change of one of Muster's, that route's upstreams, and whether anything is different. All
// other routes stay as they are.
func change(routes []json.RawMessage, route *agentv1.Route, add, remove []string) ([]json.RawMessage, []string, bool, error) {
	at := indexOf(routes, route.GetName())
	var before parsed
	if at >= 0 {
		before, _ = parseRoute(routes[at])
	}
	upstreams := slices.DeleteFunc(append(slices.Clone(before.upstreams), add...), func(u string) bool { return slices.Contains(remove, u) })
	slices.Sort(upstreams)
	upstreams = slices.Compact(upstreams)
	wanted, err := render(route, upstreams)
	if err != nil {
		return nil, nil, false, err
	}
	if at >= 0 && sameJSON(routes[at], wanted) {
		return routes, upstreams, false, nil
	}
	out := slices.Clone(routes)
	after, _ := parseRoute(wanted)
	if at >= 0 && sameRoute(before.route, after.route) {
		out[at] = wanted
		return out, upstreams, true, nil
	}
	if at >= 0 { // it matches other requests now, so its place may be another.
		out = slices.Delete(out, at, at+1)
	}
	return slices.Insert(out, place(out, after.route), wanted), upstreams, true, nil
}

// place returns where a new route goes: before those that match more requests than it does, because the first match wins. One for particular hosts
// or paths goes before all that are not Muster's.
func place(routes []json.RawMessage, route *agentv1.Route) int {
	for i, raw := range routes {
		if other, ok := parseRoute(raw); ok {
			if specificity(route) > specificity(other.route) {
				return i
			}
			continue
		}
		if specificity(route) > 0 || matchesAll(raw) {
			return i
		}
	}
	return len(routes)
}

// specificity orders routes: a longer path before a shorter one, a host before none. 0 matches everything.
func specificity(r *agentv1.Route) int {
	n := 2 * len(strings.TrimSuffix(r.GetPathPrefix(), "/"))
	if len(r.GetHosts()) > 0 {
		n++
	}
	return n
}

func matchesAll(raw json.RawMessage) bool {
	var c struct {
		Match []json.RawMessage `json:"match"`
	}
	return json.Unmarshal(raw, &c) == nil && len(c.Match) == 0
}

func indexOf(routes []json.RawMessage, name string) int {
	return slices.IndexFunc(routes, func(raw json.RawMessage) bool {
		r, ok := parseRoute(raw)
		return ok && r.route.GetName() == name
	})
}

// sameJSON compares values, not texts: the proxy sorts the keys and drops the white space.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	// Marshalling sorts the keys of maps.
	p, errP := json.Marshal(x)
	q, errQ := json.Marshal(y)
	return errP == nil && errQ == nil && bytes.Equal(p, q)
}

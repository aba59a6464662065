package route

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	// mark begins the @id of every route of Muster.
	mark = "muster-"
	// confirmServer is Muster's own server in the proxy, on a loopback port: it shows that the proxy reads the folder of slots.
	confirmServer = "muster-confirm"
	// idleTimeout of a connection to an upstream. A drain waits for the idle ones of an upstream that was removed; a steady load keeps
	// those of the others open.
	idleTimeout = "25ms"
)

// servers are the HTTP servers of a proxy by name, with all of their settings as they were read.
type servers map[string]json.RawMessage

// caddyRoute is a route as Caddy's configuration has it.
type caddyRoute struct {
	ID       string       `json:"@id"`
	Match    []caddyMatch `json:"match,omitempty"`
	Handle   []any        `json:"handle"`
	Terminal bool         `json:"terminal"`
}

// readRoute is what is read of it.
type readRoute struct {
	Match  []caddyMatch `json:"match"`
	Handle []struct {
		Handler   string          `json:"handler"`
		Upstreams []caddyUpstream `json:"upstreams"`
		Routes    []caddyPage     `json:"routes"`
	} `json:"handle"`
}

type caddyMatch struct {
	Host []string `json:"host,omitempty"`
	Path []string `json:"path,omitempty"`
}

// caddyHandler has no retries: they would hide the failures that a rollout must see.
type caddyHandler struct {
	Handler       string          `json:"handler"`
	Upstreams     []caddyUpstream `json:"upstreams"`
	LoadBalancing struct {
		Policy struct {
			Name string `json:"policy"`
		} `json:"selection_policy"`
	} `json:"load_balancing"`
	// Transport is written out because Caddy closes the idle connections of a transport that is replaced only if the configuration names it.
	Transport struct {
		Protocol  string `json:"protocol"`
		KeepAlive struct {
			IdleTimeout string `json:"idle_timeout"`
		} `json:"keep_alive"`
	} `json:"transport"`
}

// caddySubroute comes before the upstreams of a route that may show a page.
type caddySubroute struct {
	Handler string      `json:"handler"`
	Routes  []caddyPage `json:"routes"`
}

type caddyPage struct {
	Match    []caddyVars   `json:"match,omitempty"`
	Handle   []caddyAnswer `json:"handle"`
	Terminal bool          `json:"terminal"`
}

type caddyVars struct {
	Vars map[string][]string `json:"vars"`
}

type caddyAnswer struct {
	Handler    string              `json:"handler"`
	StatusCode int                 `json:"status_code"`
	Headers    map[string][]string `json:"headers"`
	Body       string              `json:"body"`
}

// notice is a page that a route shows: if a file says so, or, without one, always.
type notice struct {
	mode string // the placeholder of the file.
	body string // of the answer, with Caddy's placeholders.
}

func (n *notice) handler() caddySubroute {
	page := caddyPage{Terminal: true, Handle: []caddyAnswer{{
		Handler: "static_response", StatusCode: http.StatusServiceUnavailable, Body: n.body,
		Headers: map[string][]string{
			"Cache-Control": {"no-store"}, "Content-Type": {"text/html; charset=utf-8"}, "Retry-After": {strconv.Itoa(int(retryAfter.Seconds()))},
		},
	}}}
	if n.mode != "" {
		page.Match = []caddyVars{{Vars: map[string][]string{n.mode: {maintained}}}}
	}
	return caddySubroute{Handler: "subroute", Routes: []caddyPage{page}}
}

// literal is a text that Caddy takes as it is.
func literal(text string) string { return strings.NewReplacer("{", `\{`, "}", `\}`).Replace(text) }

type caddyUpstream struct {
	Dial string `json:"dial"`
}

// parsed is one of Muster's routes.
type parsed struct {
	route  *agentv1.Route
	dials  []string // addresses, or the placeholders of slots.
	shows  bool     // a page, whatever the folder of slots says.
	edited bool     // by hand, so that what it matches is not known.
}

// inSlots says that the upstreams of the route are in the folder of slots.
func (p parsed) inSlots() bool { return len(p.dials) > 0 && strings.HasPrefix(p.dials[0], "{file.") }

// slotsDir is the folder that the upstreams are in; "" if they are in none.
func (p parsed) slotsDir() string {
	if !p.inSlots() {
		return ""
	}
	path := strings.TrimSuffix(strings.TrimPrefix(p.dials[0], "{file."), "}")
	return strings.TrimSuffix(path, (slots{}).slot("/"+p.route.GetName(), 0))
}

// parseRoute returns false for a route that is not Muster's.
func parseRoute(raw json.RawMessage) (parsed, bool) {
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
	var c readRoute
	if err := json.Unmarshal(raw, &c); err != nil { // edited by hand: it is written anew with the next change.
		out.edited = true
		return out, true
	}
	if len(c.Match) > 0 {
		out.route.Hosts = c.Match[0].Host
		if len(c.Match[0].Path) > 0 {
			out.route.PathPrefix = strings.TrimSuffix(c.Match[0].Path[0], "*")
		}
	}
	for _, h := range c.Handle {
		for _, u := range h.Upstreams {
			out.dials = append(out.dials, u.Dial)
		}
		out.shows = out.shows || len(h.Routes) > 0 && len(h.Routes[0].Match) == 0
	}
	return out, true
}

// render is the inverse of parseRoute. Without a notice, the route leads to its upstreams whatever is asked.
func render(route *agentv1.Route, dials []string, page *notice) (json.RawMessage, error) {
	handler := caddyHandler{Handler: "reverse_proxy", Upstreams: make([]caddyUpstream, 0, len(dials))}
	handler.LoadBalancing.Policy.Name = "round_robin"
	handler.Transport.Protocol, handler.Transport.KeepAlive.IdleTimeout = "http", idleTimeout
	for _, d := range dials {
		handler.Upstreams = append(handler.Upstreams, caddyUpstream{Dial: d})
	}
	out := caddyRoute{ID: mark + route.GetName(), Terminal: true}
	if page != nil {
		out.Handle = append(out.Handle, page.handler())
	}
	out.Handle = append(out.Handle, handler)
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

// routes returns the routes of one server.
func (s servers) routes(server string) []json.RawMessage {
	var body struct {
		Routes []json.RawMessage `json:"routes"`
	}
	if json.Unmarshal(s[server], &body) != nil {
		return nil
	}
	return body.Routes
}

// names returns the servers that are not Muster's own, sorted.
func (s servers) names() []string {
	names := slices.Sorted(maps.Keys(s))
	return slices.DeleteFunc(names, func(n string) bool { return n == confirmServer })
}

// find returns the server that has a route of Muster's, and the route; "" if none has it.
func (s servers) find(name string) (string, parsed) {
	for _, server := range s.names() {
		routes := s.routes(server)
		if i := indexOf(routes, name); i >= 0 {
			r, _ := parseRoute(routes[i])
			return server, r
		}
	}
	return "", parsed{}
}

// with returns the servers with one of Muster's routes as it shall be, and whether anything is different. All else stays as it is.
func (s servers) with(server string, route *agentv1.Route, dials []string, page *notice) (servers, bool, error) {
	wanted, err := render(route, dials, page)
	if err != nil {
		return nil, false, err
	}
	routes := s.routes(server)
	at := indexOf(routes, route.GetName())
	if at >= 0 && sameJSON(routes[at], wanted) {
		return s, false, nil
	}
	after, _ := parseRoute(wanted)
	if at >= 0 {
		before, _ := parseRoute(routes[at])
		if proto.Equal(before.route, after.route) {
			routes[at] = wanted
			out, err := s.replace(server, routes)
			return out, true, err
		}
		routes = slices.Delete(routes, at, at+1) // it matches other requests now, so its place may be another.
	}
	out, err := s.replace(server, slices.Insert(routes, place(routes, after.route), wanted))
	return out, true, err
}

// replace returns the servers with other routes in one of them.
func (s servers) replace(server string, routes []json.RawMessage) (servers, error) {
	var body map[string]json.RawMessage
	if err := json.Unmarshal(s[server], &body); err != nil {
		return nil, err
	}
	if body == nil {
		body = make(map[string]json.RawMessage)
	}
	var err error
	if body["routes"], err = json.Marshal(routes); err != nil {
		return nil, err
	}
	out := maps.Clone(s)
	out[server], err = json.Marshal(body)
	return out, err
}

// own returns Muster's routes, in order of their names.
func (s servers) own() []parsed {
	var out []parsed
	for _, server := range s.names() {
		for _, raw := range s.routes(server) {
			if r, ok := parseRoute(raw); ok {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b parsed) int { return cmp.Compare(a.route.GetName(), b.route.GetName()) })
	return out
}

// withConfirm returns the servers with Muster's own one, which answers with the probe file of the folder.
func (s servers) withConfirm(listen, probe string) (servers, error) {
	type handler struct {
		Handler string `json:"handler"`
		Body    string `json:"body"`
	}
	type confirmRoute struct {
		Handle []handler `json:"handle"`
	}
	var body struct {
		Listen         []string       `json:"listen"`
		Routes         []confirmRoute `json:"routes"`
		AutomaticHTTPS struct {
			Disable bool `json:"disable"`
		} `json:"automatic_https"`
	}
	body.Listen = []string{listen}
	body.AutomaticHTTPS.Disable = true
	body.Routes = []confirmRoute{{Handle: []handler{{Handler: "static_response", Body: "{file." + probe + "}"}}}}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	out := maps.Clone(s)
	out[confirmServer] = raw
	return out, nil
}

// confirmAt returns where Muster's own server listens, and the file that it answers with; false if there is none.
func (s servers) confirmAt() (listen, probe string, ok bool) {
	var body struct {
		Listen []string `json:"listen"`
		Routes []struct {
			Handle []struct {
				Body string `json:"body"`
			} `json:"handle"`
		} `json:"routes"`
	}
	if json.Unmarshal(s[confirmServer], &body) != nil || len(body.Listen) != 1 || len(body.Routes) != 1 || len(body.Routes[0].Handle) != 1 {
		return "", "", false
	}
	probe = strings.TrimSuffix(strings.TrimPrefix(body.Routes[0].Handle[0].Body, "{file."), "}")
	return body.Listen[0], probe, true
}

// place returns where a new route goes: before those that match more requests than it does, because the first match wins. One for
// particular hosts or paths goes before all that are not Muster's.
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

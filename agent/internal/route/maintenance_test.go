package route_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/route"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const bare = `{"web":{"listen":["LISTEN"],"automatic_https":{"disable":true}}}`

func on(page string, routes ...string) *agentv1.SetMaintenanceRequest {
	return &agentv1.SetMaintenanceRequest{Routes: routes, Enabled: true, Page: page}
}

func off(routes ...string) *agentv1.SetMaintenanceRequest {
	return &agentv1.SetMaintenanceRequest{Routes: routes}
}

// routed creates a route for a host of its name, to a backend that answers with the name.
func routed(t *testing.T, c *route.Caddy, name string) *agentv1.Route {
	t.Helper()
	r := &agentv1.Route{Name: name, Hosts: []string{name + ".test"}}
	if _, err := c.Update(t.Context(), r, []string{newBackend(t, name).address()}, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

func maintain(t *testing.T, c *route.Caddy, req *agentv1.SetMaintenanceRequest, want ...string) {
	t.Helper()
	got, err := c.SetMaintenance(t.Context(), req)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %q, %v; want %q to show a page", got, err, want)
	}
	list, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if name := r.GetRoute().GetName(); r.GetMaintenance() != slices.Contains(want, name) {
			t.Errorf("%s is listed with maintenance %t", name, r.GetMaintenance())
		}
	}
}

// tend lets a driver do what an agent does in the background.
func tend(t *testing.T, c *route.Caddy) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (p *proxy) shows(t *testing.T, name, want string) {
	t.Helper()
	status, body := p.get(t, name+".test", "/")
	if got := fmt.Sprint(status, " ", body); got != want {
		t.Errorf("%s: got %q, want %q", name, got, want)
	}
}

func TestMaintenance(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []route.Option
	}{{name: "in the folder"}, {name: "in the configuration", opts: []route.Option{route.WithDir("")}}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(t, bare)
			p.start(t)
			c := p.driver(t, tt.opts...)
			web := routed(t, c, "shop.web")
			routed(t, c, "shop.api")
			routed(t, c, "shopping.web")
			const page = "<style>a{color:red}</style>{env.HOME} {http.request.host} \\{ ž"
			maintain(t, c, on(page, "shop.web"), "shop.web")
			maintain(t, c, on(page, "shop.web"), "shop.web")
			p.shows(t, "shop.web", "503 "+page)
			p.shows(t, "shop.api", "200 shop.api")
			maintain(t, c, on("all", "shop.*"), "shop.api", "shop.web")
			p.shows(t, "shop.web", "503 all")
			p.shows(t, "shopping.web", "200 shopping.web")

			// Behind the page, upstreams change; a route that is new shows it too.
			fresh := newBackend(t, "fresh")
			if got, err := c.Update(t.Context(), web, []string{fresh.address()}, nil); err != nil || len(got) != 2 {
				t.Fatalf("got %q, %v", got, err)
			}
			list, err := c.List(t.Context())
			if err != nil || len(list) != 3 {
				t.Fatalf("got %v, %v", list, err)
			}
			for _, r := range list {
				for _, u := range r.GetUpstreams() {
					if u != fresh.address() && r.GetRoute().GetName() == "shop.web" {
						if _, err := c.Update(t.Context(), web, nil, []string{u}); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			p.shows(t, "shop.web", "503 all")
			routed(t, c, "shop.new")
			p.shows(t, "shop.new", "503 all")

			maintain(t, c, off("shop.new"), "shop.api", "shop.web")
			p.shows(t, "shop.new", "200 shop.new")
			maintain(t, c, off("shop.*"))
			maintain(t, c, off("shop.*", "none.such"))
			p.shows(t, "shop.web", "200 fresh")
			p.shows(t, "shop.api", "200 shop.api")
		})
	}
}

func TestMaintenanceAnswer(t *testing.T) {
	p := newProxy(t, bare)
	p.start(t)
	c := p.driver(t)
	routed(t, c, "shop.web")
	maintain(t, c, on("", "shop.web"), "shop.web")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.listen+"/any/path?q=1", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "shop.web.test"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 503 || !strings.Contains(string(body), "Down for maintenance") || !strings.Contains(string(body), "body{font:") {
		t.Errorf("got %d %q, %v; want Muster's own page", resp.StatusCode, body, err)
	}
	for key, want := range map[string]string{"Retry-After": "60", "Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8"} {
		if got := resp.Header.Get(key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

// TestMaintenanceUnderLoad: whatever is asked gets an answer while the page comes and goes, from an instance or the page, and nothing else.
func TestMaintenanceUnderLoad(t *testing.T) {
	p := newProxy(t, bare)
	p.start(t)
	c := p.driver(t)
	web := &agentv1.Route{Name: "shop.web"}
	if _, err := c.Update(t.Context(), web, []string{newBackend(t, "one").address(), newBackend(t, "two").address()}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var served, shown atomic.Int64
	var g errgroup.Group
	for i := range 8 {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
		g.Go(func() error {
			for ctx.Err() == nil {
				resp, err := client.Get("http://" + p.listen + "/")
				if err != nil {
					return err
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				switch got := fmt.Sprint(resp.StatusCode, " ", string(body)); {
				case err != nil:
					return err
				case got == "200 one" || got == "200 two":
					served.Add(1)
				case strings.HasPrefix(got, "503 page "):
					shown.Add(1)
				default:
					return fmt.Errorf("got %q, want an instance's answer or the page", got)
				}
			}
			return nil
		})
	}
	for i := range 20 {
		before := [2]int64{served.Load(), shown.Load()}
		req := off("shop.web")
		if i%2 == 0 {
			req = on(fmt.Sprint("page ", i), "shop.*")
		}
		if _, err := c.SetMaintenance(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		until(t, "clients see the change", func() bool {
			if i%2 == 0 {
				return shown.Load() > before[1]+20
			}
			return served.Load() > before[0]+20
		})
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Errorf("after %d answers and %d pages: %v", served.Load(), shown.Load(), err)
	}
	t.Logf("%d answers, %d pages, 20 changes, no request without an answer", served.Load(), shown.Load())
}

// TestMaintenanceEndsByItself: after its limit, whether or not an agent ran all the time, and after a crash in the middle of a change.
func TestMaintenanceEndsByItself(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []route.Option
	}{{name: "in the folder"}, {name: "in the configuration", opts: []route.Option{route.WithDir("")}}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(t, bare)
			p.start(t)
			state := filepath.Join(t.TempDir(), "maintenance.json")
			driver := func() *route.Caddy { return p.driver(t, append(tt.opts, route.WithState(state))...) }
			ended := func() bool {
				status, _ := p.get(t, "shop.web.test", "/")
				return status == 200
			}
			c := driver()
			stop := tend(t, c)
			web := routed(t, c, "shop.web")
			short := on("short", "shop.web")
			short.Limit = durationpb.New(700 * time.Millisecond)
			maintain(t, c, short, "shop.web")
			p.shows(t, "shop.web", "503 short")
			until(t, "the page ends by itself", ended)
			stop()

			// The agent is away when the time passes: the next one ends it.
			c = driver()
			maintain(t, c, short, "shop.web")
			pause := time.NewTimer(time.Second)
			<-pause.C
			p.shows(t, "shop.web", "503 short")
			c = driver()
			stop = tend(t, c)
			until(t, "the next agent ends the page", ended)
			until(t, "nothing is left to be done", func() bool {
				text, err := os.ReadFile(state)
				return err == nil && string(text) == "[]"
			})
			stop()

			// The agent is away and its time has not passed: the page stays, and the next agent shows it again where the proxy forgot it.
			c = driver()
			maintain(t, c, on("long", "shop.web"), "shop.web")
			p.stop()
			p.start(t)
			c = driver()
			stop = tend(t, c)
			until(t, "the proxy is up", func() bool {
				_, err := c.List(t.Context())
				return err == nil
			})
			if _, err := c.Update(t.Context(), web, []string{newBackend(t, "again").address()}, nil); err != nil {
				t.Fatal(err)
			}
			p.shows(t, "shop.web", "503 long")
			stop()

			// The agent died when the end was written down and not carried out.
			if err := os.WriteFile(state, []byte(`[{"pattern":"shop.web","on":false}]`), 0o600); err != nil {
				t.Fatal(err)
			}
			stop = tend(t, driver())
			until(t, "the next agent carries the end out", ended)
			stop()

			// And when the beginning was.
			later := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
			if err := os.WriteFile(state, []byte(`[{"pattern":"shop.*","on":true,"until":"`+later+`","page":"again"}]`), 0o600); err != nil {
				t.Fatal(err)
			}
			stop = tend(t, driver())
			until(t, "the next agent shows the page", func() bool { return !ended() })
			p.shows(t, "shop.web", "503 again")
			stop()
		})
	}
}

// TestMaintenanceOfARouteOfBefore: a route that an agent made which knew no pages, and one that somebody edited.
func TestMaintenanceOfARouteOfBefore(t *testing.T) {
	backend := newBackend(t, "old")
	old := `{"web":{"listen":["LISTEN"],"automatic_https":{"disable":true},"routes":[{"@id":"muster-shop.web","match":[{"host":["shop.web.test"]}],"terminal":true,
		"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"` + backend.address() + `"}]}]}]}}`
	p := newProxy(t, old)
	p.start(t)
	c := p.driver(t)
	maintain(t, c, on("page", "shop.web"), "shop.web")
	p.shows(t, "shop.web", "503 page")
	maintain(t, c, off("shop.web"))
	p.shows(t, "shop.web", "200 old")
}

func TestMaintenanceIsRefused(t *testing.T) {
	p := newProxy(t, bare)
	p.start(t)
	c := p.driver(t)
	routed(t, c, "shop.web")
	for _, name := range []string{"shop.none", "none.*"} {
		_, err := c.SetMaintenance(t.Context(), on("", "shop.web", name))
		wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ROUTE, name, `"shop.web"`)
	}
	p.shows(t, "shop.web", "200 shop.web")
	for name, req := range map[string]*agentv1.SetMaintenanceRequest{
		"no route":       on(""),
		"every stack":    on("", "*"),
		"pattern inside": on("", "shop.*.web"),
		"only a star":    on("", ".*"),
		"path":           on("", "../shop"),
		"long page":      on(strings.Repeat("x", 512<<10+1), "shop.web"),
		"negative limit": {Routes: []string{"shop.web"}, Enabled: true, Limit: durationpb.New(-time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.SetMaintenance(t.Context(), req)
			wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_INVALID, "maintenance: ")
		})
	}
	state := filepath.Join(t.TempDir(), "maintenance.json")
	if err := os.WriteFile(state, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := route.NewCaddy("http://"+p.admin, slog.New(slog.DiscardHandler), route.WithState(state))
	if err == nil || !strings.Contains(err.Error(), state) {
		t.Errorf("got %v for a damaged file, want its name", err)
	}
}

// TestMaintenanceThatFailsDoesNotComeLater: a proxy that refuses the page must not show it when somebody mended the proxy.
func TestMaintenanceThatFailsDoesNotComeLater(t *testing.T) {
	// Caddy itself would not load a route like this: another program is asked in its place.
	stand := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"web":{"listen":[":1"],"routes":[{"@id":"muster-shop.api","handle":"what is this"}]}}`)
	}))
	defer stand.Close()
	state := filepath.Join(t.TempDir(), "maintenance.json")
	c, err := route.NewCaddy(stand.URL, slog.New(slog.DiscardHandler), route.WithDir(""), route.WithState(state))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.SetMaintenance(t.Context(), on("", "shop.api"))
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ROUTE, "edited by hand")
	if text, err := os.ReadFile(state); err != nil || strings.Contains(string(text), `"on":true`) {
		t.Errorf("got state %q, %v; want no page to come", text, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("the background work ended: %v", err)
	}
}

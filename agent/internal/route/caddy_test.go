package route_test

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
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spheroseg/muster/agent/internal/route"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// proxy is a real Caddy.
type proxy struct {
	binary, dir   string
	admin, listen string
	cmd           *exec.Cmd
}

// newProxy returns a proxy that is configured and not started yet.
func newProxy(t *testing.T, servers string) *proxy {
	t.Helper()
	binary := filepath.Join("..", "..", "..", ".cache", "bin", "caddy")
	if _, err := os.Stat(binary); err != nil {
		if binary, err = exec.LookPath("caddy"); err != nil {
			t.Skip("no caddy in .cache/bin or PATH: nothing was tested against a real proxy")
		}
	}
	p := &proxy{binary: binary, dir: t.TempDir(), admin: freeAddress(t), listen: freeAddress(t)}
	servers = strings.ReplaceAll(servers, "LISTEN", p.listen)
	config := fmt.Sprintf(`{"admin":{"listen":%q},"logging":{"logs":{"default":{"level":"ERROR"}}},"apps":{"http":{"servers":%s}}}`, p.admin, servers)
	if servers == "" {
		config = fmt.Sprintf(`{"admin":{"listen":%q}}`, p.admin)
	}
	if err := os.WriteFile(p.path(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *proxy) path() string { return filepath.Join(p.dir, "caddy.json") }

// slots is the folder that the proxy reads upstreams from.
func (p *proxy) slots() string { return filepath.Join(p.dir, "slots") }

func (p *proxy) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.binary, "run", "--config", p.path())
	p.cmd.Env = append(os.Environ(), "HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir, "XDG_DATA_HOME="+p.dir)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (p *proxy) stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

func (p *proxy) driver(t *testing.T, opts ...route.Option) *route.Caddy {
	t.Helper()
	opts = append([]route.Option{route.WithDir(p.slots())}, opts...)
	c, err := route.NewCaddy("http://"+p.admin, slog.New(slog.DiscardHandler), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// get returns the status and the body of the proxy's answer.
func (p *proxy) get(t *testing.T, host, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.listen+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (p *proxy) config(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + "/config/" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// backend answers with its name, and counts the connections to it.
type backend struct {
	*httptest.Server
	slow atomic.Int32 // requests that take their time, now.

	mu   sync.Mutex
	open map[net.Conn]bool
}

func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	b := &backend{open: make(map[net.Conn]bool)}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Query().Get("for")); err == nil {
			b.slow.Add(1)
			defer b.slow.Add(-1)
			wait := time.NewTimer(d)
			defer wait.Stop()
			select {
			case <-wait.C:
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, name)
	}))
	b.Config.ConnState = func(c net.Conn, s http.ConnState) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.open[c] = true
		if s == http.StateClosed {
			delete(b.open, c)
		}
	}
	b.Start()
	t.Cleanup(b.Close)
	return b
}

func (b *backend) address() string { return b.Listener.Addr().String() }

func (b *backend) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.open)
}

const foreign = `{"web":{"listen":["LISTEN"],"automatic_https":{"disable":true},"routes":[
	{"match":[{"path":["/static/*"]}],"handle":[{"handler":"static_response","body":"static","status_code":200}]},
	{"handle":[{"handler":"static_response","body":"catch-all","status_code":404}]}]}}`

func TestUpdate(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []route.Option
	}{
		{name: "upstreams in the folder"},
		{name: "upstreams in the configuration", opts: []route.Option{route.WithDir("")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(t, foreign)
			p.start(t)
			testUpdate(t, p, p.driver(t, tt.opts...))
		})
	}
}

func testUpdate(t *testing.T, p *proxy, c *route.Caddy) {
	t.Helper()
	one, two := newBackend(t, "one"), newBackend(t, "two")
	web := &agentv1.Route{Name: "shop.web", Hosts: []string{"shop.test"}}
	for _, step := range []struct {
		name        string
		add, remove []string
		want        []string
	}{
		{name: "create", add: []string{one.address()}, want: []string{one.address()}},
		{name: "again", add: []string{one.address()}, want: []string{one.address()}},
		{name: "add", add: []string{two.address()}, want: []string{one.address(), two.address()}},
		{name: "swap", add: []string{one.address()}, remove: []string{two.address()}, want: []string{one.address()}},
		{name: "remove what is not there", remove: []string{two.address()}, want: []string{one.address()}},
	} {
		got, err := c.Update(t.Context(), web, step.add, step.remove)
		slices.Sort(step.want)
		if err != nil || !slices.Equal(got, step.want) {
			t.Fatalf("%s: got %q, %v; want %q", step.name, got, err, step.want)
		}
	}
	if status, body := p.get(t, "shop.test", "/static/x"); status != 200 || body != "one" {
		t.Errorf("got %d %q, want our route before the others", status, body)
	}
	if status, body := p.get(t, "other.test", "/static/x"); status != 200 || body != "static" {
		t.Errorf("got %d %q, want the foreign route untouched", status, body)
	}
	if status, body := p.get(t, "other.test", "/"); status != 404 || body != "catch-all" {
		t.Errorf("got %d %q, want the foreign catch-all untouched", status, body)
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].GetRoute().GetName() != "shop.web" || list[0].GetRoute().GetHosts()[0] != "shop.test" ||
		!slices.Equal(list[0].GetUpstreams(), []string{one.address()}) {
		t.Errorf("got %v, %v; want the one route", list, err)
	}

	got, err := c.Update(t.Context(), web, nil, []string{one.address()})
	if err != nil || len(got) != 0 {
		t.Errorf("remove all: got %q, %v", got, err)
	}
	if status, _ := p.get(t, "shop.test", "/"); status != 502 && status != 503 {
		t.Errorf("got %d without upstreams, want 502 or 503", status)
	}
	if list, err = c.List(t.Context()); err != nil || len(list) != 1 || len(list[0].GetUpstreams()) != 0 {
		t.Errorf("got %v, %v; want the route without upstreams", list, err)
	}
}

func TestUpdateSpreadsRequests(t *testing.T) {
	p := newProxy(t, `{"web":{"listen":["LISTEN"]}}`) // no routes at all yet.
	p.start(t)
	c := p.driver(t)
	all := &agentv1.Route{Name: "shop.all"}
	api := &agentv1.Route{Name: "shop.api", PathPrefix: "/api"}
	var addresses []string
	for i := range 3 {
		addresses = append(addresses, newBackend(t, fmt.Sprint(i)).address())
	}
	if _, err := c.Update(t.Context(), all, addresses, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Update(t.Context(), api, []string{newBackend(t, "api").address()}, nil); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for range 30 {
		_, body := p.get(t, "any", "/apiary")
		seen[body]++
	}
	if seen["0"] != 10 || seen["1"] != 10 || seen["2"] != 10 {
		t.Errorf("got %v, want ten requests for each", seen)
	}
	for _, path := range []string{"/api", "/api/v1"} {
		if _, body := p.get(t, "any", path); body != "api" {
			t.Errorf("%s: got %q, want the longer prefix first", path, body)
		}
	}
}

// TestRemovedUpstreamDrains shows that an upstream which was removed loses its connections when its last request is answered, so that a
// drain by counting connections ends.
func TestRemovedUpstreamDrains(t *testing.T) {
	p := newProxy(t, `{"web":{"listen":["LISTEN"]}}`)
	p.start(t)
	c := p.driver(t)
	old, fresh := newBackend(t, "old"), newBackend(t, "fresh")
	web := &agentv1.Route{Name: "shop.web"}
	if _, err := c.Update(t.Context(), web, []string{old.address()}, nil); err != nil {
		t.Fatal(err)
	}
	p.get(t, "any", "/") // leaves an idle connection to old.
	slow := make(chan string, 1)
	var g errgroup.Group
	g.Go(func() error {
		resp, err := http.Get("http://" + p.listen + "/?for=1s")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		slow <- fmt.Sprint(resp.StatusCode, " ", string(body))
		return err
	})
	until(t, "the slow request arrives", func() bool { return old.slow.Load() == 1 })
	if _, err := c.Update(t.Context(), web, []string{fresh.address()}, []string{old.address()}); err != nil {
		t.Fatal(err)
	}
	if _, body := p.get(t, "any", "/"); body != "fresh" {
		t.Errorf("got %q after the swap, want fresh", body)
	}
	if old.connections() == 0 {
		t.Error("the slow request lost its connection")
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := <-slow; got != "200 old" {
		t.Errorf("slow request: got %q, want 200 old", got)
	}
	until(t, "all connections to old end", func() bool { return old.connections() == 0 })
}

func TestSwapsUnderLoadDropNothing(t *testing.T) {
	p := newProxy(t, `{"web":{"listen":["LISTEN"]}}`)
	p.start(t)
	c := p.driver(t)
	web := &agentv1.Route{Name: "shop.web"}
	current := newBackend(t, "0")
	if _, err := c.Update(t.Context(), web, []string{current.address()}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var sent atomic.Int64
	g, _ := errgroup.WithContext(t.Context())
	for range 4 {
		g.Go(func() error {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for ctx.Err() == nil {
				resp, err := client.Get("http://" + p.listen + "/?for=2ms")
				if err != nil {
					return err
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					return fmt.Errorf("request %d: status %d", sent.Load(), resp.StatusCode)
				}
				sent.Add(1)
			}
			return nil
		})
	}
	for i := range 8 {
		fresh := newBackend(t, fmt.Sprint(i+1))
		if _, err := c.Update(t.Context(), web, []string{fresh.address()}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Update(t.Context(), web, nil, []string{current.address()}); err != nil {
			t.Fatal(err)
		}
		until(t, "the old backend is drained", func() bool { return current.connections() == 0 })
		current.CloseClientConnections()
		current.Listener.Close()
		current = fresh
	}
	stop()
	if err := g.Wait(); err != nil || sent.Load() < 100 {
		t.Errorf("got %v after %d requests, want none failed of at least 100", err, sent.Load())
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestUpdatesOfManyWritersAreAllKept(t *testing.T) {
	p := newProxy(t, foreign)
	p.start(t)
	var g errgroup.Group
	for i := range 6 {
		c := p.driver(t) // each with a lock of its own: only the Etag keeps them apart.
		g.Go(func() error {
			for n := range 3 {
				_, err := c.Update(t.Context(), &agentv1.Route{Name: fmt.Sprintf("s.r%d", i), Hosts: []string{fmt.Sprintf("h%d.test", i)}},
					[]string{fmt.Sprintf("10.0.0.%d:%d", i+1, 8000+n)}, nil)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	list, err := p.driver(t).List(t.Context())
	if err != nil || len(list) != 6 {
		t.Fatalf("got %d routes, %v; want 6", len(list), err)
	}
	for _, r := range list {
		if len(r.GetUpstreams()) != 3 {
			t.Errorf("route %q lost upstreams: %q", r.GetRoute().GetName(), r.GetUpstreams())
		}
	}
}

func TestProxyThatIsAwayIsAwaited(t *testing.T) {
	p := newProxy(t, foreign)
	c := p.driver(t)
	web := &agentv1.Route{Name: "shop.web"}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.Update(ctx, web, []string{"10.0.0.1:80"}, nil)
	if _, definite := rpcerr.Failure(err); definite || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the ended context and no definite failure", err)
	}
	var g errgroup.Group
	g.Go(func() error {
		_, err := c.Update(t.Context(), web, []string{"10.0.0.1:80"}, nil)
		return err
	})
	wait := time.NewTimer(300 * time.Millisecond)
	<-wait.C
	p.start(t)
	if err := g.Wait(); err != nil {
		t.Errorf("got %v after the proxy came up", err)
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Run("no http server", func(t *testing.T) {
		p := newProxy(t, "")
		p.start(t)
		_, err := p.driver(t).Update(t.Context(), &agentv1.Route{Name: "a.b"}, []string{"10.0.0.1:80"}, nil)
		wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ROUTE, "has no HTTP server")
	})
	t.Run("no such server", func(t *testing.T) {
		p := newProxy(t, foreign)
		p.start(t)
		_, err := p.driver(t, route.WithServer("edge")).Update(t.Context(), &agentv1.Route{Name: "a.b"}, []string{"10.0.0.1:80"}, nil)
		wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ROUTE, `"edge"`, `"web"`)
	})
	t.Run("caddy's own word", func(t *testing.T) {
		p := newProxy(t, `{"web":{"listen":["LISTEN"],"routes":[]}}`)
		p.start(t)
		c := p.driver(t)
		until(t, "caddy is up", func() bool {
			_, err := c.List(t.Context())
			return err == nil
		})
		before := p.config(t, "apps/http/servers/web")
		_, err := c.Update(t.Context(), &agentv1.Route{Name: "a.b", Hosts: []string{"twice.test", "twice.test"}}, []string{"10.0.0.1:80"}, nil)
		wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_ROUTE, "a.b", "repeated")
		if after := p.config(t, "apps/http/servers/web"); compact(t, after) != compact(t, before) {
			t.Errorf("got config %s, want it unchanged: %s", after, before)
		}
	})
	for _, tt := range []struct {
		name  string
		route *agentv1.Route
		add   []string
		text  string
	}{
		{"no name", &agentv1.Route{}, nil, "stack.service"},
		{"bad upstream", &agentv1.Route{Name: "a.b"}, []string{"10.0.0.1"}, "address:port"},
		{"bad path", &agentv1.Route{Name: "a.b", PathPrefix: "api"}, nil, "begin with /"},
		{"placeholder", &agentv1.Route{Name: "a.b"}, []string{"{http.request.header.x}:80"}, "address:port"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := route.NewCaddy("http://127.0.0.1:1", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Update(t.Context(), tt.route, tt.add, nil)
			wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_INVALID, tt.text)
		})
	}
}

func compact(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func wantFailure(t *testing.T, err error, reason agentv1.FailureReason, texts ...string) {
	t.Helper()
	f, ok := rpcerr.Failure(err)
	if !ok || f.GetReason() != reason || !f.GetPermanent() {
		t.Fatalf("got %v, want a permanent failure %s", err, reason)
	}
	for _, text := range texts {
		if !strings.Contains(f.GetMessage(), text) {
			t.Errorf("got message %q, want %q in it", f.GetMessage(), text)
		}
	}
}

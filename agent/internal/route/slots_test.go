package route_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spheroseg/muster/agent/internal/route"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestFolderThatTheProxyCannotRead shows that the driver does not lead a proxy to a folder that it does not read.
func TestFolderThatTheProxyCannotRead(t *testing.T) {
	p := newProxy(t, foreign)
	p.start(t)
	one, two := newBackend(t, "one"), newBackend(t, "two")
	web := &agentv1.Route{Name: "shop.web", Hosts: []string{"shop.test"}}
	c := p.driver(t)
	if _, err := c.Update(t.Context(), web, []string{one.address()}, nil); err != nil {
		t.Fatal(err)
	}
	if config := p.config(t, "apps/http/servers/web"); !strings.Contains(config, "{file.") {
		t.Errorf("got %s, want the upstreams in the folder", config)
	}
	// The probe becomes what the proxy cannot read, whoever it runs as.
	if err := os.Remove(filepath.Join(p.slots(), "probe")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(p.slots(), "probe", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := c.Update(t.Context(), web, []string{two.address()}, nil)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %q, %v; want both upstreams", got, err)
	}
	if config := p.config(t, "apps/http/servers/web"); strings.Contains(config, "{file.") {
		t.Errorf("got %s, want the upstreams in the configuration", config)
	}
	seen := map[string]bool{}
	for range 4 {
		_, body := p.get(t, "shop.test", "/")
		seen[body] = true
	}
	if !seen["one"] || !seen["two"] {
		t.Errorf("got %v, want both backends", seen)
	}
	// Mended, the upstreams go back to the folder.
	if err := os.RemoveAll(filepath.Join(p.slots(), "probe")); err != nil {
		t.Fatal(err)
	}
	if got, err = c.Update(t.Context(), web, nil, []string{one.address()}); err != nil || !slices.Equal(got, []string{two.address()}) {
		t.Fatalf("got %q, %v; want the second", got, err)
	}
	if config := p.config(t, "apps/http/servers/web"); !strings.Contains(config, "{file.") {
		t.Errorf("got %s, want the upstreams in the folder again", config)
	}
}

// TestProxyForgets shows that a proxy which was restarted with its first configuration gets all upstreams back with the next change.
func TestProxyForgets(t *testing.T) {
	p := newProxy(t, foreign)
	p.start(t)
	web := &agentv1.Route{Name: "shop.web"}
	if _, err := p.driver(t).Update(t.Context(), web, []string{"10.0.0.1:80", "10.0.0.2:80"}, nil); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p.start(t)
	got, err := p.driver(t).Update(t.Context(), web, []string{"10.0.0.3:80"}, []string{"10.0.0.2:80"})
	if err != nil || !slices.Equal(got, []string{"10.0.0.1:80", "10.0.0.3:80"}) {
		t.Errorf("got %q, %v; want what was there, with the change", got, err)
	}
}

// TestFolderMoves shows that an agent with another folder, or with none, takes over what the proxy serves by.
func TestFolderMoves(t *testing.T) {
	p := newProxy(t, foreign)
	p.start(t)
	web := &agentv1.Route{Name: "shop.web"}
	var want []string
	for i, dir := range []string{p.slots(), filepath.Join(p.dir, "other"), "", p.slots()} {
		added := fmt.Sprintf("10.0.0.%d:80", i+1)
		want = append(want, added)
		got, err := p.driver(t, route.WithDir(dir)).Update(t.Context(), web, []string{added}, nil)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("folder %q: got %q, %v; want %q", dir, got, err, want)
		}
	}
}

func TestManyUpstreams(t *testing.T) {
	p := newProxy(t, foreign)
	p.start(t)
	c := p.driver(t)
	var addresses []string
	for i := range 150 {
		addresses = append(addresses, fmt.Sprintf("10.0.1.%d:8080", i+1))
	}
	web := &agentv1.Route{Name: "shop.web"}
	for _, n := range []int{1, 61, 150, 3} {
		got, err := c.Update(t.Context(), web, addresses[:n], addresses[n:])
		if err != nil || len(got) != n {
			t.Errorf("got %d upstreams, %v; want %d", len(got), err, n)
		}
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || len(list[0].GetUpstreams()) != 3 {
		t.Errorf("got %v, %v; want three upstreams", list, err)
	}
}

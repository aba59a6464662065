//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

// TestServices shows that the harness itself loses no request and that pull by digest is real.
func TestServices(t *testing.T) {
	f := open(t)
	ctx := t.Context()
	app, err := f.BuildApp(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Machine(ctx, "h1")
	if err != nil {
		t.Fatal(err)
	}
	store, err := f.Machine(ctx, "store")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := f.StartEngine(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := f.StartRegistry(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	image, err := fleet.NewImage(fleet.ImageSpec{Tag: "muster-test-app:v1", Program: app, Env: []string{"VERSION=v1"}})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Push(ctx, registry.Address)
	if err != nil {
		t.Fatal(err)
	}
	ref := registry.Address + "/muster-test-app@" + digest
	if err := engine.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	proxy, err := f.StartCaddy(ctx, m, "caddy", m.Address+":8088", m.Address+":2019")
	if err != nil {
		t.Fatal(err)
	}
	var upstreams []any
	for i := range 3 {
		port := fmt.Sprint(20000 + i)
		id, err := engine.Create(ctx, fmt.Sprintf("app%d", i), map[string]any{
			"Image": ref, "Env": []string{"STARTUP_MS=0"}, "ExposedPorts": map[string]any{"8080/tcp": struct{}{}},
			"HostConfig": map[string]any{"PortBindings": map[string]any{"8080/tcp": []any{map[string]any{"HostIp": m.Address, "HostPort": port}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := engine.StartContainer(ctx, id); err != nil {
			t.Fatal(err)
		}
		upstreams = append(upstreams, map[string]any{"dial": m.Address + ":" + port})
	}
	err = proxy.Put(ctx, http.MethodPost, "/config/apps/http/servers/public/routes", map[string]any{"handle": []any{
		map[string]any{"handler": "reverse_proxy", "upstreams": upstreams},
	}})
	if err != nil {
		t.Fatal(err)
	}
	get := func() (bool, error) {
		resp, err := http.Get(proxy.URL)
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	}
	if err := fleet.Poll(ctx, 20*time.Millisecond, "the app behind the proxy", get); err != nil {
		t.Fatal(err)
	}
	for _, keepAlive := range []bool{false, true} {
		l, err := load.New(load.Options{URL: proxy.URL, KeepAlive: keepAlive})
		if err != nil {
			t.Fatal(err)
		}
		loaded, cancel := context.WithTimeout(ctx, 3*time.Second)
		l.Run(loaded)
		cancel()
		r := l.Report()
		t.Logf("keep-alive %t: %s", keepAlive, r)
		if r.Failed > 0 || r.Total < 500 {
			t.Errorf("keep-alive %t: %d failed of %d: %v", keepAlive, r.Failed, r.Total, r.Errors)
		}
	}
}

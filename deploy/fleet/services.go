package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const serviceLimit = 20 * time.Second // for the proxy or the registry to answer

// Proxy is a Caddy.
type Proxy struct {
	// Admin is the URL of its admin API, for those on the same machine.
	Admin string
	// URL of its public side.
	URL string
	// Process of the proxy.
	Process *Process
}

// StartCaddy starts a proxy on the machine (nil: beside the fleet) with one server that answers 503 until somebody gives it routes. Its admin API
// listens on adminAddress and its public side on address, both host:port.
func (f *Fleet) StartCaddy(ctx context.Context, m *Machine, name, address, adminAddress string) (*Proxy, error) {
	program, err := f.Caddy(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := f.path(name)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"admin":   map[string]any{"listen": adminAddress},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"level": "ERROR"}}},
		"apps": map[string]any{"http": map[string]any{"servers": map[string]any{"public": map[string]any{
			"listen":          []string{address},
			"automatic_https": map[string]any{"disable": true},
			"routes":          []any{},
		}}}},
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "caddy.json")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return nil, err
	}
	p, err := f.Start(Command{
		Name: name, Path: program, Machine: m, Args: []string{"run", "--config", path},
		Env: []string{"XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir, "HOME=" + dir},
	})
	if err != nil {
		return nil, err
	}
	proxy := &Proxy{Admin: "http://" + adminAddress, URL: "http://" + address + "/", Process: p}
	return proxy, f.answers(ctx, p, proxy.URL)
}

// Put replaces a part of a proxy's configuration whose admin API the fleet itself can reach.
func (p *Proxy) Put(ctx context.Context, method, path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, p.Admin+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		var problem struct{ Error string }
		err := json.NewDecoder(resp.Body).Decode(&problem)
		return errors.Join(fmt.Errorf("caddy %s %s: %s: %s", method, path, resp.Status, problem.Error), err)
	}
	return nil
}

// Registry holds images.
type Registry struct {
	// Address host:port, which also is the first part of its images' names.
	Address string
	// Process of the registry.
	Process *Process
}

// StartRegistry starts a registry on the machine. Engines of the fleet take its plain HTTP.
func (f *Fleet) StartRegistry(ctx context.Context, m *Machine) (*Registry, error) {
	program, err := f.RegistryProgram(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := f.path(m.Name + "-registry")
	if err != nil {
		return nil, err
	}
	address := m.Address + ":5000"
	config, err := json.Marshal(map[string]any{
		"version": "0.1",
		"log":     map[string]any{"level": "warn", "accesslog": map[string]any{"disabled": true}},
		"storage": map[string]any{"filesystem": map[string]any{"rootdirectory": filepath.Join(dir, "images")}, "delete": map[string]any{"enabled": true}},
		"http":    map[string]any{"addr": address},
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "config.yml") // JSON is YAML
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return nil, err
	}
	p, err := f.Start(Command{
		Name: m.Name + "-registry", Path: program, Machine: m, Args: []string{"serve", path},
		Env: []string{"OTEL_TRACES_EXPORTER=none"},
	})
	if err != nil {
		return nil, err
	}
	return &Registry{Address: address, Process: p}, f.answers(ctx, p, "http://"+address+"/v2/")
}

// answers waits until something comes back from the URL, whatever it is.
func (f *Fleet) answers(ctx context.Context, p *Process, url string) error {
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	client := http.Client{Timeout: time.Second}
	return Poll(ctx, 25*time.Millisecond, url, func() (bool, error) {
		if err := p.failed(); err != nil {
			return false, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, nil
		}
		return true, resp.Body.Close()
	})
}

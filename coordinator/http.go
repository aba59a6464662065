package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/version"
)

// serveHTTP serves JSON over the same services, behind the same gate, and metrics and health, which need no certificate.
func (c *coordinator) serveHTTP(ctx context.Context) error {
	listener, err := net.Listen("tcp", c.settings.HTTPListen)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", c.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics(), promhttp.HandlerOpts{}))
	mux.Handle("/", c.servers.Handler(c.gate))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return server.Serve(tls.NewListener(listener, mtls.Server(c.credentials, "h2", "http/1.1")))
	})
	group.Go(func() error {
		<-ctx.Done()
		// Watchers would keep a graceful shutdown waiting for ever.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			return server.Close()
		}
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// ready says whether this coordinator can serve: it knows a leader and has the leader's word.
func (c *coordinator) ready(w http.ResponseWriter, _ *http.Request) {
	if id, _ := c.cluster.Leader(); id == "" {
		http.Error(w, "no leader", http.StatusServiceUnavailable)
		return
	}
	if err := c.cluster.Stale(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// metrics of this coordinator.
func (c *coordinator) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "muster_build_info", Help: "Version of the coordinator.", ConstLabels: prometheus.Labels{"version": version.Version},
	})
	info.Set(1)
	registry.MustRegister(info)
	gauge("muster_raft_leader", "1 on the coordinator that leads.", func() float64 {
		if id, _ := c.cluster.Leader(); id == c.settings.Name {
			return 1
		}
		return 0
	})
	gauge("muster_raft_applied_index", "Index of the last command that the state holds.", func() float64 { return float64(c.state.Index()) })
	gauge("muster_raft_term", "Term that this coordinator knows.", func() float64 { return float64(c.cluster.Term()) })
	gauge("muster_hosts", "Hosts of the fleet.", func() float64 { return float64(len(c.state.View().Hosts())) })
	gauge("muster_runs_active", "Runs that have not ended.", func() float64 { return float64(len(c.state.View().ActiveRuns())) })
	gauge("muster_locks_held", "Locks that runs hold.", func() float64 { return float64(len(c.state.View().Locks())) })
	return registry
}

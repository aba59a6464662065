// Command app is the HTTP service that the demo, the end-to-end tests and the benchmark roll out. It owns one tiny service whose start-up, health and
// death are set by its environment, and leaves routing, gates and draining to what rolls it out: on SIGTERM it exits at once and drops whatever is in
// flight, so that a lost request shows.
//
// Environment: LISTEN (:8080), VERSION, STARTUP_MS (1000: 503 until then), BROKEN=1 (never healthy), WORK_MS (20: time per request),
// CRASH_AFTER_MS (exit with 1 after so long), DATA (/data: the folder of its schema), FAIL_MIGRATION (the schema to which no migration leads). With -check
// it asks a running one for its health, for a HEALTHCHECK in an image without a shell. With -migrate SCHEMA it is a migration: it notes in DATA/migrations
// that it ran, and writes DATA/schema, which a running one answers at /schema, and its
// notes at /migrations. How often it got SIGHUP it answers at /reloads.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	check := flag.Bool("check", false, "ask the running service for its health and exit with 0 or 1")
	migrate := flag.String("migrate", "", "migrate to this `schema` and exit with 0 or 1")
	flag.Parse()
	listen := os.Getenv("LISTEN")
	if listen == "" {
		listen = ":8080"
	}
	run := serve
	if *check {
		run = ask
	}
	if *migrate != "" {
		run = func(string) error { return migrateTo(*migrate) }
	}
	if err := run(listen); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

// ask is the HEALTHCHECK of the image.
func ask(listen string) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("LISTEN %q: %w", listen, err)
	}
	client := http.Client{Timeout: 2 * time.Second}
	resp, err := client.Get("http://127.0.0.1:" + port + "/healthz")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health is %s", resp.Status)
	}
	return nil
}

// data is the folder of the schema.
func data() string {
	if folder := os.Getenv("DATA"); folder != "" {
		return folder
	}
	return "/data"
}

// migrateTo is a migration. It cannot be repeated without a trace: each one is noted before it does anything.
func migrateTo(schema string) error {
	note, err := os.OpenFile(filepath.Join(data(), "migrations"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(note, schema)
	if err := errors.Join(err, note.Close()); err != nil {
		return err
	}
	if schema == os.Getenv("FAIL_MIGRATION") {
		return fmt.Errorf("migration to %s fails, as asked", schema)
	}
	fmt.Fprintln(os.Stderr, "app: migrated to", schema)
	return os.WriteFile(filepath.Join(data(), "schema"), []byte(schema), 0o600)
}

// settings is what the environment asks for.
type settings struct {
	version string
	startup time.Duration
	work    time.Duration
	crash   time.Duration
	broken  bool
	reloads atomic.Int64 // by SIGHUP
}

func fromEnvironment() (*settings, error) {
	s := &settings{version: os.Getenv("VERSION"), broken: os.Getenv("BROKEN") == "1"}
	var errs [3]error
	s.startup, errs[0] = milliseconds("STARTUP_MS", 1000)
	s.work, errs[1] = milliseconds("WORK_MS", 20)
	s.crash, errs[2] = milliseconds("CRASH_AFTER_MS", 0)
	return s, errors.Join(errs[:]...)
}

func milliseconds(name string, fallback int) (time.Duration, error) {
	text := os.Getenv(name)
	if text == "" {
		return time.Duration(fallback) * time.Millisecond, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%q: give whole milliseconds", name, text)
	}
	return time.Duration(n) * time.Millisecond, nil
}

// serve answers until a signal or a planned crash ends the process.
func serve(listen string) error {
	s, err := fromEnvironment()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// Process 1 of a container ignores signals that it does not handle.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	reload := make(chan os.Signal, 16)
	signal.Notify(reload, syscall.SIGHUP)
	served := make(chan error, 1)
	server := &http.Server{Handler: handler(s, time.Now()), ReadHeaderTimeout: 5 * time.Second}
	go func() { served <- server.Serve(listener) }()
	var crash <-chan time.Time
	if s.crash > 0 {
		crash = time.NewTimer(s.crash).C
	}
	for {
		select {
		case <-reload:
			s.reloads.Add(1)
		case <-stop:
			return nil
		case <-crash:
			return fmt.Errorf("crash after %s, as asked", s.crash)
		case err := <-served:
			return err
		}
	}
}

// handler answers /healthz at once, and anything else with the version after the time that the work takes.
func handler(s *settings, started time.Time) http.Handler {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	ready := func(w http.ResponseWriter) bool {
		w.Header().Set("X-Version", s.version)
		if time.Since(started) < s.startup {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return false
		}
		return true
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.broken {
			http.Error(w, "broken, as asked", http.StatusServiceUnavailable)
			return
		}
		if ready(w) {
			_, _ = fmt.Fprintln(w, "ok")
		}
	})
	mux.HandleFunc("/reloads", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, s.reloads.Load()) })
	mux.HandleFunc("/schema", file("schema", "none"))
	mux.HandleFunc("/migrations", file("migrations", ""))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !ready(w) {
			return
		}
		work := time.NewTimer(s.work)
		defer work.Stop()
		select {
		case <-work.C:
			_, _ = fmt.Fprintf(w, "%s on %s\n", s.version, host)
		case <-r.Context().Done():
		}
	})
	return mux
}

// file answers with a file of the data folder as it is now, or with what stands for one that is not there.
func file(name, none string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		content, err := os.ReadFile(filepath.Join(data(), name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			_, _ = io.WriteString(w, none)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			_, _ = w.Write(content)
		}
	}
}

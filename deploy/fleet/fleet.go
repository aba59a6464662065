// Package fleet starts and stops real things: machines made of namespaces, Docker engines, a registry, a proxy, coordinators and agents. It owns their
// life from start to the last trace of them, also after a crash, and leaves to the demo, the end-to-end tests and the benchmark what they do with them.
//
// A fleet has one run folder, which names every process it started. Machines end by themselves when the fleet's own process dies; what is left over is
// recognised and removed by the next fleet of any name.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const closeLimit = 60 * time.Second // for all closers together

// Options of a fleet. Name and Logger are required.
type Options struct {
	// Name of the fleet: demo, e2e, bench.
	Name string
	// Keep leaves everything running when the fleet is closed, and when its process ends.
	Keep bool
	// Root of the repository, from which programs are built and in whose .cache/bin tools are kept; default: found from the working directory.
	Root string
	// Logger of what the fleet does.
	Logger *slog.Logger
}

// Fleet owns everything that it started.
type Fleet struct {
	opts   Options
	dir    string
	number int
	state  *state

	mu      sync.Mutex
	closers []closer
	network *Network
}

type closer struct {
	what string
	do   func(context.Context) error
}

// Open claims a run folder, after it removed what crashed fleets left behind.
func Open(ctx context.Context, opts Options) (*Fleet, error) {
	if opts.Name == "" || opts.Logger == nil {
		return nil, errors.New("fleet: Name and Logger are required")
	}
	if opts.Root == "" {
		root, err := findRoot()
		if err != nil {
			return nil, err
		}
		opts.Root = root
	}
	if err := Sweep(ctx, opts.Logger, false); err != nil {
		return nil, err
	}
	dir, number, err := claim(opts.Name)
	if err != nil {
		return nil, err
	}
	st, err := newState(dir, opts.Name)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Fleet{opts: opts, dir: dir, number: number, state: st}, nil
}

// claim takes the first free number: it is part of the folder's name, of the subnet and of the network interface.
func claim(name string) (string, int, error) {
	for n := 77; n < 250; n++ {
		if interfaceExists(n) {
			continue
		}
		if taken, err := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("%s*-%d", folderPrefix, n))); err != nil || len(taken) > 0 {
			continue
		}
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s%s-%d", folderPrefix, name, n))
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		return dir, n, err
	}
	return "", 0, fmt.Errorf("fleet: no free number: remove %s* in %s", folderPrefix, os.TempDir())
}

// findRoot walks up to the folder with go.mod.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("fleet: no go.mod at or above %s: run this inside the repository", dir)
		}
	}
}

// Dir is the run folder: logs, data and sockets of everything in the fleet.
func (f *Fleet) Dir() string { return f.dir }

// path makes a folder inside the run folder.
func (f *Fleet) path(parts ...string) (string, error) {
	dir := filepath.Join(append([]string{f.dir}, parts...)...)
	return dir, os.MkdirAll(dir, 0o700)
}

// OnClose adds a step to Close. Steps run in reverse order.
func (f *Fleet) OnClose(what string, do func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closers = append(f.closers, closer{what, do})
}

// Close stops everything in reverse order and removes the run folder. It works after the caller's context ended. A fleet with Keep only marks itself
// as kept. Close may be called twice.
func (f *Fleet) Close() error {
	if f.opts.Keep {
		return f.state.keep()
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	f.mu.Lock()
	closers := f.closers
	f.closers = nil
	f.mu.Unlock()
	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		if err := closers[i].do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", closers[i].what, err))
		}
	}
	errs = append(errs, f.state.clean(ctx, f.opts.Logger))
	return errors.Join(errs...)
}

// Drop forgets Keep: Close then stops everything.
func (f *Fleet) Drop() { f.opts.Keep = false }

// Logs copies the last lines of every log file in the run folder to w, for a failure report.
func (f *Fleet) Logs(w io.Writer, lines int) {
	files, err := filepath.Glob(filepath.Join(f.dir, "*", "*.log"))
	if err != nil {
		return
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || len(data) == 0 {
			continue
		}
		_, _ = fmt.Fprintf(w, "--- %s\n%s\n", file, tail(data, lines))
	}
}

func tail(data []byte, lines int) []byte {
	for i := len(data) - 1; i > 0; i-- {
		if data[i] == '\n' && i < len(data)-1 {
			if lines--; lines == 0 {
				return data[i+1:]
			}
		}
	}
	return data
}

// Poll calls ok every interval until it returns true or an error, or ctx ends.
func Poll(ctx context.Context, interval time.Duration, what string, ok func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		done, err := ok()
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

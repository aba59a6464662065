// Command bench measures Muster against its peers on this machine and prints one RESULT line for each figure, as README.md explains. It owns what is
// measured, how often and against what, and leaves starting and stopping things to package fleet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

const limit = 90 * time.Minute

func main() {
	runs := flag.Int("runs", 5, "paired runs of each benchmark")
	only := flag.String("only", "", "the one benchmark to run: "+strings.Join(names(), ", ")+"; empty for all")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Stderr, *only, *runs)
	cancel()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// benchmark is what measures some figures together. Results go to out, and what is measured at the moment to notes.
type benchmark struct {
	name    string
	measure func(ctx context.Context, out, notes io.Writer, runs int) error
}

func benchmarks() []benchmark {
	return []benchmark{
		{"rolling-update", measureRollingUpdate},
		{"raft-commit", measureRaftCommit},
		{"agents-10k", measureAgents},
	}
}

func names() []string {
	var all []string
	for _, b := range benchmarks() {
		all = append(all, b.name)
	}
	return all
}

// run measures everything, or one benchmark.
func run(ctx context.Context, out, notes io.Writer, only string, runs int) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if only != "" && !slices.Contains(names(), only) {
		return fmt.Errorf("-only %s: there is no such benchmark, there are %s", only, strings.Join(names(), ", "))
	}
	if runs < 1 {
		return fmt.Errorf("-runs %d: at least one is needed", runs)
	}
	for _, b := range benchmarks() {
		if only != "" && only != b.name {
			continue
		}
		if err := b.measure(ctx, out, notes, runs); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return nil
}

// withFleet opens a fleet for a part of a benchmark, and closes it.
func withFleet(ctx context.Context, notes io.Writer, do func(f *fleet.Fleet) error) (err error) {
	logger := slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f, err := fleet.Open(ctx, fleet.Options{Name: "bench", Logger: logger})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			f.Logs(notes, 15)
		}
		err = errors.Join(err, f.Close())
	}()
	return do(f)
}

// measureRollingUpdate measures updates with each parallelism.
func measureRollingUpdate(ctx context.Context, out, notes io.Writer, runs int) error {
	if err := fleet.CanStartEngines(); err != nil {
		return err
	}
	return withFleet(ctx, notes, func(f *fleet.Fleet) error {
		u, err := newRollingUpdate(ctx, f, notes)
		if err != nil {
			return err
		}
		for _, parallelism := range []int{1, 3} {
			if err := u.measure(ctx, out, parallelism, runs); err != nil {
				return fmt.Errorf("parallelism %d: %w", parallelism, err)
			}
		}
		return nil
	})
}

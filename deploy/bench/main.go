// Command bench measures Muster against its peers on this machine and prints one RESULT line for each figure, as README.md explains. It owns what is
// measured, how often and against what, and leaves starting and stopping things to package fleet.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

const limit = 30 * time.Minute

func main() {
	runs := flag.Int("runs", 5, "paired runs of each benchmark")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Stderr, *runs)
	cancel()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures everything. Results go to out, and what is measured at the moment to notes.
func run(ctx context.Context, out, notes io.Writer, runs int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := fleet.CanStartEngines(); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(notes, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f, err := fleet.Open(ctx, fleet.Options{Name: "bench", Logger: logger})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			f.Logs(notes, 15)
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	u, err := newRollingUpdate(ctx, f, notes)
	if err != nil {
		return err
	}
	for _, parallelism := range []int{1, 3} {
		if err := u.measure(ctx, out, parallelism, runs); err != nil {
			return fmt.Errorf("rolling-update-p%d: %w", parallelism, err)
		}
	}
	return nil
}

// Command demo shows the main job on this machine: a fleet of three coordinators and three hosts, and rolling updates under load of which no request is
// lost, one that fails and one whose leader is killed among them. It owns the story and its checks, speaks to the fleet only as an operator does, through
// musterctl, and leaves starting and stopping things to package fleet.
//
// Environment: KEEP=1 leaves everything running; DOCKER_HOST names an engine to use. With -stop it removes what an earlier KEEP=1 left.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

const limit = 8 * time.Minute // for the whole demo, the building of tools included

func main() {
	stop := flag.Bool("stop", false, "remove what an earlier KEEP=1 left running, and do nothing else")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *stop)
	cancel()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo removes what an earlier demo left, and unless it is to stop there plays a new one.
func demo(ctx context.Context, stop bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v := newView(os.Stdout)
	defer v.close()
	logger := slog.New(slog.NewTextHandler(v, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := fleet.Sweep(ctx, logger, true); err != nil || stop {
		return err
	}
	return run(ctx, v, logger, os.Getenv("KEEP") == "1")
}

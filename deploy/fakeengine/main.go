// Command fakeengine is a Docker engine without containers: it answers the few calls that the agent makes, and keeps what they change in a file. It is for
// tests that repeat thousands of operations under kills, where a real engine is too slow. It owns that file, which is also the test's witness: one line for
// each effect, in order, written before the call is answered. What a real engine does with real containers it leaves to the tests on real engines.
//
// Its containers are lines of that file, so they outlive it, as those of an engine with live-restore do. One is healthy -ready after its start, unhealthy if
// its image's tag begins with "bad", and never either if it begins with "slow". What it does while it runs is in alive.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	socket := flag.String("socket", "", "path of the socket to listen on")
	effects := flag.String("effects", "", "path of the file that keeps the effects")
	images := flag.String("images", "", "images that the engine has, as repository:tag, separated by commas")
	ready := flag.Duration("ready", 10*time.Millisecond, "time from a container's start to its verdict")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *socket, *effects, strings.Split(*images, ","), *ready); err != nil {
		fmt.Fprintln(os.Stderr, "fakeengine:", err)
		os.Exit(1) //nolint:gocritic // the context of the signals needs no end
	}
}

func run(ctx context.Context, socket, effects string, images []string, ready time.Duration) error {
	e, err := open(effects, images, ready)
	if err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: e.handler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	return errors.Join(server.Close(), e.file.Close())
}

// Command commitload measures how many commands a second three members of a cluster commit, without the public API in front: Propose is called in
// the process of the leader. The log is sealed and synced, and the state is the real one. It owns nothing but the measurement, which the benchmark
// compares with the same work through the API.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "empty folder for the members' data")
	flag.IntVar(&o.clients, "clients", 1, "callers at a time")
	flag.IntVar(&o.size, "size", 256, "bytes of a value")
	flag.DurationVar(&o.warm, "warm", time.Second, "time before the measurement")
	flag.DurationVar(&o.span, "for", 3*time.Second, "time of the measurement")
	flag.Parse()
	if err := run(context.Background(), o, os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "commitload:", err)
		os.Exit(1)
	}
}

// options of one measurement.
type options struct {
	dir           string
	clients, size int
	warm, span    time.Duration
}

// run starts the members, measures, and prints the commits a second.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	m, err := start(ctx, o.dir)
	if err != nil {
		return err
	}
	defer func() {
		if serr := m.stop(); err == nil {
			err = serr
		}
	}()
	if err := m.voters(ctx); err != nil {
		return err
	}
	if _, err := m.measure(ctx, o, o.warm); err != nil {
		return err
	}
	rate, err := m.measure(ctx, o, o.span)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%.1f\n", rate)
	return err
}

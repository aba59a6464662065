// Package ctl owns the wiring of musterctl: the process's environment, clock and signals. Commands are in internal/command.
package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spheroseg/muster/ctl/internal/command"
	"github.com/spheroseg/muster/ctl/internal/output"
)

// Run runs musterctl with args, which do not hold the program's name, and returns its exit code. It catches SIGINT and
// SIGTERM while it runs: they end a command, but never a run that it has started.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	dir, err := os.Getwd()
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "Error: there is no working directory:", err)
		return int(output.CodeFailed)
	}
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	return command.Run(ctx, command.Options{
		Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr,
		Env: os.LookupEnv, Now: time.Now, WorkingDirectory: dir, Interrupts: interrupts,
	})
}

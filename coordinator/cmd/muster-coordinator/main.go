// Command muster-coordinator is one member of the cluster that plans and drives procedures.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spheroseg/muster/coordinator"
)

// staysDown tells who starts this program that starting it again is of no use (EX_CONFIG of sysexits.h).
const staysDown = 78

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error: "+err.Error())
		if coordinator.StaysDown(err) {
			os.Exit(staysDown) //nolint:gocritic // The process ends; nothing is left to stop.
		}
		os.Exit(1)
	}
}

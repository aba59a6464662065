// Command musterctl operates a fleet through any of its coordinators.
package main

import (
	"context"
	"os"

	"github.com/spheroseg/muster/ctl"
)

func main() {
	os.Exit(ctl.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Package stack owns the way from compose files to a release: it reads the files that a client sends, maps them to services, compares
// releases, places instances on hosts, links names across hosts and makes the final container specs.
//
// It is pure: the same input gives the same output, byte by byte. It asks no host, no registry and no secret store. Pinning images and
// secrets to versions, ordering the steps of a change and doing them are left to the planners and the engine.
package stack

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Model is a stack as its files describe it, before images and secrets are pinned and instances are placed.
type Model struct {
	// Name of the stack.
	Name string
	// Services in order of their names. Images are as the files name them; secrets have no version yet.
	Services []*coordinatorv1.Service
	// Networks that the services join, in order of their names.
	Networks []*agentv1.NetworkAttachment
	// Warnings say what Muster does otherwise than compose would, in order of service and key.
	Warnings []string
	// ExternalSecrets are the names that the secret store must have, sorted.
	ExternalSecrets []string
	// Digest is the SHA-256 of the sources, in hexadecimal.
	Digest string
}

// ContainerName returns the name of the container of an instance, unique over the fleet.
func ContainerName(stack, service string, slot uint32, release uint64) string {
	return stack + "." + service + "." + strconv.FormatUint(uint64(slot), 10) + ".r" + strconv.FormatUint(release, 10)
}

// refuse returns the error of a stack that cannot be put in place as things stand.
func refuse(reason coordinatorv1.ErrorReason, format string, args ...any) error {
	return rpcerr.New(codes.FailedPrecondition, reason, format, args...)
}

// byName returns the services by their names.
func byName(services []*coordinatorv1.Service) map[string]*coordinatorv1.Service {
	m := make(map[string]*coordinatorv1.Service, len(services))
	for _, s := range services {
		m[s.GetName()] = s
	}
	return m
}

// sortedAssignments returns the assignments in order of service and slot; the argument stays as it is.
func sortedAssignments(assignments []*coordinatorv1.Assignment) []*coordinatorv1.Assignment {
	sorted := slices.Clone(assignments)
	slices.SortStableFunc(sorted, func(a, b *coordinatorv1.Assignment) int {
		return cmp.Or(cmp.Compare(a.GetService(), b.GetService()), cmp.Compare(a.GetSlot(), b.GetSlot()), cmp.Compare(a.GetContainer(), b.GetContainer()))
	})
	return sorted
}

// formatBytes writes a size as a person would: 512 MiB, 1.5 GiB.
func formatBytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, unit := float64(n), 0
	for math.Abs(v) >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	return trimZeros(v) + " " + units[unit]
}

// formatCPUs writes billionths of a CPU as CPUs.
func formatCPUs(nano int64) string { return trimZeros(float64(nano)/1e9) + " CPUs" }

// trimZeros writes a number with at most two decimals and none that says nothing.
func trimZeros(v float64) string {
	s := fmt.Sprintf("%.2f", v)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

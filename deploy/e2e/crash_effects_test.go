//go:build e2e || crash

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/deploy/fleet"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// record is everything that one engine did, in order.
type record []fleet.Effect

// record of every engine.
func (r *rig) record() ([]record, error) {
	var all []record
	for _, e := range r.engines {
		effects, err := e.Effects()
		if err != nil {
			return nil, err
		}
		all = append(all, effects)
	}
	return all, nil
}

// box is a container of an engine.
type box struct {
	stack, service, status string
}

// step changes the containers as the effect did.
func step(boxes map[string]*box, e fleet.Effect) {
	switch e.Action {
	case "create":
		var b struct{ Labels map[string]string }
		_ = json.Unmarshal(e.Body, &b) // the engine has decoded it too
		boxes[e.Name] = &box{stack: b.Labels["muster.stack"], service: b.Labels["muster.service"], status: "created"}
	case "start":
		boxes[e.Name].status = "running"
	case "die":
		boxes[e.Name].status = "exited"
	case "destroy":
		delete(boxes, e.Name)
	}
}

// containers that are there after all effects.
func (r record) containers() map[string]*box {
	boxes := map[string]*box{}
	for _, e := range r {
		step(boxes, e)
	}
	return boxes
}

// repeated tells what was done twice from a place in the record on. No scenario needs any effect on one container twice.
func (r record) repeated(from int) []string {
	done := map[[2]string]int{}
	var found []string
	for _, e := range r[from:] {
		key := [2]string{e.Action, e.Name}
		if done[key]++; done[key] == 2 && e.Action != "policy" {
			found = append(found, fmt.Sprintf("%s of %s happened twice", e.Action, e.Name))
		}
	}
	return found
}

// broken tells when a service had fewer ready instances than the fewest of before and after, but for those that may be away. Containers become ready a fixed time after their start.
func broken(before, after []record, away int) []string {
	boxes := map[string]*box{}
	began := map[string]int64{}
	for _, r := range before {
		for _, e := range r {
			step(boxes, e)
		}
	}
	ready := func(at int64) map[string]int {
		n := map[string]int{}
		for name, b := range boxes {
			if b.status == "running" && at-began[name] >= int64(rigReady) {
				n[b.stack+"/"+b.service]++
			}
		}
		return n
	}
	floor := ready(1 << 62)
	var effects []fleet.Effect
	end := map[string]*box{}
	for i, r := range after {
		effects = append(effects, r[len(before[i]):]...)
		for name, b := range r.containers() {
			end[name] = b
		}
	}
	running := map[string]int{}
	for _, b := range end {
		if b.status == "running" {
			running[b.stack+"/"+b.service]++
		}
	}
	for service, n := range floor {
		floor[service] = min(n, running[service]) - away
	}
	slices.SortFunc(effects, func(a, b fleet.Effect) int { return a.Time().Compare(b.Time()) })
	var found []string
	for _, e := range effects {
		step(boxes, e)
		if e.Action == "start" {
			began[e.Name] = e.At
		}
		now := ready(e.At)
		for service, n := range floor {
			if now[service] < n {
				found = append(found, fmt.Sprintf("%s of %s left %d of %s ready, floor %d", e.Action, e.Name, now[service], service, n))
			}
		}
	}
	return found
}

// version that all services of the release run; empty before the first one.
func (r *rig) version(ctx context.Context) (string, error) {
	got, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: nine})
	if status.Code(err) == codes.NotFound || err == nil && got.GetRelease() == nil {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var versions []string
	for _, s := range got.GetRelease().GetServices() {
		_, v, _ := strings.Cut(s.GetImage(), ":")
		versions = append(versions, v)
	}
	if versions = slices.Compact(versions); len(versions) != 1 {
		return "", fmt.Errorf("the release mixes versions: %v", versions)
	}
	return versions[0], nil
}

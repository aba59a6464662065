package runbook

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// TidyProcedure is what plans of Tidy are made by.
const TidyProcedure = "tidy"

// tidyTime is the time in which a tidying must have ended.
const tidyTime = 5 * time.Minute

// Tidy proposes the removal of a stack's abandoned containers from the hosts that are up again; nil if there is nothing to remove. A host that
// drives a proxy and was away for the release's change learns first where the stack's requests go now.
func Tidy(view *state.View, name string) (*Proposal, error) {
	known, release := view.Stack(name), view.CurrentRelease(name)
	plan := &coordinatorv1.Plan{
		Procedure: TidyProcedure, Stack: name, Locks: []string{"stack/" + name}, MaxDuration: durationpb.New(tidyTime),
	}
	current := map[string]bool{}
	for _, a := range release.GetAssignments() {
		current[a.GetContainer()] = true
	}
	var hosts []string
	for _, a := range known.GetAbandoned() {
		if view.Host(a.GetHost()).GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			continue
		}
		plan.Reclaims = append(plan.Reclaims, a)
		if !slices.Contains(hosts, a.GetHost()) {
			hosts = append(hosts, a.GetHost())
		}
	}
	if len(plan.GetReclaims()) == 0 {
		return nil, nil
	}
	slices.Sort(hosts)
	routed := map[string][]string{}
	for _, host := range hosts {
		if len(view.Host(host).GetInventory().GetRouteDrivers()) > 0 {
			routed[host] = repairRoutes(plan, view, release, host)
		}
	}
	removed := 0
	for _, a := range plan.GetReclaims() {
		if current[a.GetContainer()] { // It was taken back into the release: it is no orphan.
			continue
		}
		removed++
		plan.Steps = append(plan.Steps, &coordinatorv1.Step{
			Id: "reclaim/" + a.GetContainer(), Title: fmt.Sprintf("remove %s on %s, which was replaced while the host did not answer", a.GetContainer(), a.GetHost()),
			Host: a.GetHost(), After: routed[a.GetHost()], Timeout: seconds(time.Minute), MaxAttempts: 5, RetryDelay: seconds(2 * time.Second),
			Action: action("ContainerService/RemoveContainer", &agentv1.RemoveContainerRequest{Name: a.GetContainer()}),
		})
	}
	plan.Title = fmt.Sprintf("remove %d containers of stack %s that were replaced while their hosts did not answer", removed, name)
	if err := Seal(plan); err != nil {
		return nil, err
	}
	return &Proposal{Plan: plan, StackRevision: known.GetRevision()}, nil
}

// repairRoutes leads the proxy of a host that was away to the instances of the release, and no more to those that former releases had.
func repairRoutes(plan *coordinatorv1.Plan, view *state.View, release *coordinatorv1.Release, host string) []string {
	add, drop, services := map[string][]string{}, map[string][]string{}, map[string]*coordinatorv1.Service{}
	for _, service := range release.GetServices() {
		if service.GetRoute() != nil {
			services[service.GetName()] = service
		}
	}
	for _, a := range release.GetAssignments() {
		if to := upstream(services[a.GetService()], a); to != "" {
			add[a.GetService()] = append(add[a.GetService()], to)
		}
	}
	for _, former := range view.Releases(release.GetStack()) {
		if former.GetState() == coordinatorv1.ReleaseState_RELEASE_STATE_ROLLING {
			continue
		}
		for _, a := range former.GetAssignments() {
			to := upstream(services[a.GetService()], a)
			if to != "" && !slices.Contains(add[a.GetService()], to) && !slices.Contains(drop[a.GetService()], to) {
				drop[a.GetService()] = append(drop[a.GetService()], to)
			}
		}
	}
	var steps []string
	for _, service := range release.GetServices() {
		name := service.GetName()
		if services[name] == nil || len(add[name]) == 0 {
			continue
		}
		id := "route/" + name + "@" + host
		steps = append(steps, id)
		plan.Steps = append(plan.Steps, &coordinatorv1.Step{
			Id: id, Title: fmt.Sprintf("lead the proxy of %s to the instances of %s that run now", host, name), Host: host,
			Timeout: seconds(defaultWait), MaxAttempts: 5, RetryDelay: seconds(2 * time.Second),
			Action: action("RouteService/UpdateRoute", &agentv1.UpdateRouteRequest{
				Route: &agentv1.Route{
					Name: release.GetStack() + "." + name, Hosts: service.GetRoute().GetHosts(), PathPrefix: service.GetRoute().GetPathPrefix(),
				},
				Add: add[name], Remove: drop[name],
			}),
		})
	}
	return steps
}

package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// defaultReplaceAfter is how long a service that asks for replacing leaves a host that does not answer, if it does not say.
const defaultReplaceAfter = 5 * time.Minute

// lostInstances are those of one stack on a host that does not answer.
type lostInstances struct {
	host  *coordinatorv1.Host
	stack string
	names []string
	// replaced is when they are replaced by themselves; zero if somebody must ask for it.
	replaced time.Time
}

// tellLost says which instances are on hosts that do not answer, and what to type. Only those of a stack if one is named. It is what the
// asked coordinator knows; where that does not answer, the command has said so already.
func (a *app) tellLost(ctx context.Context, stack string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, l := range a.findLost(ctx, stack) {
		name := l.host.GetName()
		a.note("host %s does not answer for %s: %d %s of stack %s there (%s)", name, output.Age(l.host.GetStateSince(), a.Now()),
			len(l.names), plural(len(l.names), "instance", "instances"), l.stack, strings.Join(l.names, ", "))
		if !l.replaced.IsZero() {
			a.note("  they are started elsewhere by themselves at %s", l.replaced.UTC().Format(time.RFC3339))
		}
		a.note("  musterctl host drain %s --lost    gives the host up and starts them elsewhere", name)
	}
}

func (a *app) findLost(ctx context.Context, only string) []lostInstances {
	answer, err := coordinatorv1.NewHostServiceClient(a.client).ListHosts(ctx, &coordinatorv1.ListHostsRequest{Stale: true})
	if err != nil {
		return nil
	}
	var down []*coordinatorv1.Host
	for _, h := range answer.GetHosts() {
		if h.GetState() == coordinatorv1.HostState_HOST_STATE_DOWN {
			down = append(down, h)
		}
	}
	if len(down) == 0 {
		return nil
	}
	stacks := coordinatorv1.NewStackServiceClient(a.client)
	known, err := stacks.ListStacks(ctx, &coordinatorv1.ListStacksRequest{Stale: true})
	if err != nil {
		return nil
	}
	var found []lostInstances
	for _, s := range known.GetStacks() {
		if only != "" && s.GetName() != only {
			continue
		}
		shown, err := stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: s.GetName(), Stale: true})
		if err != nil {
			continue
		}
		for _, h := range down {
			if l := lostOn(h, shown.GetRelease()); len(l.names) > 0 {
				found = append(found, l)
			}
		}
	}
	return found
}

// lostOn returns the instances of a release on a host.
func lostOn(host *coordinatorv1.Host, release *coordinatorv1.Release) lostInstances {
	l := lostInstances{host: host, stack: release.GetStack()}
	services := map[string]*coordinatorv1.Service{}
	for _, s := range release.GetServices() {
		services[s.GetName()] = s
	}
	after, ask := time.Duration(0), false
	for _, as := range release.GetAssignments() {
		if as.GetHost() != host.GetName() {
			continue
		}
		l.names = append(l.names, fmt.Sprintf("%s.%d", as.GetService(), as.GetSlot()))
		s := services[as.GetService()]
		if s.GetPlacement().GetGlobal() {
			continue
		}
		ask = ask || s.GetOnHostLost() != "replace"
		after = max(after, replaceAfter(s))
	}
	if !ask && after > 0 {
		l.replaced = host.GetStateSince().AsTime().Add(after)
	}
	return l
}

func replaceAfter(s *coordinatorv1.Service) time.Duration {
	if wait := s.GetReplaceAfter().AsDuration(); wait > 0 {
		return wait
	}
	return defaultReplaceAfter
}

// onHostLost says what happens to instances whose host does not answer; empty for what happens anyway.
func onHostLost(s *coordinatorv1.Service) string {
	if s.GetOnHostLost() != "replace" {
		return s.GetOnHostLost()
	}
	return "replace after " + output.Span(replaceAfter(s))
}

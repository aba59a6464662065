package runbook

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// What the hosts are asked before a plan is made. Nothing here changes anything.

const (
	askLimit = 16
	askTime  = 20 * time.Second
)

// each asks several hosts at once and returns the first error.
func (p *Planner) each(ctx context.Context, hosts []string, ask func(ctx context.Context, host string, client agentv1.ContainerServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askLimit)
	for _, host := range hosts {
		group.Go(func() error {
			client, err := p.client(ctx, host)
			if err != nil {
				return err
			}
			return ask(ctx, host, client)
		})
	}
	return group.Wait()
}

func (p *Planner) client(ctx context.Context, host string) (agentv1.ContainerServiceClient, error) {
	conn, err := p.Conn(ctx, host)
	if err != nil {
		return nil, hostDown(host, err)
	}
	return agentv1.NewContainerServiceClient(conn), nil
}

func hostDown(host string, err error) error {
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
		"host %s does not answer (%s): start its agent, or leave it out with a placement constraint", host, rpcerr.Message(err))
}

// answer turns a host's error into one for the operator. A host that does not answer is down; what it says itself is passed on.
func answer(host string, err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return hostDown(host, err)
	}
	return fmt.Errorf("ask host %s: %w", host, err)
}

// pinImages turns every image into its digest, by the answer of one host that is up.
func (p *Planner) pinImages(ctx context.Context, c *candidate) error {
	var mu sync.Mutex
	found := map[string]*agentv1.ResolveImageResponse{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askLimit)
	for _, image := range c.imageNames() {
		group.Go(func() error {
			response, err := p.resolve(ctx, c.upHosts(), image)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			found[image] = response
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, service := range c.release.GetServices() {
		image := found[service.GetTemplate().GetImage()]
		service.Template.Image = image.GetPinned()
		if service.GetGate() == nil && image.GetHealthcheck() && !disabled(service.GetTemplate().GetHealthcheck()) {
			service.Gate = stack.HealthGate(&agentv1.Healthcheck{
				Interval: image.GetHealthcheckInterval(), StartPeriod: image.GetHealthcheckStartPeriod(), Retries: image.GetHealthcheckRetries(),
			})
			window := 2*image.GetHealthcheckInterval().AsDuration()*time.Duration(max(1, image.GetHealthcheckRetries())) + image.GetHealthcheckStartPeriod().AsDuration()
			if service.GetUpdate().GetMonitor().AsDuration() < window {
				service.Update.Monitor = durationpb.New(window)
			}
		}
	}
	return nil
}

func disabled(check *agentv1.Healthcheck) bool {
	return len(check.GetTest()) > 0 && check.GetTest()[0] == "NONE"
}

func (c *candidate) imageNames() []string {
	var names []string
	for _, service := range c.release.GetServices() {
		names = append(names, service.GetTemplate().GetImage())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// resolve asks hosts in turn: an image that no registry has may be on one of them only.
func (p *Planner) resolve(ctx context.Context, hosts []string, image string) (*agentv1.ResolveImageResponse, error) {
	var last error
	for _, host := range hosts {
		client, err := p.client(ctx, host)
		if err != nil {
			last = err
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askTime)
		response, err := client.ResolveImage(ctx, &agentv1.ResolveImageRequest{Image: image})
		cancel()
		if err == nil {
			return response, nil
		}
		last = answer(host, err)
		if failure, ok := rpcerr.Failure(err); ok || status.Code(err) == codes.NotFound {
			message := failure.GetMessage()
			if message == "" {
				message = rpcerr.Message(err)
			}
			last = rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, "%s", message)
		}
	}
	return nil, last
}

// findLost looks for containers of the current release that do not run any more, and for those that no release accounts for. A host that is
// down keeps the benefit of the doubt.
func (p *Planner) findLost(ctx context.Context, c *candidate) error {
	assigned, others := map[string]map[string]bool{}, map[string]bool{}
	for _, host := range c.upHosts() {
		assigned[host] = map[string]bool{}
	}
	for _, a := range c.before.GetAssignments() {
		if c.only != "" && a.GetService() != c.only {
			others[a.GetContainer()] = true // They are as they are.
		} else if names := assigned[a.GetHost()]; names != nil {
			names[a.GetContainer()] = true
		}
	}
	var mu sync.Mutex
	err := p.each(ctx, c.upHosts(), func(ctx context.Context, host string, client agentv1.ContainerServiceClient) error {
		response, err := client.ListContainers(ctx, &agentv1.ListContainersRequest{Stack: c.release.GetStack()})
		if err != nil {
			return answer(host, err)
		}
		mu.Lock()
		defer mu.Unlock()
		running := map[string]bool{}
		for _, container := range response.GetContainers() {
			name, there := container.GetName(), runs(container.GetState())
			if container.GetStopped() && (assigned[host][name] || others[name]) {
				there, c.stopped[name] = true, true
			}
			running[name] = there
			if (!assigned[host][name] || !there) && !others[name] {
				c.leftovers = append(c.leftovers, Leftover{Host: host, Container: name})
			}
		}
		for name := range assigned[host] {
			if !running[name] {
				c.lost[name] = true
			}
		}
		return nil
	})
	sortLeftovers(c.leftovers)
	return err
}

func sortLeftovers(all []Leftover) {
	slices.SortFunc(all, func(x, y Leftover) int { return cmp.Compare(x.Container, y.Container) })
}

// runs says that a container in this state of the engine's serves, or will by itself.
func runs(engineState string) bool {
	switch engineState {
	case "running", "restarting", "paused":
		return true
	}
	return false
}

// checkLocalImages makes sure that an image that no registry has is on every host that will run it.
func (p *Planner) checkLocalImages(ctx context.Context, c *candidate) error {
	wanted := map[string][]string{}
	for name, spec := range c.specs() {
		if strings.HasPrefix(spec.GetImage(), "sha256:") {
			host := c.hostOf(name)
			wanted[host] = append(wanted[host], spec.GetImage())
		}
	}
	hosts := make([]string, 0, len(wanted))
	for host := range wanted {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	return p.each(ctx, hosts, func(ctx context.Context, host string, client agentv1.ContainerServiceClient) error {
		slices.Sort(wanted[host])
		for _, image := range slices.Compact(wanted[host]) {
			response, err := client.ResolveImage(ctx, &agentv1.ResolveImageRequest{Image: image})
			if err == nil && response.GetPresent() {
				continue
			}
			if err != nil && (status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded) {
				return hostDown(host, err)
			}
			return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
				"image %s of service %s is on no registry, and host %s does not have it: push it to a registry that the hosts reach, or load it there with `docker load`",
				shortImage(image), strings.Join(c.servicesOf(image), ", "), host)
		}
		return nil
	})
}

func (c *candidate) hostOf(container string) string {
	for _, a := range c.release.GetAssignments() {
		if a.GetContainer() == container {
			return a.GetHost()
		}
	}
	return ""
}

func (c *candidate) servicesOf(image string) []string {
	var names []string
	for _, service := range c.release.GetServices() {
		if service.GetTemplate().GetImage() == image {
			names = append(names, service.GetName())
		}
	}
	return names
}

// checkHosts asks every host whether the containers that it is to get can run there: ports, paths, networks, volumes, its own policy.
func (p *Planner) checkHosts(ctx context.Context, c *candidate, specs map[string]*agentv1.ContainerSpec) error {
	requests := c.checks(specs)
	hosts := make([]string, 0, len(requests))
	for host := range requests {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	var mu sync.Mutex
	problems := map[string][]*agentv1.ContainerProblem{}
	err := p.each(ctx, hosts, func(ctx context.Context, host string, client agentv1.ContainerServiceClient) error {
		response, err := client.CheckContainers(ctx, requests[host])
		if err != nil {
			return answer(host, err)
		}
		mu.Lock()
		defer mu.Unlock()
		problems[host] = response.GetProblems()
		return nil
	})
	if err != nil {
		return err
	}
	var lines []string
	reason := coordinatorv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	for _, host := range hosts {
		for _, problem := range problems[host] {
			lines = append(lines, fmt.Sprintf("%s on host %s: %s", problem.GetContainer(), host, problem.GetMessage()))
			if reason == coordinatorv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
				reason = problemReason(problem.GetReason())
			}
		}
	}
	if len(lines) > 0 {
		return rpcerr.New(codes.FailedPrecondition, reason, "%s", strings.Join(lines, "\n  "))
	}
	return nil
}

// checks makes the request for each host. Containers that a stop-first update ends before count as gone.
func (c *candidate) checks(specs map[string]*agentv1.ContainerSpec) map[string]*agentv1.CheckContainersRequest {
	former := map[string]*coordinatorv1.Assignment{}
	for _, a := range c.before.GetAssignments() {
		former[state.GroupOf(a)] = a
	}
	requests := map[string]*agentv1.CheckContainersRequest{}
	for _, a := range c.release.GetAssignments() {
		spec := specs[a.GetContainer()]
		if spec == nil {
			continue
		}
		request := requests[a.GetHost()]
		if request == nil {
			request = &agentv1.CheckContainersRequest{}
			requests[a.GetHost()] = request
		}
		request.Specs = append(request.Specs, spec)
		if from := former[state.GroupOf(a)]; from.GetHost() == a.GetHost() && c.stopsFirst(a.GetService()) {
			request.Replaced = append(request.Replaced, from.GetContainer())
		}
	}
	return requests
}

func (c *candidate) stopsFirst(service string) bool {
	for _, s := range c.release.GetServices() {
		if s.GetName() == service {
			return s.GetUpdate().GetOrder() == "stop-first"
		}
	}
	return false
}

func problemReason(reason agentv1.FailureReason) coordinatorv1.ErrorReason {
	switch reason {
	case agentv1.FailureReason_FAILURE_REASON_PORT_TAKEN:
		return coordinatorv1.ErrorReason_ERROR_REASON_PORT_TAKEN
	case agentv1.FailureReason_FAILURE_REASON_REFUSED:
		return coordinatorv1.ErrorReason_ERROR_REASON_POLICY
	case agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND:
		return coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND
	}
	return coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT
}

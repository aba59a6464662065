package definition

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/stack"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// job is a container that stays behind when its command has ended, until the run is over.
type job struct{ host, container, step string }

// job plans a step that runs a command once, on the host of the service's first instance.
func (c *compiler) job(path, id string, s *site, each *value, at point) (point, error) {
	def, err := c.resolved(path, s, each)
	if err != nil {
		return at, err
	}
	request, err := c.jobRequest(def.GetWith(), s, id)
	if err != nil {
		return at, err
	}
	name := request.GetSpec().GetName()
	step := &coordinatorv1.Step{
		Id: id, Title: orElse(def.GetTitle(), "run "+strings.Join(request.GetSpec().GetCommand(), " ")+" as "+s.service.GetName()), Host: s.host,
		Action: makeAction(lookUp("job.run"), request),
	}
	if err := c.finish(step, def, request, s, each); err != nil {
		return at, err
	}
	step.Undo = append(step.Undo, removeJob(name))
	at = c.add(&coordinatorv1.Step{
		Id: id + "/clear", Title: "make room for " + name, Host: s.host, Action: clearJob(name), Timeout: durationpb.New(time.Minute),
	}, at)
	c.jobs = append(c.jobs, job{host: s.host, container: name, step: id})
	return c.add(step, at), nil
}

func removeJob(name string) *coordinatorv1.Undo {
	return &coordinatorv1.Undo{
		Title: "remove " + name, Timeout: durationpb.New(time.Minute),
		Action: makeAction(lookUp("container.remove"), &agentv1.RemoveContainerRequest{Name: name, OwnRunOnly: true}),
	}
}

// clearJob removes what an earlier run of the procedure may have left: the lock of the stack says that nobody else runs it.
func clearJob(name string) *coordinatorv1.Action {
	return makeAction(lookUp("container.remove"), &agentv1.RemoveContainerRequest{Name: name})
}

// cleanUp removes the containers of jobs once the run has succeeded.
func (c *compiler) cleanUp() error {
	for _, j := range c.jobs {
		c.add(&coordinatorv1.Step{
			Id: j.step + "/remove", Title: "remove " + j.container, Host: j.host, CleanUp: true,
			Action:  makeAction(lookUp("container.remove"), &agentv1.RemoveContainerRequest{Name: j.container, OwnRunOnly: true}),
			Timeout: durationpb.New(time.Minute), MaxAttempts: 3, RetryDelay: durationpb.New(2 * time.Second),
		}, point{})
	}
	return nil
}

// jobRequest makes the container of a job: like one of the service's, with its environment, networks, mounts and secrets, but nobody finds it under
// the service's name, nothing is published, and nothing starts it again.
func (c *compiler) jobRequest(with *anypb.Any, s *site, id string) (*agentv1.RunJobRequest, error) {
	args := &coordinatorv1.JobArguments{}
	if err := with.UnmarshalTo(args); err != nil {
		return nil, invalid("arguments of job.run: %s", err)
	}
	links, err := c.links(s)
	if err != nil {
		return nil, err
	}
	spec := stack.Spec(s.stack, s.service, s.assignment, links)
	spec.Name = strings.Join([]string{s.stack, s.service.GetName(), "job-" + strings.ReplaceAll(id, "/", "-")}, ".")
	spec.Ports, spec.Hostname, spec.Command = nil, "", args.GetArgv()
	spec.Restart = &agentv1.RestartPolicy{Name: "no"}
	spec.Healthcheck = &agentv1.Healthcheck{Test: []string{"NONE"}}
	for _, network := range spec.GetNetworks() {
		network.Aliases = nil
	}
	for label := range spec.GetLabels() {
		if strings.HasPrefix(label, "com.docker.compose.") || label == stack.LabelSlot {
			delete(spec.Labels, label)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(args.GetEnv())) {
		spec.Env = slices.DeleteFunc(spec.GetEnv(), func(pair string) bool { return strings.HasPrefix(pair, name+"=") })
		spec.Env = append(spec.Env, name+"="+args.GetEnv()[name])
	}
	spec.User, spec.WorkingDir = orElse(args.GetUser(), spec.GetUser()), orElse(args.GetWorkingDir(), spec.GetWorkingDir())
	if err := c.mount(spec, args.GetSecrets()); err != nil {
		return nil, err
	}
	if args.GetImage() != "" {
		if spec.Image, err = c.pin(s.host, args.GetImage()); err != nil {
			return nil, err
		}
	}
	return &agentv1.RunJobRequest{Spec: spec}, nil
}

// mount gives a job secrets of the store, in their newest versions.
func (c *compiler) mount(spec *agentv1.ContainerSpec, secrets map[string]string) error {
	for _, file := range slices.Sorted(maps.Keys(secrets)) {
		if file == "" || strings.Contains(file, "/") {
			return invalid("secret %q: give the name of a file below /run/secrets", file)
		}
		stored := c.view.Secret(secrets[file], 0)
		if stored == nil {
			return rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND,
				"the secret store has no %s: store it with `musterctl secret set %s`", secrets[file], secrets[file])
		}
		target := "/run/secrets/" + file
		spec.Secrets = slices.DeleteFunc(spec.GetSecrets(), func(m *agentv1.SecretMount) bool { return m.GetTarget() == target })
		spec.Secrets = append(spec.Secrets, &agentv1.SecretMount{Secret: &agentv1.SecretValue{Name: stored.GetName(), Version: stored.GetVersion()}, Target: target})
	}
	return nil
}

// links are the names of other services, as they lead from the host of a site.
func (c *compiler) links(s *site) (*stack.Links, error) {
	release := c.view.CurrentRelease(s.stack)
	proxies := map[string]string{}
	for _, host := range c.view.Hosts() {
		if len(host.GetInventory().GetRouteDrivers()) == 0 || host.GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			continue
		}
		for _, service := range release.GetServices() {
			if service.GetRoute() != nil && proxies[service.GetName()] == "" {
				proxies[service.GetName()] = host.GetInventory().GetAddress()
			}
		}
	}
	return stack.Link(stack.LinkRequest{Services: release.GetServices(), Assignments: release.GetAssignments(), Proxies: proxies})
}

// pin returns an image by its digest.
func (c *compiler) pin(host, image string) (string, error) {
	response, err := c.resolve(host, image)
	if err != nil {
		return "", err
	}
	if !response.GetPresent() {
		c.warnings = append(c.warnings, "image "+image+" is not on host "+host+" yet: it is pulled when the job begins")
	}
	return response.GetPinned(), nil
}

// resolve asks a host for the digest of an image.
func resolve(ctx context.Context, planner *runbook.Planner, host, image string) (*agentv1.ResolveImageResponse, error) {
	conn, err := planner.Conn(ctx, host)
	if err != nil {
		return nil, hostDown(host, err)
	}
	response, err := agentv1.NewContainerServiceClient(conn).ResolveImage(ctx, &agentv1.ResolveImageRequest{Image: image})
	if err != nil {
		return nil, rpcerr.New(codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, "image %s on host %s: %s", image, host, rpcerr.Message(err))
	}
	return response, nil
}

func hostDown(host string, err error) error {
	return rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN, "host %s does not answer (%s)", host, rpcerr.Message(err))
}

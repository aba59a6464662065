package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) serviceCommand() *cobra.Command {
	shown := []*cobra.Command{a.serviceListCommand(), a.servicePsCommand(), a.serviceShowCommand(), a.serviceScaleCommand()}
	return a.noun("service", "Show and change services and their instances", append(shown, a.serviceVerbCommands()...)...)
}

func (a *app) services(ctx context.Context, stack string) (*coordinatorv1.ListServicesResponse, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	answer, err := coordinatorv1.NewStackServiceClient(a.client).ListServices(ctx, &coordinatorv1.ListServicesRequest{Stack: stack})
	return answer, a.fail("services cannot be listed", err, nil)
}

func (a *app) serviceListCommand() *cobra.Command {
	var stack string
	cmd := &cobra.Command{
		Use: "list", Short: "List services with how many of their instances are ready", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := a.services(cmd.Context(), stack)
			if err != nil {
				return err
			}
			d := output.Data{Kind: "Service", Empty: "there is no service", Extra: unreachable(answer.GetUnreachable()), Columns: []output.Column{
				{Title: "STACK"}, {Title: "SERVICE"}, {Title: "READY"}, {Title: "RUNNING"}, {Title: "RELEASE"}, {Title: "IMAGE"},
				{Title: "GATE", Wide: true}, {Title: "ORDER", Wide: true}, {Title: "PINNED", Wide: true},
			}}
			for _, s := range answer.GetServices() {
				svc := s.GetService()
				d.Items = append(d.Items, s)
				d.Names = append(d.Names, "service/"+s.GetStack()+"/"+svc.GetName())
				d.Rows = append(d.Rows, []string{s.GetStack(), svc.GetName(), readyOf(s), fmt.Sprint(s.GetRunning()),
					number(s.GetRelease()), svc.GetImage(), gateWord(svc.GetGate()), svc.GetUpdate().GetOrder(), svc.GetPinned()})
			}
			if err := a.printer().Print(d); err != nil {
				return err
			}
			return a.partly(answer.GetUnreachable())
		},
	}
	cmd.Flags().StringVar(&stack, "stack", "", "only services of this stack")
	_ = cmd.RegisterFlagCompletionFunc("stack", a.completeStacks)
	return cmd
}

// readyOf says how many instances of a service are ready, and how many are not because somebody stopped them.
func readyOf(s *coordinatorv1.ServiceStatus) string {
	return fmt.Sprintf("%d/%s", s.GetReady(), replicas(s.GetService())) + stoppedOf(s, " (%d stopped)")
}

func stoppedOf(s *coordinatorv1.ServiceStatus, format string) string {
	if s.GetStopped() == 0 {
		return ""
	}
	return fmt.Sprintf(format, s.GetStopped())
}

func unreachable(hosts []*coordinatorv1.HostError) map[string][]proto.Message {
	list := make([]proto.Message, 0, len(hosts))
	for _, h := range hosts {
		list = append(list, h)
	}
	return map[string][]proto.Message{"unreachable": list}
}

// partly says which hosts did not answer, after what the others said.
func (a *app) partly(hosts []*coordinatorv1.HostError) error {
	if len(hosts) == 0 {
		return nil
	}
	for _, h := range hosts {
		a.note("host %s did not answer: %s", h.GetHost(), h.GetMessage())
	}
	return output.Exit{Code: output.CodePartly}
}

func (a *app) servicePsCommand() *cobra.Command {
	var request coordinatorv1.ListInstancesRequest
	cmd := &cobra.Command{
		Use: "ps [[STACK/]SERVICE]", Short: "List instances as the hosts' engines see them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return output.Usage(cmd.CommandPath()+" SERVICE", "%q is one argument too many", args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				stack, service := splitService(args[0])
				request.Stack, request.Service = first(stack, request.Stack), service
			}
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := coordinatorv1.NewStackServiceClient(a.client).ListInstances(ctx, &request)
			if err != nil {
				return a.fail("instances cannot be listed", err, nil)
			}
			if err := a.printer().Print(a.instanceTable(answer)); err != nil {
				return err
			}
			if len(answer.GetUnreachable()) > 0 {
				defer a.tellLost(cmd.Context(), request.GetStack())
			}
			return a.partly(answer.GetUnreachable())
		},
	}
	cmd.Flags().StringVar(&request.Stack, "stack", "", "only instances of this stack")
	cmd.Flags().StringVar(&request.Host, "host", "", "only instances on this host")
	cmd.Flags().BoolVar(&request.All, "all", false, "stopped ones as well")
	_ = cmd.RegisterFlagCompletionFunc("stack", a.completeStacks)
	_ = cmd.RegisterFlagCompletionFunc("host", a.completeHosts)
	return cmd
}

func (a *app) instanceTable(answer *coordinatorv1.ListInstancesResponse) output.Data {
	d := output.Data{Kind: "Instance", Empty: "there is no instance", Extra: unreachable(answer.GetUnreachable()), Columns: []output.Column{
		{Title: "STACK"}, {Title: "INSTANCE"}, {Title: "HOST"}, {Title: "STATE", State: true}, {Title: "HEALTH", State: true}, {Title: "RELEASE"},
		{Title: "UP"}, {Title: "RESTARTS"}, {Title: "PORTS"}, {Title: "EXPECTED", Wide: true}, {Title: "CONTAINER", Wide: true}, {Title: "IMAGE", Wide: true},
	}}
	for _, i := range answer.GetInstances() {
		c := i.GetContainer()
		name := fmt.Sprintf("%s.%d", i.GetService(), i.GetSlot())
		up := ""
		if c.GetState() == "running" {
			up = output.Age(i.GetStartedAt(), a.Now())
		}
		expected := "yes"
		if !i.GetExpected() {
			expected = "no"
		}
		d.Items = append(d.Items, i)
		d.Names = append(d.Names, "instance/"+c.GetName())
		d.Rows = append(d.Rows, []string{i.GetStack(), name, i.GetHost(), instanceState(c), c.GetHealth(), number(i.GetRelease()), up,
			fmt.Sprint(c.GetRestartCount()), ports(c.GetPorts()), expected, c.GetName(), c.GetImage()})
	}
	missing := make([]proto.Message, 0, len(answer.GetMissing()))
	for _, m := range answer.GetMissing() {
		missing = append(missing, m)
		stack, _, _ := strings.Cut(m.GetContainer(), ".")
		d.Rows = append(d.Rows, []string{stack, fmt.Sprintf("%s.%d", m.GetService(), m.GetSlot()), m.GetHost(), "missing", "", number(m.GetRelease()), "",
			"", ports(m.GetPorts()), "yes", m.GetContainer(), ""})
	}
	d.Extra["missing"] = missing
	return d
}

// instanceState is how an engine's word is shown: what was stopped on purpose has not failed.
func instanceState(c *agentv1.Container) string {
	if c.GetStopped() {
		return "stopped"
	}
	return c.GetState()
}

// splitService splits STACK/SERVICE.
func splitService(arg string) (stack, service string) {
	arg = strings.TrimPrefix(arg, "service/")
	if s, name, ok := strings.Cut(arg, "/"); ok {
		return s, name
	}
	return "", arg
}

func (a *app) serviceShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [STACK/]SERVICE", Short: "Show a service as it was released", Args: exactly("SERVICE"),
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			stack, name := splitService(args[0])
			answer, err := a.services(cmd.Context(), stack)
			if err != nil {
				return err
			}
			var found []*coordinatorv1.ServiceStatus
			var names, full []string
			for _, s := range answer.GetServices() {
				names = append(names, s.GetService().GetName())
				if s.GetService().GetName() == name && (stack == "" || s.GetStack() == stack) {
					found = append(found, s)
					full = append(full, s.GetStack()+"/"+name)
				}
			}
			switch {
			case len(found) == 0:
				return &output.Error{What: fmt.Sprintf("there is no service %q", args[0]), Code: output.CodeNotFound,
					Hint: strings.TrimSpace("musterctl service " + first(prefixed("show ", output.Nearest(name, names)), "list"))}
			case len(found) > 1:
				return output.Usage("musterctl service show "+full[0], "service %q is in several stacks: %s", name, strings.Join(full, ", "))
			}
			s := found[0]
			if err := a.printer().Print(output.Data{
				Kind: "Service", Items: []proto.Message{s}, Names: []string{"service/" + full[0]},
				Text: func(w io.Writer, _ bool) { writeService(w, s) },
			}); err != nil {
				return err
			}
			return a.partly(answer.GetUnreachable())
		},
	}
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func writeService(w io.Writer, s *coordinatorv1.ServiceStatus) {
	svc := s.GetService()
	t := svc.GetTemplate()
	var depends, mounts, networks []string
	for _, d := range svc.GetDependsOn() {
		depends = append(depends, d.GetService()+" ("+d.GetCondition()+")")
	}
	for _, m := range t.GetMounts() {
		mounts = append(mounts, fmt.Sprintf("%s %s -> %s", m.GetType(), first(m.GetSource(), "(anonymous)"), m.GetTarget()))
	}
	for _, n := range t.GetNetworks() {
		networks = append(networks, n.GetName())
	}
	var secrets []string
	for _, m := range t.GetSecrets() {
		secrets = append(secrets, fmt.Sprintf("%s (version %d)", m.GetSecret().GetName(), m.GetSecret().GetVersion()))
	}
	route := ""
	if r := svc.GetRoute(); r != nil {
		route = fmt.Sprintf("%s%s -> port %d", first(strings.Join(r.GetHosts(), ","), "every name"), r.GetPathPrefix(), r.GetPort())
	}
	writePairs(w, [][2]string{
		{"service", s.GetStack() + "/" + svc.GetName()},
		{"release", number(s.GetRelease())},
		{"instances", fmt.Sprintf("%s wanted, %d running, %d ready", replicas(svc), s.GetRunning(), s.GetReady()) + stoppedOf(s, ", %d stopped")},
		{"image", svc.GetImage()}, {"pinned image", t.GetImage()}, {"gate", gateWord(svc.GetGate())},
		{"update", policy(svc.GetUpdate())}, {"rollback", policy(svc.GetRollback())}, {"stop-first because", svc.GetStopFirst()}, {"reload signal", svc.GetReloadSignal()},
		{"constraints", strings.Join(svc.GetPlacement().GetConstraints(), ", ")}, {"spread", strings.Join(svc.GetPlacement().GetSpread(), ", ")},
		{"pinned", svc.GetPinned()}, {"on host lost", onHostLost(svc)}, {"depends on", strings.Join(depends, ", ")}, {"route", route}, {"ports", ports(t.GetPorts())},
		{"networks", strings.Join(networks, ", ")}, {"mounts", strings.Join(mounts, "; ")}, {"secrets", strings.Join(secrets, ", ")},
		{"memory limit", bytesOf(t.GetResources().GetMemoryLimitBytes())}, {"cpu limit", cpus(t.GetResources().GetNanoCpuLimit())},
	})
}

// policy returns an update policy in one line.
func policy(p *coordinatorv1.UpdatePolicy) string {
	if p == nil {
		return ""
	}
	at := "all at a time"
	if p.GetParallelism() > 0 {
		at = fmt.Sprintf("%d at a time", p.GetParallelism())
	}
	parts := []string{first(p.GetOrder(), "order by rule"), at}
	if d := p.GetDelay().AsDuration(); d > 0 {
		parts = append(parts, "delay "+d.String())
	}
	if d := p.GetMonitor().AsDuration(); d > 0 {
		parts = append(parts, "monitor "+d.String())
	}
	parts = append(parts, fmt.Sprintf("max failure ratio %g", p.GetMaxFailureRatio()))
	if p.GetFailureAction() != coordinatorv1.FailureAction_FAILURE_ACTION_UNSPECIFIED {
		parts = append(parts, "on failure "+output.Word(p.GetFailureAction(), "FAILURE_ACTION_"))
	}
	return strings.Join(parts, ", ")
}

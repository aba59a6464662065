package command

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) serviceScaleCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "scale [STACK/]SERVICE N",
		Short: "Change the number of a service's instances",
		Long: `Scale plans a release that differs from the current one in the number of the service's instances alone, shows the plan, and runs it.

Whether the hosts have the memory, ports and GPUs is said before anything starts. New instances serve once they are ready; those that go take no
more requests before they are stopped. The next "stack apply" puts the number of the file back.`,
		Example: `  musterctl service scale shop/web 9
  musterctl service scale shop/web 9 --dry-run
  musterctl service scale shop/web 0 --yes --reason "moved to the new shop"`,
		Args: exactly("SERVICE", "N"), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return output.Usage(cmd.CommandPath()+" "+args[0]+" 3", "%q is not a number of instances", args[1])
			}
			return a.scaleService(cmd.Context(), &c, args[0], uint32(n))
		},
	}
	c.planFlags(cmd)
	return cmd
}

func (a *app) scaleService(ctx context.Context, c *change, arg string, n uint32) error {
	stack, service, err := a.oneService(ctx, arg)
	if err != nil {
		return err
	}
	services := coordinatorv1.NewServiceServiceClient(a.client)
	return a.carryOut(ctx, c, carriage{
		name: "service " + stack + "/" + service, ask: n == 0,
		plan: func(ctx context.Context, dryRun bool, hash string) (planned, error) {
			answer, err := services.ScaleService(ctx, &coordinatorv1.ScaleServiceRequest{
				Stack: stack, Service: service, Replicas: n, DryRun: dryRun, PlanHash: hash, RequestId: a.requestID, Reason: c.reason,
			})
			return planned{plan: answer.GetPlan(), run: answer.GetRun(), warnings: answer.GetWarnings()},
				a.fail(fmt.Sprintf("service %s/%s was not scaled", stack, service), err, map[string]string{
					"SERVICE_NOT_FOUND": "musterctl service list --stack " + stack,
				})
		},
	})
}

// oneService returns the stack and the name of the service that an argument names. Without a stack, only one stack may have a service of that name.
func (a *app) oneService(ctx context.Context, arg string) (stack, service string, err error) {
	stack, service = splitService(arg)
	if service == "" {
		return "", "", output.Usage("STACK/SERVICE", "%q names no service", arg)
	}
	if stack != "" {
		return stack, service, a.connect()
	}
	answer, err := a.services(ctx, "")
	if err != nil {
		return "", "", err
	}
	var stacks, names []string
	for _, s := range answer.GetServices() {
		names = append(names, s.GetService().GetName())
		if s.GetService().GetName() == service {
			stacks = append(stacks, s.GetStack())
		}
	}
	switch len(stacks) {
	case 0:
		return "", "", &output.Error{What: fmt.Sprintf("there is no service %q", arg), Code: output.CodeNotFound,
			Hint: first(prefixed("did you mean ", output.Nearest(service, names)), "musterctl service list")}
	case 1:
		return stacks[0], service, nil
	}
	return "", "", output.Usage(stacks[0]+"/"+service, "several stacks have a service %s (%s): say which one", service, strings.Join(stacks, ", "))
}

package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// completion is what cobra calls for the names of arguments.
type completion = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective)

// live returns the names that names finds on the cluster within half a second, and none after: a prompt never waits, and
// never shows an error.
func (a *app) live(cmd *cobra.Command, args []string, prefix string, names func(context.Context) []string) ([]string, cobra.ShellCompDirective) {
	nothing := cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, nothing
	}
	a.silent = true
	if err := a.settle(cmd); err != nil {
		return nil, nothing
	}
	if err := a.connect(); err != nil {
		return nil, nothing
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(orBackground(cmd.Context())), shortTimeout)
	defer cancel()
	var out []string
	for _, n := range names(ctx) {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	return out, nothing
}

func orBackground(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return ctx
}

func (a *app) completeStacks(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(cmd, args, prefix, a.stackNames)
}

func (a *app) completeHosts(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(cmd, args, prefix, a.hostNames)
}

func (a *app) completeServices(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(cmd, args, prefix, func(ctx context.Context) []string {
		answer, err := coordinatorv1.NewStackServiceClient(a.client).ListServices(ctx, &coordinatorv1.ListServicesRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, s := range answer.GetServices() {
			out = append(out, s.GetStack()+"/"+s.GetService().GetName())
			if !strings.Contains(prefix, "/") {
				out = append(out, s.GetService().GetName())
			}
		}
		return out
	})
}

// completeRuns completes ids of runs, with what each is; only those that have not ended with active.
func (a *app) completeRuns(active bool) completion {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.live(cmd, args, prefix, func(ctx context.Context) []string {
			answer, err := coordinatorv1.NewRunServiceClient(a.client).ListRuns(ctx, &coordinatorv1.ListRunsRequest{Active: active, Stale: true})
			if err != nil {
				return nil
			}
			var out []string
			for _, r := range answer.GetRuns() {
				out = append(out, cobra.CompletionWithDesc(r.GetId(), output.Clean(output.Word(r.GetState(), "RUN_STATE_")+" "+r.GetTitle())))
			}
			return out
		})
	}
}

// completeFlags completes the values of global flags.
func (a *app) completeFlags(root *cobra.Command) {
	for flag, values := range map[string][]string{
		"output": output.Formats(), "progress": progressModes(), "color": {"auto", "always", "never"},
	} {
		_ = root.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	_ = root.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		file, _, err := a.load()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return file.Names(), cobra.ShellCompDirectiveNoFileComp
	})
}

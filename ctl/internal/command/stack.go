package command

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) stackCommand() *cobra.Command {
	return a.noun("stack", "Apply, show and roll back stacks",
		a.stackApplyCommand(), a.stackDiffCommand(), a.stackListCommand(), a.stackShowCommand(),
		a.stackHistoryCommand(), a.stackRollbackCommand())
}

func (a *app) stackListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List stacks", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			stacks, err := a.stacks(cmd.Context())
			if err != nil {
				return err
			}
			d := output.Data{Kind: "Stack", Empty: "there is no stack; musterctl stack apply -f FILE makes one", Columns: []output.Column{
				{Title: "NAME"}, {Title: "RELEASE"}, {Title: "PREVIOUS"}, {Title: "ACTIVE-RUN"}, {Title: "LAST-RELEASE", Wide: true},
			}}
			for _, s := range stacks {
				d.Items = append(d.Items, s)
				d.Names = append(d.Names, "stack/"+s.GetName())
				d.Rows = append(d.Rows, []string{s.GetName(), number(s.GetCurrentRelease()), number(s.GetPreviousRelease()),
					s.GetActiveRun(), number(s.GetLastRelease())})
			}
			return a.printer().Print(d)
		},
	}
}

func (a *app) stacks(ctx context.Context) ([]*coordinatorv1.Stack, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	answer, err := coordinatorv1.NewStackServiceClient(a.client).ListStacks(ctx, &coordinatorv1.ListStacksRequest{})
	return answer.GetStacks(), a.fail("stacks cannot be listed", err, nil)
}

func (a *app) stackShowCommand() *cobra.Command {
	var release uint64
	cmd := &cobra.Command{
		Use: "show STACK", Short: "Show a stack with a release of it", Args: exactly("STACK"),
		ValidArgsFunction: a.completeStacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := coordinatorv1.NewStackServiceClient(a.client).GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: args[0], Release: release})
			if err != nil {
				return a.missing(cmd.Context(), "stack "+args[0]+" cannot be shown", "STACK_NOT_FOUND", "musterctl stack show", args[0], err, a.stackNames)
			}
			if err := a.printer().Print(output.Data{
				Kind: "Stack", Items: []proto.Message{answer}, Names: []string{"stack/" + answer.GetStack().GetName()},
				Text: func(w io.Writer, wide bool) { a.writeStack(w, answer, wide) },
			}); err != nil {
				return err
			}
			a.tellLost(cmd.Context(), args[0])
			return nil
		},
	}
	cmd.Flags().Uint64Var(&release, "release", 0, "number of the release (default: the current one)")
	return cmd
}

func (a *app) writeStack(w io.Writer, answer *coordinatorv1.GetStackResponse, wide bool) {
	s, r := answer.GetStack(), answer.GetRelease()
	pairs := [][2]string{
		{"stack", s.GetName()}, {"current release", number(s.GetCurrentRelease())},
		{"previous release", number(s.GetPreviousRelease())}, {"active run", s.GetActiveRun()}, {"abandoned", abandoned(s)},
	}
	if r != nil {
		pairs = append(pairs, [2]string{"shown release", fmt.Sprintf("%d, %s", r.GetNumber(), output.Word(r.GetState(), "RELEASE_STATE_"))},
			[2]string{"applied", output.Age(r.GetCreatedAt(), a.Now()) + " ago by " + who(r.GetCreatedBy())},
			[2]string{"run", r.GetRunId()}, [2]string{"reason", r.GetReason()})
	}
	writePairs(w, pairs)
	if r == nil {
		return
	}
	var rows [][]string
	for _, svc := range r.GetServices() {
		rows = append(rows, []string{svc.GetName(), replicas(svc), svc.GetImage(), gateWord(svc.GetGate()), svc.GetUpdate().GetOrder(), svc.GetPinned(),
			svc.GetTemplate().GetImage()})
	}
	_, _ = fmt.Fprintln(w)
	output.WriteTable(w, []output.Column{{Title: "SERVICE"}, {Title: "INSTANCES"}, {Title: "IMAGE"}, {Title: "GATE"}, {Title: "ORDER"},
		{Title: "PINNED", Wide: true}, {Title: "DIGEST", Wide: true}}, rows, wide, a.style(a.Stdout))
	rows = nil
	for _, as := range r.GetAssignments() {
		rows = append(rows, []string{fmt.Sprintf("%s.%d", as.GetService(), as.GetSlot()), as.GetHost(), number(as.GetRelease()), ports(as.GetPorts()), as.GetContainer()})
	}
	if len(rows) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w)
	output.WriteTable(w, []output.Column{{Title: "INSTANCE"}, {Title: "HOST"}, {Title: "RELEASE"}, {Title: "PORTS"}, {Title: "CONTAINER", Wide: true}},
		rows, wide, a.style(a.Stdout))
}

// abandoned names the containers that are removed when their hosts come back.
func abandoned(s *coordinatorv1.Stack) string {
	var out []string
	for _, a := range s.GetAbandoned() {
		out = append(out, a.GetContainer()+" on "+a.GetHost())
	}
	return strings.Join(out, ", ")
}

func (a *app) stackHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history STACK", Short: "List the releases of a stack, newest first", Args: exactly("STACK"),
		ValidArgsFunction: a.completeStacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := coordinatorv1.NewStackServiceClient(a.client).ListReleases(ctx, &coordinatorv1.ListReleasesRequest{Stack: args[0]})
			if err != nil {
				return a.missing(cmd.Context(), "releases cannot be listed", "STACK_NOT_FOUND", "musterctl stack history", args[0], err, a.stackNames)
			}
			d := output.Data{Kind: "Release", Empty: "stack " + args[0] + " has no release yet", Columns: []output.Column{
				{Title: "RELEASE"}, {Title: "STATE", State: true}, {Title: "AGE"}, {Title: "RUN"}, {Title: "REPEATS"}, {Title: "BY"},
				{Title: "SOURCE", Wide: true}, {Title: "REASON"},
			}}
			for _, r := range answer.GetReleases() {
				d.Items = append(d.Items, r)
				d.Names = append(d.Names, "release/"+r.GetStack()+"/"+number(r.GetNumber()))
				d.Rows = append(d.Rows, []string{number(r.GetNumber()), output.Word(r.GetState(), "RELEASE_STATE_"), output.Age(r.GetCreatedAt(), a.Now()),
					r.GetRunId(), number(r.GetRollbackOf()), who(r.GetCreatedBy()), shortHash(r.GetSourceDigest()), r.GetReason()})
			}
			return a.printer().Print(d)
		},
	}
}

func (a *app) stackRollbackCommand() *cobra.Command {
	var c change
	var to uint64
	cmd := &cobra.Command{
		Use: "rollback STACK", Short: "Return to an earlier release", Args: exactly("STACK"),
		ValidArgsFunction: a.completeStacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			stacks := coordinatorv1.NewStackServiceClient(a.client)
			return a.carryOut(cmd.Context(), &c, carriage{
				name: "stack " + args[0], ask: true,
				plan: func(ctx context.Context, dryRun bool, hash string) (planned, error) {
					answer, err := stacks.RollbackStack(ctx, &coordinatorv1.RollbackStackRequest{
						Stack: args[0], Release: to, DryRun: dryRun, PlanHash: hash, RequestId: a.requestID, Reason: c.reason,
					})
					if err != nil {
						return planned{}, a.missing(ctx, "stack "+args[0]+" was not rolled back", "STACK_NOT_FOUND",
							"musterctl stack rollback", args[0], err, a.stackNames)
					}
					return planned{plan: answer.GetPlan(), run: answer.GetRun()}, nil
				},
			})
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "number of the release to return to (default: the one before the current)")
	c.planFlags(cmd)
	return cmd
}

// missing returns the error of a call that named an object. If there is no such object, the hint names the nearest one.
func (a *app) missing(ctx context.Context, what, reason, command, name string, err error, names func(context.Context) []string) error {
	shown := output.FromRPC(what, err, nil)
	if shown.Reason != reason {
		return a.fail(what, err, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if near := output.Nearest(name, names(ctx)); near != "" {
		return a.fail(what, err, map[string]string{reason: command + " " + near})
	}
	return a.fail(what, err, nil)
}

func (a *app) stackNames(ctx context.Context) []string {
	var names []string
	answer, err := coordinatorv1.NewStackServiceClient(a.client).ListStacks(ctx, &coordinatorv1.ListStacksRequest{Stale: true})
	if err != nil {
		return nil
	}
	for _, s := range answer.GetStacks() {
		names = append(names, s.GetName())
	}
	return names
}

// number returns a number that is never 0 where it exists.
func number(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func shortHash(s string) string { return s[:min(12, len(s))] }

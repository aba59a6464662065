package command

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) hostCordonCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "cordon HOST", Short: "Keep new instances away from a host; those that it has stay",
		Example: `  musterctl host cordon web-2 --reason "its disk is being watched"`,
		Args:    exactly("HOST"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cordonHost(cmd.Context(), &c, args[0], "cordon", func(ctx context.Context, hosts coordinatorv1.HostServiceClient, name, request string) (*coordinatorv1.Host, error) {
				answer, err := hosts.CordonHost(ctx, &coordinatorv1.CordonHostRequest{Host: name, Reason: c.reason, RequestId: request})
				return answer.GetHost(), err
			})
		},
	}
	cmd.Flags().StringVar(&c.reason, "reason", "", "why; it is kept with the host")
	c.requestFlags(cmd)
	return cmd
}

// hostUncordonCommand is undrain, too: what left the host does not come back by itself.
func (a *app) hostUncordonCommand(verb, short string) *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: verb + " HOST", Short: short, Example: "  musterctl host " + verb + " web-2",
		Args: exactly("HOST"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cordonHost(cmd.Context(), &c, args[0], verb, func(ctx context.Context, hosts coordinatorv1.HostServiceClient, name, request string) (*coordinatorv1.Host, error) {
				answer, err := hosts.UncordonHost(ctx, &coordinatorv1.UncordonHostRequest{Host: name, RequestId: request})
				return answer.GetHost(), err
			})
		},
	}
	c.requestFlags(cmd)
	return cmd
}

type cordoning func(ctx context.Context, hosts coordinatorv1.HostServiceClient, name, request string) (*coordinatorv1.Host, error)

func (a *app) cordonHost(ctx context.Context, c *change, arg, verb string, do cordoning) error {
	hosts, err := a.hosts()
	if err != nil {
		return err
	}
	request, err := a.request(c)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(arg, "host/")
	limited, cancel := a.call(ctx)
	defer cancel()
	host, err := do(limited, hosts, name, request)
	if err != nil {
		return a.missing(ctx, "host "+name+" was not changed", "HOST_NOT_FOUND", "musterctl host "+verb, name, err, a.hostNames)
	}
	line := "host/" + name + " takes new instances"
	if host.GetCordoned() {
		line = "host/" + name + " is cordoned: it takes no new instances; musterctl host uncordon " + name + " opens it"
	}
	return a.printHost(host, line)
}

// printHost writes a host as the data of a command that changed it: one line for a person.
func (a *app) printHost(host *coordinatorv1.Host, line string) error {
	return a.printer().Print(output.Data{
		Kind: "Host", Items: []proto.Message{host}, Names: []string{"host/" + host.GetName()},
		Text: func(w io.Writer, _ bool) { _, _ = io.WriteString(w, output.Clean(line)+"\n") },
	})
}

// draining is one call of host drain.
type draining struct {
	*change
	request coordinatorv1.DrainHostRequest
	hosts   coordinatorv1.HostServiceClient
}

func (a *app) hostDrainCommand() *cobra.Command {
	d := draining{change: &change{}}
	var deadline time.Duration
	cmd := &cobra.Command{
		Use:   "drain HOST",
		Short: "Move all instances of a host elsewhere",
		Long: `Drain cordons a host and moves its instances to others, one stack after the other: each new instance serves before the old one is stopped,
unless two cannot coexist. If an instance cannot leave, all that cannot are named with their reasons, and nothing is changed.

With --lost, the host does not answer and will not: its instances are started elsewhere. What it still runs is removed when it comes back.

A run that has not ended by its deadline stops and asks. "undrain" lets instances come to the host again; those that left stay where they are.`,
		Example: `  musterctl host drain web-2 --dry-run
  musterctl host drain web-2 --yes --reason "kernel update"
  musterctl host drain web-3 --lost
  musterctl host undrain web-2`,
		Args: exactly("HOST"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if d.hosts, err = a.hosts(); err != nil {
				return err
			}
			d.request.Host, d.request.Deadline, d.request.Reason = strings.TrimPrefix(args[0], "host/"), lifetime(deadline), d.reason
			return a.drainHost(cmd.Context(), &d)
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.request.Stack, "stack", "", "only the instances of this stack")
	f.BoolVar(&d.request.Lost, "lost", false, "the host does not answer and will not")
	f.DurationVar(&deadline, "deadline", time.Hour, "of each stack's run, which then stops and asks")
	d.planFlags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("stack", a.completeStacks)
	return cmd
}

// ask makes one call of a drain.
func (a *app) askDrain(ctx context.Context, d *draining, dryRun bool, hash string) (*coordinatorv1.DrainHostResponse, error) {
	limited, cancel := a.call(ctx)
	defer cancel()
	request := proto.CloneOf(&d.request)
	request.DryRun, request.PlanHash, request.RequestId = dryRun, hash, a.requestID
	answer, err := d.hosts.DrainHost(limited, request)
	if err != nil {
		return nil, a.missing(ctx, "host "+request.GetHost()+" was not drained", "HOST_NOT_FOUND", "musterctl host drain", request.GetHost(), err, a.hostNames)
	}
	return answer, nil
}

func (a *app) drainHost(ctx context.Context, d *draining) error {
	hash := d.planHash
	if d.dryRun || !d.yes || a.chatty() {
		seen, err := a.askDrain(ctx, d, true, "")
		if err != nil {
			return err
		}
		if d.dryRun {
			return a.printDrain(seen, d)
		}
		if a.chatty() {
			a.writeDrain(a.Stderr, seen, a.verbose, a.style(a.Stderr))
		}
		if err := a.confirm(ctx, d.change, drainQuestion(&d.request, seen)); err != nil {
			return err
		}
		if hash == "" && len(seen.GetPlans()) > 0 {
			hash = seen.GetPlans()[0].GetHash()
		}
	}
	return a.drainStacks(ctx, d, hash)
}

// drainStacks starts the run of one stack after the other, until the host has no instances left.
func (a *app) drainStacks(ctx context.Context, d *draining, hash string) error {
	name, last := d.request.GetHost(), ""
	for {
		if _, err := a.request(d.change); err != nil {
			return err
		}
		answer, err := a.askDrain(ctx, d, false, hash)
		if err != nil {
			return err
		}
		run := answer.GetRun()
		if run == nil {
			return a.drained(name, last)
		}
		if run.GetStack() == last {
			a.note("stack %s still has instances on %s: look at run/%s, then drain again", last, name, run.GetId())
		}
		last = run.GetStack()
		if err := a.drainStarted(ctx, run, d); err != nil {
			a.note("host %s stays cordoned; musterctl host drain %s goes on, musterctl host undrain %s lets instances come again", name, name, name)
			return err
		}
		if d.detach {
			if n := answer.GetRemaining(); n > 0 {
				a.note("%d more %s instances on %s: drain again when the run has ended", n, plural(int(n), "stack has", "stacks have"), name)
			}
			return nil
		}
		hash, d.requestID = "", ""
	}
}

// drainStarted follows the run of one stack. One that stops and asks ends the drain, too.
func (a *app) drainStarted(ctx context.Context, run *coordinatorv1.Run, d *draining) error {
	if d.detach {
		return a.started(ctx, run, d.change)
	}
	if a.chatty() {
		a.note("run/%s started", run.GetId())
	}
	return a.follow(ctx, followed{run: run, known: true, pausedEnds: true})
}

// drained says that a host has no instances left.
func (a *app) drained(name, last string) error {
	if last != "" {
		a.note("host %s has no instances left and is cordoned; musterctl host undrain %s lets them come again", name, name)
		return nil
	}
	if !a.table() {
		return a.printer().Print(output.Data{Kind: "Run"})
	}
	return a.printer().Print(output.Data{Text: func(w io.Writer, _ bool) {
		_, _ = fmt.Fprintf(w, "host/%s has no instances: nothing to move; it is cordoned\n", output.Clean(name))
	}})
}

func drainQuestion(request *coordinatorv1.DrainHostRequest, seen *coordinatorv1.DrainHostResponse) string {
	var stacks []string
	for _, p := range seen.GetPlans() {
		stacks = append(stacks, p.GetStack())
	}
	question := "drain host " + request.GetHost()
	if request.GetLost() {
		question = "give up host " + request.GetHost() + " and start its instances elsewhere"
	}
	if len(stacks) == 0 {
		return question + ", which has no instances"
	}
	return question + ", of " + plural(len(stacks), "stack ", "stacks ") + strings.Join(stacks, ", ")
}

// printDrain writes the plans of a dry run as its data.
func (a *app) printDrain(seen *coordinatorv1.DrainHostResponse, d *draining) error {
	data := output.Data{Kind: "Plan", Text: func(w io.Writer, wide bool) { a.writeDrain(w, seen, wide || a.verbose, a.style(a.Stdout)) }}
	steps := false
	for _, p := range seen.GetPlans() {
		data.Items, data.Names = append(data.Items, p), append(data.Names, "plan/"+p.GetHash())
		steps = steps || hasChanges(p)
	}
	if !a.table() {
		for _, w := range seen.GetWarnings() {
			a.note("warning: %s", w)
		}
	}
	if err := a.printer().Print(data); err != nil {
		return err
	}
	if d.detailedExit && steps {
		return output.Exit{Code: output.CodeChanges}
	}
	return nil
}

// writeDrain shows the plans of a drain, one for each stack.
func (a *app) writeDrain(w io.Writer, seen *coordinatorv1.DrainHostResponse, steps bool, style output.Style) {
	if len(seen.GetPlans()) == 0 {
		_, _ = fmt.Fprintln(w, "the host has no instances")
	}
	for i, p := range seen.GetPlans() {
		var warnings []string
		if i == 0 {
			warnings = seen.GetWarnings()
		}
		writePlan(w, p, warnings, steps, style)
	}
}

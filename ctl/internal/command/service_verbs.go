package command

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// serviceVerb is one thing that is done to the instances of a service.
type serviceVerb struct {
	verb                 coordinatorv1.ServiceVerb
	short, long, example string
	// waves says that the verb goes through the instances in waves.
	waves bool
	// signals says that the verb sends a signal.
	signals bool
	// ask always asks, because somebody will notice.
	ask bool
}

func (v serviceVerb) name() string { return output.Word(v.verb, "SERVICE_VERB_") }

// failed says in a sentence what has not happened.
func (v serviceVerb) failed(object string) string {
	past := map[string]string{
		"restart": "restarted", "recreate": "recreated", "stop": "stopped", "start": "started", "reload": "reloaded", "signal": "sent a signal",
	}
	return "service " + object + " was not " + past[v.name()]
}

// verbs of a service, in the order of their help.
func verbs() []serviceVerb {
	return []serviceVerb{
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RESTART, waves: true, short: "Stop and start the same containers, a few at a time",
			long: `Restart takes each instance out of the proxy, waits for its requests in flight, stops and starts its container, waits until it is ready and lets
the proxy lead to it again. As many are away at a time as the service's update_config says, and never all of them. A service with one instance does
not serve meanwhile: "recreate" starts the new container first, where two can coexist.`,
			example: `  musterctl service restart shop/web
  musterctl service restart shop/web --slot 2
  musterctl service restart shop/web --delay 1m --reason "it leaks" --yes`,
		},
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RECREATE, waves: true, short: "Replace the containers by new ones of the same release",
			long: `Recreate replaces containers as an update does, though nothing about the service changes: each new one serves before its old one is stopped, unless
two cannot coexist. Use it for an instance whose container is broken or gone. What containers have written outside volumes goes with them.`,
			example: `  musterctl service recreate shop/web
  musterctl service recreate shop/web --slot 2,5 --dry-run`,
		},
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_STOP, ask: true, short: "Take instances out of the proxy and stop them; the containers stay",
			long: `Stop takes instances out of the proxy, waits for their requests in flight, and stops them. Nothing starts them again but "start", "restart", or the
next "stack apply" or "stack rollback", which put in place what the files say. Until then "service ps" shows them as stopped.`,
			example: `  musterctl service stop shop/worker
  musterctl service stop shop/web --slot 3 --yes --reason "to look at its heap"`,
		},
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_START, short: "Start stopped instances and let the proxy lead to them",
			long: `Start starts the instances that do not run, waits until they are ready, and lets the proxy lead to them. Those that run are left alone.`,
			example: `  musterctl service start shop/worker
  musterctl service start shop/web --slot 3`,
		},
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_RELOAD, waves: true, signals: true, short: "Send the reload signal, a few instances at a time, and watch them",
			long: `Reload sends each instance the signal that the service names as x-muster.reload, or SIGHUP, checks its gate and watches it before the next ones get
theirs. If one does not bear it, the others get none. Instances go on serving; a signal that was sent cannot be taken back.`,
			example: `  musterctl service reload shop/proxy
  musterctl service reload shop/proxy --signal SIGUSR2 --delay 30s`,
		},
		{
			verb: coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL, signals: true, ask: true, short: "Send a signal to all instances and check nothing",
			long: `Signal sends a signal to the first process of every instance, at once, and checks nothing. Signals that end or freeze a process are refused: there are
"stop" and "restart".`,
			example: `  musterctl service signal shop/web --signal SIGUSR1
  musterctl service signal shop/web --signal SIGQUIT --slot 4 --yes`,
		},
	}
}

// serviceVerbCommands are the commands of all verbs.
func (a *app) serviceVerbCommands() []*cobra.Command {
	var commands []*cobra.Command
	for _, v := range verbs() {
		commands = append(commands, a.serviceVerbCommand(v))
	}
	return commands
}

func (a *app) serviceVerbCommand(v serviceVerb) *cobra.Command {
	var c change
	var slots []int
	var delay time.Duration
	request := coordinatorv1.OperateServiceRequest{Verb: v.verb}
	cmd := &cobra.Command{
		Use: v.name() + " [STACK/]SERVICE", Short: v.short, Long: v.long, Example: v.example,
		Args: exactly("SERVICE"), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case v.verb == coordinatorv1.ServiceVerb_SERVICE_VERB_SIGNAL && request.GetSignal() == "":
				return output.Usage(cmd.CommandPath()+" "+args[0]+" --signal SIGUSR1", "--signal is missing: say which signal is sent")
			case delay < 0:
				return output.Usage("--delay 30s", "--delay %s is negative", delay)
			case delay > 0:
				request.Delay = durationpb.New(delay)
			}
			for _, slot := range slots {
				if slot <= 0 || slot > math.MaxInt32 {
					return output.Usage("--slot 2", "--slot %d is no instance: they are numbered from 1, as \"service ps\" shows them", slot)
				}
				request.Slots = append(request.Slots, uint32(slot))
			}
			return a.operateService(cmd.Context(), &c, v, args[0], &request)
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&slots, "slot", nil, "only these instances, by their `numbers`; several are separated by commas")
	_ = cmd.RegisterFlagCompletionFunc("slot", a.completeSlots)
	if v.waves {
		f.DurationVar(&delay, "delay", 0, "between waves (default: that of the service's update_config)")
	}
	if v.signals {
		usage := "signal like SIGUSR1"
		if v.waves {
			usage += " (default: the service's x-muster.reload, or SIGHUP)"
		}
		f.StringVar(&request.Signal, "signal", "", usage)
		_ = cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions([]string{"SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"}, cobra.ShellCompDirectiveNoFileComp))
	}
	c.planFlags(cmd)
	return cmd
}

func (a *app) operateService(ctx context.Context, c *change, v serviceVerb, arg string, request *coordinatorv1.OperateServiceRequest) error {
	stack, service, err := a.oneService(ctx, arg)
	if err != nil {
		return err
	}
	object := stack + "/" + service
	request.Stack, request.Service, request.Reason = stack, service, c.reason
	services := coordinatorv1.NewServiceServiceClient(a.client)
	return a.carryOut(ctx, c, carriage{
		name: "service " + object, titled: true, ask: v.ask,
		plan: func(ctx context.Context, dryRun bool, hash string) (planned, error) {
			request.DryRun, request.PlanHash, request.RequestId = dryRun, hash, a.requestID
			answer, err := services.OperateService(ctx, request)
			return planned{plan: answer.GetPlan(), run: answer.GetRun(), warnings: answer.GetWarnings()},
				a.fail(v.failed(object), err, map[string]string{"SERVICE_NOT_FOUND": "musterctl service list --stack " + stack, "STACK_NOT_FOUND": "musterctl stack list"})
		},
	})
}

// completeSlots completes the numbers of a service's instances.
func (a *app) completeSlots(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	stack, service := splitService(args[0])
	before, _ := cutLast(prefix, ",")
	return a.live(cmd, nil, prefix, func(ctx context.Context) []string {
		answer, err := coordinatorv1.NewStackServiceClient(a.client).ListInstances(ctx, &coordinatorv1.ListInstancesRequest{Stack: stack, Service: service})
		if err != nil {
			return nil
		}
		var out []string
		for _, i := range answer.GetInstances() {
			if i.GetExpected() {
				out = append(out, cobra.CompletionWithDesc(before+fmt.Sprint(i.GetSlot()), output.Clean(i.GetHost()+", "+instanceState(i.GetContainer()))))
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	})
}

// cutLast splits a text after the last separator.
func cutLast(text, separator string) (before, after string) {
	at := strings.LastIndex(text, separator) + 1
	return text[:at], text[at:]
}

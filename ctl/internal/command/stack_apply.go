package command

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/ctl/internal/source"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// sourceFlags say which files make up a stack.
type sourceFlags struct {
	source.Options
	noGate bool
	// supersede takes back the run that changes the stack now.
	supersede bool
}

func (s *sourceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&s.Files, "file", "f", nil, "compose file; several are merged in their order (default compose.yaml and its override)")
	f.StringArrayVar(&s.EnvFiles, "env-file", nil, "file of variables, instead of the .env beside the first compose file")
	f.StringSliceVar(&s.Profiles, "profile", nil, "profile to activate")
	f.StringVar(&s.ProjectDirectory, "project-directory", "", "folder to which relative paths refer, here and on the hosts; one that is not here is the hosts' only")
	f.StringVar(&s.Name, "name", "", "name of the stack (default: the file's, or that of its folder)")
	f.BoolVar(&s.noGate, "no-gate", false, "accept services that nothing can tell to be ready")
	for _, flag := range []string{"file", "env-file"} {
		_ = cmd.MarkFlagFilename(flag) // only completion depends on it.
	}
}

// collect reads the files of a stack.
func (a *app) collect(s *sourceFlags) (*coordinatorv1.StackSource, error) {
	s.WorkingDirectory, s.Env = a.WorkingDirectory, a.Env
	src, err := source.Collect(s.Options)
	var wrong *source.Error
	if errors.As(err, &wrong) {
		return nil, &output.Error{What: wrong.What, Cause: wrong.Cause, Hint: wrong.Hint, Code: output.CodeUsage}
	}
	return src, err
}

func (a *app) stackApplyCommand() *cobra.Command {
	var c change
	var s sourceFlags
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Put in place what compose files say",
		Long: `Apply plans the way from what runs to what the compose files say, shows the plan, and runs it.

The run is followed until it ends. Ctrl-C leaves it: the run goes on without this program.`,
		Example: `  musterctl stack apply -f compose.yaml
  musterctl stack apply -f compose.yaml -f compose.production.yaml --env-file production.env --dry-run
  musterctl stack apply -f compose.yaml --plan 3f9c…`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.applyStack(cmd.Context(), &c, &s)
		},
	}
	s.add(cmd)
	c.planFlags(cmd)
	cmd.Flags().BoolVar(&s.supersede, "supersede", false, "take back the run that changes the stack now, if there is one, and then apply")
	return cmd
}

func (a *app) stackDiffCommand() *cobra.Command {
	var c change
	var s sourceFlags
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Show what apply would change",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.dryRun = true
			return a.applyStack(cmd.Context(), &c, &s)
		},
	}
	s.add(cmd)
	c.exitFlag(cmd)
	return cmd
}

// planned is the answer to a request to plan, and perhaps to start.
type planned struct {
	plan     *coordinatorv1.Plan
	run      *coordinatorv1.Run
	warnings []string
}

// planner asks for a plan, or starts the plan of a hash.
type planner func(ctx context.Context, dryRun bool, hash string) (planned, error)

func (a *app) applyStack(ctx context.Context, c *change, s *sourceFlags) error {
	src, err := a.collect(s)
	if err != nil {
		return err
	}
	if err := a.connect(); err != nil {
		return err
	}
	stacks := coordinatorv1.NewStackServiceClient(a.client)
	what := "the stack was not applied"
	if s.supersede && !c.dryRun {
		return a.supersede(ctx, c, &coordinatorv1.ApplyStackRequest{Source: src, NoGate: s.noGate})
	}
	return a.carryOut(ctx, c, carriage{
		name: first(src.GetName(), "the stack"),
		plan: func(ctx context.Context, dryRun bool, hash string) (planned, error) {
			answer, err := stacks.ApplyStack(ctx, &coordinatorv1.ApplyStackRequest{
				Source: src, DryRun: dryRun, PlanHash: hash, NoGate: s.noGate, RequestId: a.requestID, Reason: c.reason,
			})
			return planned{answer.GetPlan(), answer.GetRun(), answer.GetWarnings()}, a.fail(what, err, nil)
		},
	})
}

// supersede takes back the run that changes the stack now, waits for its end, and starts the new one.
func (a *app) supersede(ctx context.Context, c *change, request *coordinatorv1.ApplyStackRequest) error {
	if err := a.confirm(ctx, c, "take back the run that changes the stack now, if there is one, and apply this"); err != nil {
		return err
	}
	var err error
	if request.RequestId, err = a.request(c); err != nil {
		return err
	}
	request.Supersede, request.PlanHash, request.Reason = true, c.planHash, c.reason
	for {
		limited, cancel := a.call(ctx)
		answer, err := coordinatorv1.NewStackServiceClient(a.client).ApplyStack(limited, request)
		cancel()
		if err != nil {
			return a.fail("the stack was not applied", err, nil)
		}
		before := answer.GetSuperseded()
		if before == nil {
			seen := planned{answer.GetPlan(), answer.GetRun(), answer.GetWarnings()}
			if seen.run == nil {
				return a.nothingToDo(seen, "stack "+seen.plan.GetStack())
			}
			if a.chatty() {
				writePlan(a.Stderr, seen.plan, seen.warnings, a.verbose || a.format == string(output.FormatWide), a.style(a.Stderr))
			}
			return a.started(ctx, seen.run, c)
		}
		a.note("run/%s is taken back first", before.GetId())
		var exit output.Exit
		if err := a.follow(ctx, followed{run: before, known: true, cancelled: true}); err != nil && (!errors.As(err, &exit) || exit.Code != output.CodeFailed) {
			return err
		}
	}
}

// carriage is how one kind of plan is carried out.
type carriage struct {
	// name of what is changed.
	name string
	plan planner
	// titled plans are asked about by their title, and name stays what it is.
	titled bool
	// ask always asks. Otherwise only a plan that removes services is not started without a word where nobody can be asked.
	ask bool
}

// carryOut plans, shows, asks, starts and follows.
func (a *app) carryOut(ctx context.Context, c *change, how carriage) error {
	if c.yes && !c.dryRun && !a.chatty() { // Nobody is shown the plan or asked about it: it is made once, not twice.
		return a.startPlan(ctx, c, how, c.planHash)
	}
	seen, err := a.within(ctx, how.plan, true, c.planHash)
	if err != nil {
		if r := a.repeated(ctx, c, how, err); r != nil {
			return a.started(ctx, r, c)
		}
		return err
	}
	if stack := seen.plan.GetStack(); stack != "" && !how.titled {
		how.name = "stack " + stack
	}
	if c.dryRun {
		if err := a.printPlan(seen); err != nil {
			return err
		}
		if c.detailedExit && hasChanges(seen.plan) {
			return output.Exit{Code: output.CodeChanges}
		}
		return nil
	}
	if !hasChanges(seen.plan) {
		return a.nothingToDo(seen, how.name)
	}
	if a.chatty() {
		writePlan(a.Stderr, seen.plan, seen.warnings, a.verbose || a.format == string(output.FormatWide), a.style(a.Stderr))
	}
	if err := a.consent(ctx, c, seen.plan, how); err != nil {
		return err
	}
	return a.startPlan(ctx, c, how, first(c.planHash, seen.plan.GetHash()))
}

// startPlan starts the plan of the hash, or whatever plan there is now, and follows its run.
func (a *app) startPlan(ctx context.Context, c *change, how carriage, hash string) error {
	if _, err := a.request(c); err != nil {
		return err
	}
	started, err := a.within(ctx, how.plan, false, hash)
	if err != nil {
		return err
	}
	if started.run == nil {
		return a.nothingToDo(started, how.name)
	}
	return a.started(ctx, started.run, c)
}

// repeated returns the run that an earlier request of the id which the user gave has started. It is what stands in the way of
// planning the same again. The hash matches no plan, so that nothing new is started.
func (a *app) repeated(ctx context.Context, c *change, how carriage, err error) *coordinatorv1.Run {
	var e *output.Error
	if c.dryRun || c.requestID == "" || !errors.As(err, &e) || (e.Reason != "LOCK_HELD" && e.Reason != "PLAN_CHANGED") {
		return nil
	}
	if _, err := a.request(c); err != nil {
		return nil
	}
	p, err := a.within(ctx, how.plan, false, "repeated")
	if err != nil {
		return nil // the first error says what is wrong.
	}
	return p.run
}

// chatty tells whether what happens is told in words beside the data.
func (a *app) chatty() bool { return a.progress != "quiet" && a.progress != "json" }

// within makes one call within the timeout.
func (a *app) within(ctx context.Context, plan planner, dryRun bool, hash string) (planned, error) {
	ctx, cancel := a.call(ctx)
	defer cancel()
	return plan(ctx, dryRun, hash)
}

// consent asks before a plan is started. A pipeline need not say yes to an apply, unless it removes services.
func (a *app) consent(ctx context.Context, c *change, p *coordinatorv1.Plan, how carriage) error {
	gone := removed(p)
	question := "apply this to " + how.name
	if how.titled {
		question = p.GetTitle()
	}
	if len(gone) > 0 {
		question = "remove " + plural(len(gone), "service ", "services ") + strings.Join(gone, ", ") + " and apply this to " + how.name
	}
	if !how.ask && len(gone) == 0 && !a.interactive() {
		return nil
	}
	return a.confirm(ctx, c, question)
}

func (a *app) nothingToDo(p planned, name string) error {
	if !a.table() {
		return a.printer().Print(output.Data{Kind: "Run"})
	}
	return a.printer().Print(output.Data{Text: func(w io.Writer, _ bool) {
		for _, warning := range p.warnings {
			a.note("warning: %s", warning)
		}
		for _, n := range p.plan.GetNotes() {
			a.note("note: %s", n)
		}
		_, _ = io.WriteString(w, output.Clean(name)+": nothing to do\n")
	}})
}

// printPlan writes a plan as the data of a dry run.
func (a *app) printPlan(p planned) error {
	if !a.table() {
		for _, w := range p.warnings {
			a.note("warning: %s", w)
		}
	}
	return a.printer().Print(output.Data{
		Kind: "Plan", Items: []proto.Message{p.plan}, Names: []string{"plan/" + p.plan.GetHash()},
		Text: func(w io.Writer, wide bool) { writePlan(w, p.plan, p.warnings, wide || a.verbose, a.style(a.Stdout)) },
	})
}

// started follows a run that has been started, or says how to.
func (a *app) started(ctx context.Context, r *coordinatorv1.Run, c *change) error {
	if c.detach {
		a.note("%s", howTo(r.GetId()))
		return a.printRun(r, "run/"+r.GetId()+" started")
	}
	if a.chatty() {
		a.note("run/%s started", r.GetId())
	}
	return a.follow(ctx, followed{run: r, known: true})
}

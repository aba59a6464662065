package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// What people say to a run that asks them: approve and reject answer whether it may go on, resolve says what became of an operation.

func (a *app) runDecideCommand(verb, short string, approve bool) *cobra.Command {
	var c change
	var step string
	cmd := &cobra.Command{
		Use: verb + " RUN", Short: short, Args: exactly("RUN"),
		Long: `A run may ask other people than the one who started it whether it may go on. The answer counts for the plan that was seen:
--plan takes its hash, at least the first 12 characters. Without --plan the question and the hash are shown, and a person is asked.`,
		Example: `  musterctl run show r-1f4
  musterctl run ` + verb + ` r-1f4 --plan 3f9c01d2ab45 --reason "checked with the team"`,
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := runID(args[0])
			question, err := a.questionOf(cmd.Context(), &c, id, step, verb)
			if err != nil {
				return err
			}
			return a.control(cmd.Context(), &c, control{id: id, what: "run " + id + " did not get the answer", question: question,
				call: func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error) {
					answer, err := runs.DecideStep(ctx, &coordinatorv1.DecideStepRequest{
						RunId: id, StepId: step, PlanHash: c.planHash, Approve: approve, RequestId: request, Reason: c.reason,
					})
					return answer.GetRun(), err
				}})
		},
	}
	c.requestFlags(cmd)
	cmd.Flags().StringVar(&c.planHash, "plan", "", "hash of the plan that was seen; nothing is asked then")
	cmd.Flags().StringVar(&c.reason, "reason", "", "why; it is kept with the step")
	cmd.Flags().StringVar(&step, "step", "", "step that is answered, if the run asks more than one question")
	return cmd
}

// questionOf returns what a person without a plan hash is asked, and takes the hash of the plan that they are shown.
func (a *app) questionOf(ctx context.Context, c *change, id, step, verb string) (string, error) {
	if c.planHash != "" {
		return "", nil
	}
	if !a.interactive() {
		return "", output.Usage("musterctl run "+verb+" "+id+" --plan HASH; musterctl run show "+id+" shows it",
			"an answer needs the hash of the plan that was seen, and there is nobody to ask")
	}
	runs, err := a.runs()
	if err != nil {
		return "", err
	}
	limited, cancel := a.call(ctx)
	defer cancel()
	answer, err := runs.GetRun(limited, &coordinatorv1.GetRunRequest{RunId: id, Plan: true})
	if err != nil {
		return "", a.fail("run "+id+" cannot be shown", err, nil)
	}
	var prompts []string
	for _, s := range answer.GetSteps() {
		if s.GetState() == coordinatorv1.StepState_STEP_STATE_ASKING && (step == "" || step == s.GetStepId()) {
			prompts = append(prompts, s.GetQuestion())
		}
	}
	if len(prompts) == 0 {
		return "", &output.Error{What: "run " + id + " asks nothing now", Hint: "musterctl run show " + id, Code: output.CodeFailed}
	}
	writePlan(a.Stderr, answer.GetPlan(), nil, a.verbose, a.style(a.Stderr))
	yes, err := a.ask(ctx, strings.Join(prompts, "; ")+" — "+verb+" for plan "+answer.GetRun().GetPlanHash()[:min(12, len(answer.GetRun().GetPlanHash()))]+"?", nil)
	if err != nil {
		return "", a.fail("nothing was answered", err, nil)
	}
	if !yes {
		return "", &output.Error{What: "declined: nothing was answered", Code: output.CodeDeclined}
	}
	c.planHash = answer.GetRun().GetPlanHash()
	return "", nil
}

func (a *app) runResolveCommand() *cobra.Command {
	var c change
	var step string
	var done, notDone, failed bool
	cmd := &cobra.Command{
		Use: "resolve RUN", Short: "Say what became of an operation whose outcome was lost", Args: exactly("RUN"),
		Long: `An agent that dies while it does something that must be done once leaves nobody who can tell what became of it. Find out on the host, and say it:

  --done      it had its whole effect; the run goes on
  --not-done  it had none; it is done again
  --failed    it failed, or did a part; the step has failed, and is undone with the run`,
		Example:           `  musterctl run resolve r-1f4 --step swap --done --reason "pg_database shows the new one"`,
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			resolution, given := coordinatorv1.Resolution_RESOLUTION_UNSPECIFIED, 0
			for _, r := range []struct {
				set  bool
				mean coordinatorv1.Resolution
			}{{done, coordinatorv1.Resolution_RESOLUTION_DONE}, {notDone, coordinatorv1.Resolution_RESOLUTION_NOT_DONE}, {failed, coordinatorv1.Resolution_RESOLUTION_FAILED}} {
				if r.set {
					resolution, given = r.mean, given+1
				}
			}
			id := runID(args[0])
			if given != 1 {
				return output.Usage("musterctl run resolve "+id+" --done", "say one of --done, --not-done and --failed, not %d of them", given)
			}
			return a.control(cmd.Context(), &c, control{id: id, what: "run " + id + " did not get the word",
				call: func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error) {
					answer, err := runs.ResolveStep(ctx, &coordinatorv1.ResolveStepRequest{
						RunId: id, StepId: step, Resolution: resolution, RequestId: request, Reason: c.reason,
					})
					return answer.GetRun(), err
				}})
		},
	}
	c.requestFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&done, "done", false, "it had its whole effect")
	f.BoolVar(&notDone, "not-done", false, "it had no effect: it is done again")
	f.BoolVar(&failed, "failed", false, "it failed, or had a part of its effect")
	f.StringVar(&step, "step", "", "step that is meant, if the run asks more than one question")
	f.StringVar(&c.reason, "reason", "", "how it was found out; it is kept with the step")
	return cmd
}

func (a *app) lockCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the locks that runs hold", Args: exactly(),
		Long: `A run holds the locks of what it changes from its start to its end, so that no two runs change the same thing. Agents refuse what carries an
older fence than the newest that they saw.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs, err := a.runs()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := runs.ListLocks(ctx, &coordinatorv1.ListLocksRequest{})
			if err != nil {
				return a.fail("locks cannot be listed", err, nil)
			}
			d := output.Data{Kind: "Lock", Empty: "no lock is held", Columns: []output.Column{
				{Title: "LOCK"}, {Title: "RUN"}, {Title: "FENCE"}, {Title: "AGE"}, {Title: "BY"}, {Title: "WHY"},
			}}
			for _, l := range answer.GetLocks() {
				d.Items = append(d.Items, l)
				d.Names = append(d.Names, "lock/"+l.GetName())
				d.Rows = append(d.Rows, []string{l.GetName(), l.GetRunId(), number(l.GetFence()), output.Age(l.GetTakenAt(), a.Now()), who(l.GetOwner()), l.GetReason()})
			}
			return a.printer().Print(d)
		},
	}
	return a.noun("lock", "Show what is locked, and by which run", list)
}

package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/follow"
	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) runCommand() *cobra.Command {
	return a.noun("run", "Show, watch and control runs",
		a.runListCommand(), a.runShowCommand(), a.runWatchCommand(), a.runCancelCommand(), a.runPauseCommand(), a.runResumeCommand(),
		a.runDecideCommand("approve", "Say yes to a run that asks for approval", true),
		a.runDecideCommand("reject", "Say no to a run that asks for approval", false), a.runResolveCommand())
}

// runID takes run/r-1f4 as well as r-1f4.
func runID(arg string) string { return strings.TrimPrefix(arg, "run/") }

func (a *app) runs() (coordinatorv1.RunServiceClient, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	return coordinatorv1.NewRunServiceClient(a.client), nil
}

func (a *app) runListCommand() *cobra.Command {
	var request coordinatorv1.ListRunsRequest
	limit := uint32(50)
	cmd := &cobra.Command{
		Use: "list", Short: "List runs, newest first", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs, more, err := a.listRuns(cmd.Context(), &request, int(limit))
			if err != nil {
				return err
			}
			d := output.Data{Kind: "Run", Empty: "there is no run", Columns: []output.Column{
				{Title: "RUN"}, {Title: "STATE", State: true}, {Title: "STEPS"}, {Title: "AGE"}, {Title: "STACK"}, {Title: "PROCEDURE"},
				{Title: "BY"}, {Title: "REASON", Wide: true}, {Title: "CAUSE", Wide: true},
			}}
			for _, r := range runs {
				d.Items = append(d.Items, r)
				d.Names = append(d.Names, "run/"+r.GetId())
				d.Rows = append(d.Rows, []string{r.GetId(), output.Word(r.GetState(), "RUN_STATE_"),
					fmt.Sprintf("%d/%d", r.GetStepsSettled(), r.GetStepsTotal()), output.Age(r.GetCreatedAt(), a.Now()), r.GetStack(), r.GetProcedure(),
					who(r.GetCreatedBy()), r.GetReason(), r.GetCause()})
			}
			if err := a.printer().Print(d); err != nil {
				return err
			}
			if more {
				a.note("there are more; --limit %d shows them", 2*limit)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&request.Stack, "stack", "", "only runs of this stack")
	cmd.Flags().StringVar(&request.Procedure, "procedure", "", "only runs of this procedure, like rolling-update")
	cmd.Flags().BoolVar(&request.Active, "active", false, "only runs that have not ended")
	cmd.Flags().Uint32Var(&limit, "limit", limit, "how many to list")
	_ = cmd.RegisterFlagCompletionFunc("stack", a.completeStacks)
	return cmd
}

func (a *app) listRuns(ctx context.Context, request *coordinatorv1.ListRunsRequest, limit int) (runs []*coordinatorv1.Run, more bool, err error) {
	client, err := a.runs()
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	for len(runs) < limit {
		request.PageSize = uint32(min(limit-len(runs), 500))
		answer, err := client.ListRuns(ctx, request)
		if err != nil {
			return nil, false, a.fail("runs cannot be listed", err, nil)
		}
		runs = append(runs, answer.GetRuns()...)
		if request.PageToken = answer.GetNextPageToken(); request.PageToken == "" {
			return runs, false, nil
		}
	}
	return runs, true, nil
}

func (a *app) runShowCommand() *cobra.Command {
	var plan bool
	cmd := &cobra.Command{
		Use: "show RUN", Short: "Show a run: its steps, and why it does not move", Args: exactly("RUN"),
		ValidArgsFunction: a.completeRuns(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.runs()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			id := runID(args[0])
			answer, err := client.GetRun(ctx, &coordinatorv1.GetRunRequest{RunId: id, Plan: plan})
			if err != nil {
				return a.fail("run "+id+" cannot be shown", err, nil)
			}
			return a.printer().Print(output.Data{
				Kind: "Run", Items: []proto.Message{answer}, Names: []string{"run/" + answer.GetRun().GetId()},
				Text: func(w io.Writer, wide bool) { a.writeRun(w, answer, wide) },
			})
		},
	}
	cmd.Flags().BoolVar(&plan, "plan", false, "show the plan of the run as well")
	return cmd
}

func (a *app) writeRun(w io.Writer, answer *coordinatorv1.GetRunResponse, wide bool) {
	r, now := answer.GetRun(), a.Now()
	pairs := [][2]string{
		{"run", r.GetId() + "  " + r.GetTitle()},
		{"state", output.Word(r.GetState(), "RUN_STATE_")},
		{"cause", r.GetCause()},
		{"steps", fmt.Sprintf("%d of %d settled", r.GetStepsSettled(), r.GetStepsTotal())},
		{"started", output.Age(r.GetCreatedAt(), now) + " ago by " + who(r.GetCreatedBy())},
		{"reason", r.GetReason()},
		{"locks", strings.Join(r.GetLocks(), ", ")},
		{"plan", r.GetPlanHash()},
	}
	if r.GetFinishedAt() != nil {
		pairs = append(pairs, [2]string{"ended", output.Age(r.GetFinishedAt(), now) + " ago, after " +
			output.Span(r.GetFinishedAt().AsTime().Sub(r.GetCreatedAt().AsTime()))})
	} else if d := r.GetDeadline(); d != nil {
		pairs = append(pairs, [2]string{"deadline", "in " + output.Span(d.AsTime().Sub(now))})
	}
	writePairs(w, pairs)
	for _, b := range answer.GetBlockers() {
		_, _ = fmt.Fprintln(w, a.style(a.Stdout).Paint(output.ToneWarn, output.Clean(follow.Blocked(b, now, true))))
	}
	var rows [][]string
	for _, s := range answer.GetSteps() {
		took := ""
		switch {
		case s.GetStartedAt() == nil:
		case s.GetFinishedAt() != nil:
			took = output.Span(s.GetFinishedAt().AsTime().Sub(s.GetStartedAt().AsTime()))
		default:
			took = output.Age(s.GetStartedAt(), now)
		}
		rows = append(rows, []string{s.GetStepId(), s.GetHost(), output.Word(s.GetState(), "STEP_STATE_"), number(uint64(s.GetAttempt())), took,
			s.GetTitle(), follow.Why(s)})
	}
	if len(rows) > 0 {
		_, _ = fmt.Fprintln(w)
		output.WriteTable(w, []output.Column{{Title: "STEP"}, {Title: "HOST"}, {Title: "STATE", State: true}, {Title: "ATTEMPT"}, {Title: "TOOK"},
			{Title: "WHAT", Wide: true}, {Title: "FAILURE"}}, rows, wide, a.style(a.Stdout))
	}
	for _, s := range answer.GetSteps() {
		if lines := output.Lines(s.GetFailure().GetEvidence()); len(lines) > 0 {
			_, _ = fmt.Fprintf(w, "\n%s on %s, what was seen:\n    %s\n", output.Clean(s.GetStepId()), output.Clean(s.GetHost()), strings.Join(lines, "\n    "))
		}
	}
	if p := answer.GetPlan(); p != nil {
		_, _ = fmt.Fprintln(w)
		writePlan(w, p, nil, true, a.style(a.Stdout))
	}
}

func (a *app) runWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watch RUN", Short: "Follow a run to its end", Args: exactly("RUN"),
		Long: `Watch follows a run from its start to its end and exits with the code of its state (musterctl help exit-codes).

With -o json every change is one line of JSON.`,
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			return a.follow(cmd.Context(), followed{id: runID(args[0]), data: true})
		},
	}
}

func (a *app) runCancelCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "cancel RUN", Short: "Start no further step and take back what was done", Args: exactly("RUN"),
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := runID(args[0])
			return a.control(cmd.Context(), &c, control{id: id, what: "run " + id + " was not cancelled",
				question: "cancel run/" + id + " and take back what it did",
				call: func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error) {
					answer, err := runs.CancelRun(ctx, &coordinatorv1.CancelRunRequest{RunId: id, RequestId: request, Reason: c.reason})
					return answer.GetRun(), err
				}, follow: true, cancelled: true})
		},
	}
	c.runFlags(cmd)
	return cmd
}

func (a *app) runPauseCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "pause RUN", Short: "Start no further step until the run is resumed", Args: exactly("RUN"),
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := runID(args[0])
			return a.control(cmd.Context(), &c, control{id: id, what: "run " + id + " was not paused",
				call: func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error) {
					answer, err := runs.PauseRun(ctx, &coordinatorv1.PauseRunRequest{RunId: id, RequestId: request, Reason: c.reason})
					return answer.GetRun(), err
				}})
		},
	}
	c.requestFlags(cmd)
	cmd.Flags().StringVar(&c.reason, "reason", "", "why; it is kept with the run")
	return cmd
}

func (a *app) runResumeCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "resume RUN", Short: "Let a paused run go on", Args: exactly("RUN"),
		ValidArgsFunction: a.completeRuns(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := runID(args[0])
			return a.control(cmd.Context(), &c, control{id: id, what: "run " + id + " was not resumed",
				call: func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error) {
					answer, err := runs.ResumeRun(ctx, &coordinatorv1.ResumeRunRequest{RunId: id, RequestId: request, Reason: c.reason})
					return answer.GetRun(), err
				}, follow: true})
		},
	}
	c.runFlags(cmd)
	return cmd
}

// control is a word to a run.
type control struct {
	id, what string
	// question is asked first; empty asks nothing.
	question string
	call     func(ctx context.Context, runs coordinatorv1.RunServiceClient, request string) (*coordinatorv1.Run, error)
	// follow the run afterwards; cancelled is the end that is wanted.
	follow, cancelled bool
}

func (a *app) control(ctx context.Context, c *change, how control) error {
	runs, err := a.runs()
	if err != nil {
		return err
	}
	if how.question != "" {
		if err := a.confirm(ctx, c, how.question); err != nil {
			return err
		}
	}
	request, err := a.request(c)
	if err != nil {
		return err
	}
	limited, cancel := a.call(ctx)
	defer cancel()
	r, err := how.call(limited, runs, request)
	if err != nil {
		show := "musterctl run show " + how.id
		return a.fail(how.what, err, map[string]string{
			"RUN_FINISHED": show, "RUN_NOT_RUNNING": show, "RUN_NOT_PAUSED": show, "STEP_NOT_ASKING": show, "PLAN_CHANGED": show,
		})
	}
	if !how.follow || c.detach {
		return a.printRun(r, "run/"+r.GetId()+" is "+output.Word(r.GetState(), "RUN_STATE_"))
	}
	return a.follow(ctx, followed{run: r, known: true, cancelled: how.cancelled})
}

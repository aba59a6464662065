package command

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// procedureSchema is made from the message Procedure and the registry of actions by the tests of the coordinator's package definition.
//
//go:embed procedure.schema.json
var procedureSchema []byte

// maxProcedure is the coordinators' own limit.
const maxProcedure = 128 << 10

func (a *app) procedureCommand() *cobra.Command {
	return a.noun("procedure", "Write, check and run procedures of your own",
		a.procedureLintCommand(), a.procedurePlanCommand(), a.procedureRunCommand(), a.procedurePutCommand(), a.procedureListCommand(),
		a.procedureShowCommand(), a.procedureHistoryCommand(), a.procedureDeleteCommand(), a.procedureSchemaCommand())
}

func (a *app) procedures() (coordinatorv1.ProcedureServiceClient, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	return coordinatorv1.NewProcedureServiceClient(a.client), nil
}

// readProcedure reads the file of a procedure.
func (a *app) readProcedure(file string) ([]byte, error) {
	path := file
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.WorkingDirectory, path)
	}
	source, err := os.ReadFile(path)
	switch {
	case err != nil:
		return nil, output.Usage("musterctl procedure lint FILE", "the procedure cannot be read: %v", err)
	case len(source) == 0:
		return nil, output.Usage("", "%s is empty", file)
	case len(source) > maxProcedure:
		return nil, output.Usage("", "%s is larger than %d bytes, which is the limit", file, maxProcedure)
	}
	return source, nil
}

func (a *app) procedureLintCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lint FILE…", Short: "Check files, and change nothing",
		Long: `Lint checks files as the coordinators read them: one line for each finding, with its place and its code.
It exits with 1 if there is an error; a warning does not prevent a run.`,
		Args: atLeastOne("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.procedures()
			if err != nil {
				return err
			}
			d, errors := output.Data{Kind: "Finding"}, 0
			for _, file := range args {
				source, err := a.readProcedure(file)
				if err != nil {
					return err
				}
				ctx, cancel := a.call(cmd.Context())
				answer, err := client.LintProcedure(ctx, &coordinatorv1.LintProcedureRequest{File: file, Source: source})
				cancel()
				if err != nil {
					return a.fail(file+" was not checked", err, nil)
				}
				for _, f := range answer.GetFindings() {
					d.Items = append(d.Items, f)
					d.Names = append(d.Names, findingLine(f))
					if f.GetSeverity() == "error" {
						errors++
					}
				}
			}
			d.Text = func(w io.Writer, _ bool) {
				for _, line := range d.Names {
					_, _ = fmt.Fprintln(w, output.Clean(line))
				}
				if len(d.Names) == 0 {
					_, _ = fmt.Fprintln(w, "nothing to say against "+output.Clean(strings.Join(args, ", ")))
				}
			}
			if err := a.printer().Print(d); err != nil {
				return err
			}
			if errors > 0 {
				return output.Exit{Code: output.CodeFailed}
			}
			return nil
		},
	}
}

func findingLine(f *coordinatorv1.Finding) string {
	return fmt.Sprintf("%s:%d:%d: %s %s: %s", f.GetFile(), f.GetLine(), f.GetColumn(), f.GetSeverity(), f.GetCode(), f.GetMessage())
}

// procedureInputs holds the inputs of a procedure.
type procedureInputs struct{ given []string }

func (p *procedureInputs) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&p.given, "input", "i", nil, "input as NAME=VALUE; the items of a list are separated by commas")
}

func (p *procedureInputs) values() (map[string]string, error) {
	values := map[string]string{}
	for _, given := range p.given {
		name, value, ok := strings.Cut(given, "=")
		if _, twice := values[name]; !ok || name == "" || twice {
			return nil, output.Usage("-i NAME=VALUE", "input %q is no NAME=VALUE, or is given twice", given)
		}
		values[name] = value
	}
	return values, nil
}

func (a *app) procedurePlanCommand() *cobra.Command {
	c := change{dryRun: true}
	var inputs procedureInputs
	cmd := &cobra.Command{
		Use: "plan NAME|FILE", Short: "Show what a run would do, and change nothing", Args: exactly("NAME|FILE"),
		ValidArgsFunction: a.completeProcedures,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runProcedure(cmd.Context(), &c, args[0], &inputs)
		},
	}
	inputs.add(cmd)
	c.exitFlag(cmd)
	return cmd
}

func (a *app) procedureRunCommand() *cobra.Command {
	var c change
	var inputs procedureInputs
	cmd := &cobra.Command{
		Use: "run NAME|FILE", Short: "Plan a procedure, show the plan, and run it", Args: exactly("NAME|FILE"),
		Long: `Run plans a stored procedure, or one in a file, shows the plan, asks, and runs it.

The run is followed until it ends. Where it asks people, it waits for them: musterctl run approve.`,
		Example: `  musterctl procedure run maintenance -i schema=2026-11 --reason "window of Tuesday"
  musterctl procedure run ./maintenance.yaml -i schema=2026-11 --dry-run`,
		ValidArgsFunction: a.completeProcedures,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runProcedure(cmd.Context(), &c, args[0], &inputs)
		},
	}
	inputs.add(cmd)
	c.planFlags(cmd)
	return cmd
}

// isFile says that an argument names a file and not a stored procedure, whose names have neither dots nor slashes.
func isFile(arg string) bool { return strings.ContainsAny(arg, "./\\") }

func (a *app) runProcedure(ctx context.Context, c *change, arg string, inputs *procedureInputs) error {
	values, err := inputs.values()
	if err != nil {
		return err
	}
	request := &coordinatorv1.StartProcedureRequest{Inputs: values, Reason: c.reason}
	if isFile(arg) {
		if request.Source, err = a.readProcedure(arg); err != nil {
			return err
		}
		request.File = arg
	} else {
		request.Name = arg
	}
	client, err := a.procedures()
	if err != nil {
		return err
	}
	return a.carryOut(ctx, c, carriage{
		name: "procedure " + arg, titled: true, ask: true,
		plan: func(ctx context.Context, dryRun bool, hash string) (planned, error) {
			ask := proto.CloneOf(request)
			ask.DryRun, ask.PlanHash, ask.RequestId = dryRun, hash, a.requestID
			answer, err := client.StartProcedure(ctx, ask)
			return planned{answer.GetPlan(), answer.GetRun(), answer.GetWarnings()}, a.fail("procedure "+arg+" was not started", err, nil)
		},
	})
}

func (a *app) procedurePutCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "put FILE", Short: "Store a version of a procedure", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := a.readProcedure(args[0])
			if err != nil {
				return err
			}
			client, err := a.procedures()
			if err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := client.PutProcedure(ctx, &coordinatorv1.PutProcedureRequest{File: args[0], Source: source, RequestId: request})
			if err != nil {
				return a.fail(args[0]+" was not stored", err, nil)
			}
			for _, f := range answer.GetFindings() {
				a.note("%s", findingLine(f))
			}
			p := answer.GetProcedure()
			return a.printer().Print(output.Data{
				Kind: "Procedure", Items: []proto.Message{p}, Names: []string{"procedure/" + p.GetName()},
				Text: func(w io.Writer, _ bool) {
					_, _ = fmt.Fprintf(w, "procedure/%s has version %d now\n", output.Clean(p.GetName()), p.GetVersion())
				},
			})
		},
	}
	c.requestFlags(cmd)
	return cmd
}

func (a *app) procedureListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List stored procedures", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.listProcedures(cmd.Context())
			if err != nil {
				return err
			}
			d := output.Data{Kind: "Procedure", Empty: "there is no procedure; musterctl procedure put FILE stores one", Columns: []output.Column{
				{Title: "NAME"}, {Title: "VERSION"}, {Title: "AGE"}, {Title: "BY"}, {Title: "TITLE"}, {Title: "DIGEST", Wide: true}}}
			for _, p := range all {
				d.Items = append(d.Items, p)
				d.Names = append(d.Names, "procedure/"+p.GetName())
				d.Rows = append(d.Rows, []string{p.GetName(), fmt.Sprint(p.GetVersion()), output.Age(p.GetStoredAt(), a.Now()), who(p.GetStoredBy()), p.GetTitle(), p.GetDigest()})
			}
			return a.printer().Print(d)
		},
	}
}

func (a *app) listProcedures(ctx context.Context) ([]*coordinatorv1.StoredProcedure, error) {
	client, err := a.procedures()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	answer, err := client.ListProcedures(ctx, &coordinatorv1.ListProceduresRequest{})
	return answer.GetProcedures(), a.fail("procedures cannot be listed", err, nil)
}

func (a *app) procedureShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show the text of a stored procedure", Args: exactly("NAME"), ValidArgsFunction: a.completeProcedures,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.procedures()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := client.GetProcedure(ctx, &coordinatorv1.GetProcedureRequest{Name: args[0]})
			if err != nil {
				return a.fail("procedure "+args[0]+" cannot be shown", err, nil)
			}
			p := answer.GetProcedure()
			return a.printer().Print(output.Data{
				Kind: "Procedure", Items: []proto.Message{p}, Names: []string{"procedure/" + p.GetName()},
				Text: func(w io.Writer, _ bool) {
					for line := range strings.Lines(string(p.GetSource())) {
						_, _ = fmt.Fprintln(w, output.Clean(strings.TrimRight(line, "\r\n")))
					}
				},
			})
		},
	}
}

func (a *app) procedureHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history NAME", Short: "List the runs of a procedure, newest first", Args: exactly("NAME"), ValidArgsFunction: a.completeProcedures,
		RunE: func(cmd *cobra.Command, args []string) error {
			runs, _, err := a.listRuns(cmd.Context(), &coordinatorv1.ListRunsRequest{}, historyLimit)
			if err != nil {
				return err
			}
			d := output.Data{Kind: "Run", Empty: "procedure " + args[0] + " has not been run", Columns: []output.Column{
				{Title: "RUN"}, {Title: "STATE", State: true}, {Title: "STEPS"}, {Title: "AGE"}, {Title: "BY"}, {Title: "REASON"}, {Title: "CAUSE", Wide: true}}}
			for _, r := range runs {
				if r.GetProcedure() != args[0] {
					continue
				}
				d.Items = append(d.Items, r)
				d.Names = append(d.Names, "run/"+r.GetId())
				d.Rows = append(d.Rows, []string{r.GetId(), output.Word(r.GetState(), "RUN_STATE_"), fmt.Sprintf("%d/%d", r.GetStepsSettled(), r.GetStepsTotal()),
					output.Age(r.GetCreatedAt(), a.Now()), who(r.GetCreatedBy()), r.GetReason(), r.GetCause()})
			}
			return a.printer().Print(d)
		},
	}
}

// historyLimit is more than the runs that the coordinators keep.
const historyLimit = 1000

func (a *app) procedureDeleteCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Forget a stored procedure; its runs stay", Args: exactly("NAME"), ValidArgsFunction: a.completeProcedures,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.procedures()
			if err != nil {
				return err
			}
			if err := a.confirm(cmd.Context(), &c, "forget procedure "+args[0]); err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			if _, err := client.DeleteProcedure(ctx, &coordinatorv1.DeleteProcedureRequest{Name: args[0], RequestId: request}); err != nil {
				return a.fail("procedure "+args[0]+" was not deleted", err, nil)
			}
			return a.printer().Print(output.Data{Kind: "Procedure", Names: []string{"procedure/" + args[0]}, Text: func(w io.Writer, _ bool) {
				_, _ = fmt.Fprintln(w, "procedure/"+output.Clean(args[0])+" is gone")
			}})
		},
	}
	c.requestFlags(cmd)
	cmd.Flags().BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) procedureSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON schema of procedures, for editors", Args: exactly(),
		Long: `Schema prints what editors need to complete and to check procedures while they are written. With the YAML language server, write it
to a file and begin the procedure with the line
  # yaml-language-server: $schema=procedure.schema.json`,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Stdout.Write(procedureSchema)
			return err
		},
	}
}

func (a *app) completeProcedures(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := a.live(cmd, args, prefix, func(ctx context.Context) []string {
		all, err := a.listProcedures(ctx)
		if err != nil {
			return nil
		}
		var names []string
		for _, p := range all {
			names = append(names, p.GetName())
		}
		return names
	})
	return names, cobra.ShellCompDirectiveDefault
}

// atLeastOne checks that there are arguments, of which there may be many.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return output.Usage(cmd.CommandPath()+" "+name, "%s is missing", name)
		}
		return nil
	}
}

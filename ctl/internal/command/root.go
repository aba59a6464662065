package command

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spheroseg/muster/ctl/internal/output"
)

const defaultTimeout = 30 * time.Second

// root returns the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "musterctl",
		Short: "Operate a fleet by procedures that are planned, guarded and resumable",
		Long: `musterctl operates a fleet through any of its coordinators.

Every change is a run: it is planned first, followed live, and goes on without this program.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          help,
		Args:          a.unknownCommand,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.settle(cmd)
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.context, "context", "", "cluster to work with, by its name in the configuration")
	f.StringVar(&a.server, "server", "", "coordinators to ask instead of the context's, as HOST:PORT[,HOST:PORT…]")
	f.StringVarP(&a.format, "output", "o", string(output.FormatTable), "format of the data: "+strings.Join(output.Formats(), ", "))
	f.DurationVar(&a.timeout, "timeout", defaultTimeout, "how long to try; when given, it bounds the following of a run as well")
	f.StringVar(&a.progress, "progress", "auto", "how a run is followed: "+strings.Join(progressModes(), ", "))
	f.StringVar(&a.color, "color", "auto", "when to use colours: auto, always, never")
	f.BoolVar(&a.noInput, "no-input", false, "never ask")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "show more: steps of plans, and codes, servers and request ids of errors")
	root.SetFlagErrorFunc(a.flagError)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetHelpCommandGroupID("")
	a.completeFlags(root)
	root.AddCommand(
		a.loginCommand(), a.statusCommand(), a.versionCommand(),
		a.hostCommand(), a.stackCommand(), a.serviceCommand(), a.runCommand(), a.procedureCommand(), a.lockCommand(), a.secretCommand(), a.operatorCommand(),
	)
	root.AddCommand(topics()...)
	return root
}

func progressModes() []string { return []string{"auto", "tty", "plain", "json", "quiet"} }

// settle checks the global flags, and takes those that were not given from the environment.
func (a *app) settle(cmd *cobra.Command) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err != nil || f.Changed || cmd.Root().PersistentFlags().Lookup(f.Name) == nil {
			return
		}
		variable := "MUSTERCTL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := a.Env(variable); ok && value != "" {
			if e := cmd.Flags().Set(f.Name, value); e != nil {
				err = output.Usage("musterctl help environment", "%s=%q: %v", variable, value, e)
			}
		}
	})
	if err != nil {
		return err
	}
	a.timeoutSet = cmd.Flags().Changed("timeout")
	for _, c := range []struct {
		flag, value string
		allowed     []string
	}{
		{"--output", a.format, output.Formats()},
		{"--progress", a.progress, progressModes()},
		{"--color", a.color, []string{"auto", "always", "never"}},
	} {
		if !slices.Contains(c.allowed, c.value) {
			return output.Usage(c.flag+" "+first(output.Nearest(c.value, c.allowed), c.allowed[0]),
				"%s %q is not one of %s", c.flag, c.value, strings.Join(c.allowed, ", "))
		}
	}
	if a.timeout <= 0 {
		return output.Usage("--timeout 30s", "--timeout %s is not positive", a.timeout)
	}
	return nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// noun returns a command that only groups its verbs.
func (a *app) noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, RunE: help, Args: a.unknownCommand}
	cmd.AddCommand(verbs...)
	return cmd
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// unknownCommand refuses what is no command, and names the nearest.
func (a *app) unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			names = append(names, c.Name())
		}
	}
	hint := cmd.CommandPath() + " --help"
	if near := output.Nearest(args[0], names); near != "" {
		hint = strings.Join(append([]string{cmd.CommandPath(), near}, args[1:]...), " ")
	}
	return output.Usage(hint, "%s has no command %q", cmd.CommandPath(), args[0])
}

// flagError names the nearest flag for one that does not exist. Flags of a command that does not exist are not the mistake.
func (a *app) flagError(cmd *cobra.Command, err error) error {
	if cmd.HasSubCommands() && cmd.Flags().NArg() > 0 {
		return a.unknownCommand(cmd, cmd.Flags().Args())
	}
	hint := cmd.CommandPath() + " --help"
	if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := output.Nearest(name, names); near != "" {
			hint = cmd.CommandPath() + " --" + near
		}
	}
	return output.Usage(hint, "%v", err)
}

// topics are pages of help without a command.
func topics() []*cobra.Command {
	var codes strings.Builder
	codes.WriteString("Exit codes of musterctl:\n\n")
	for _, c := range output.Codes() {
		fmt.Fprintf(&codes, "  %3d  %s\n", c.Code, c.Meaning)
	}
	environment := `Variables that musterctl reads. A flag goes before its variable, a variable before the context.

  MUSTERCTL_CONFIG      configuration file; default $XDG_CONFIG_HOME/musterctl/config.yaml
  MUSTERCTL_CONTEXT     --context, and so on for every global flag:
  MUSTERCTL_SERVER      --server
  MUSTERCTL_OUTPUT      --output
  MUSTERCTL_TIMEOUT     --timeout
  MUSTERCTL_PROGRESS    --progress
  MUSTERCTL_COLOR       --color
  MUSTERCTL_NO_INPUT    --no-input
  MUSTERCTL_VERBOSE     --verbose
  NO_COLOR              no colours, whatever its value
  TERM                  "dumb": no colours and no live rows
  XDG_CONFIG_HOME       default ~/.config
  XDG_STATE_HOME        keys and certificates are below it; default ~/.local/state
  COMPOSE_FILE          files of "stack apply" and "stack diff" without -f, separated by colons
  COMPOSE_PROFILES      profiles without --profile, separated by commas
  COMPOSE_PROJECT_NAME  name of the stack without --name

Variables that a compose file names are taken from the environment and sent with it; no others are.
`
	return []*cobra.Command{
		{Use: "exit-codes", Short: "What the exit codes mean", Long: codes.String()},
		{Use: "environment", Short: "Variables that musterctl reads", Long: environment},
	}
}

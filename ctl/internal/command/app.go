// Package command owns the commands of musterctl: one file for each noun, with its verbs, flags and calls. How things are
// written is package output's concern, and how a run is watched package follow's.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/client"
	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Options are what a run of musterctl has to do with the world.
type Options struct {
	// Args without the program's name.
	Args []string
	// Stdin, Stdout and Stderr of the process.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Env looks up a variable, as os.LookupEnv does.
	Env func(name string) (string, bool)
	// Now is the clock that ages are counted from.
	Now func() time.Time
	// WorkingDirectory to which relative file names refer.
	WorkingDirectory string
	// Interrupts are Ctrl-C and the request to terminate.
	Interrupts <-chan os.Signal
}

// app is one run of musterctl: its flags, and the connection once a command needs it.
type app struct {
	Options

	context  string
	server   string
	format   string
	timeout  time.Duration
	progress string
	color    string
	noInput  bool
	verbose  bool

	// timeoutSet says that the user set the timeout: then it bounds the following of a run, too.
	timeoutSet bool
	client     *client.Client
	silent     bool // about waiting, where the answer is not worth it.
	requestID  string
	router     *router
}

// Run runs musterctl and returns its exit code.
func Run(ctx context.Context, o Options) int {
	a := &app{Options: o}
	root := a.root()
	root.SetArgs(o.Args)
	root.SetIn(o.Stdin)
	root.SetOut(o.Stdout)
	root.SetErr(o.Stderr)
	ctx, stop := a.interruptible(ctx)
	defer stop()
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		err = errors.Join(err, a.client.Close())
	}
	output.Render(o.Stderr, err, a.style(o.Stderr), a.verbose)
	return int(output.CodeOf(err))
}

// printer writes data to standard output.
func (a *app) printer() *output.Printer {
	return &output.Printer{Out: a.Stdout, Notes: a.Stderr, Format: output.Format(a.format), Style: a.style(a.Stdout)}
}

// table tells whether data is written for a person.
func (a *app) table() bool {
	return a.format == string(output.FormatTable) || a.format == string(output.FormatWide)
}

// style says whether colours go to w.
func (a *app) style(w io.Writer) output.Style {
	switch a.color {
	case "always":
		return output.Style{Color: true}
	case "never":
		return output.Style{}
	}
	_, no := a.Env("NO_COLOR")
	return output.Style{Color: !no && a.terminal(w)}
}

// note writes a line for the person, beside the data.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintln(a.Stderr, output.Clean(fmt.Sprintf(format, args...)))
}

// load returns the configuration and where it is.
func (a *app) load() (*config.File, config.Paths, error) {
	paths, err := config.Locate(a.Env)
	if err != nil {
		return nil, paths, output.Usage("set HOME or MUSTERCTL_CONFIG", "there is no place for the configuration: %v", err)
	}
	file, err := config.Load(paths.Config)
	if err != nil {
		return nil, paths, &output.Error{What: "the configuration cannot be used", Cause: err.Error(),
			Hint: "correct " + paths.Config + ", or move it away and log in again", Code: output.CodeUsage}
	}
	return file, paths, nil
}

// errNoContext says that nobody has logged in.
func errNoContext() error {
	return &output.Error{
		What:  "no cluster is configured",
		Cause: "nobody has logged in with this configuration",
		Hint:  "musterctl login --coordinator HOST:PORT --token-file FILE",
		Code:  output.CodeDenied,
	}
}

// currentContext returns the cluster to work with.
func (a *app) currentContext() (config.Context, error) {
	file, _, err := a.load()
	if err != nil {
		return config.Context{}, err
	}
	if c, ok := file.Context(a.context); ok {
		return c, nil
	}
	if len(file.Contexts) == 0 {
		return config.Context{}, errNoContext()
	}
	name := a.context
	if name == "" {
		name = file.Current
	}
	e := &output.Error{What: fmt.Sprintf("there is no context %q", name),
		Cause: "the configuration has " + strings.Join(file.Names(), ", "), Code: output.CodeUsage}
	if near := output.Nearest(name, file.Names()); near != "" {
		e.Hint = "--context " + near
	}
	return config.Context{}, e
}

// connect opens the connection to the cluster, once.
func (a *app) connect() error {
	if a.client != nil {
		return nil
	}
	c, err := a.currentContext()
	if err != nil {
		return err
	}
	creds, err := identity.LoadCredentials(c.Credentials)
	if err != nil {
		return &output.Error{What: fmt.Sprintf("the keys of context %q cannot be used", c.Name), Cause: err.Error(),
			Hint: "musterctl login --coordinator HOST:PORT --token-file FILE --name " + c.Name, Code: output.CodeDenied}
	}
	if end := creds.NotAfter(); !a.Now().Before(end) {
		return &output.Error{What: fmt.Sprintf("the certificate of context %q has expired", c.Name),
			Cause: fmt.Sprintf("%s was valid until %s", creds.ID(), end.UTC().Format(time.RFC3339)),
			Hint:  "musterctl login --coordinator HOST:PORT --token-file FILE --name " + c.Name, Code: output.CodeDenied}
	}
	addresses := c.Coordinators
	if a.server != "" {
		addresses = splitList(a.server)
	}
	a.client, err = client.New(client.Options{
		Addresses: addresses,
		TLS:       mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC),
		Notify: func(why string) {
			if !a.silent {
				a.note("waiting for a coordinator, up to %s: %s", a.timeout, why)
			}
		},
	})
	if err != nil {
		return output.Usage("--server HOST:PORT[,HOST:PORT…]", "%v", err)
	}
	return nil
}

// learn remembers coordinators that joined after the login, so that losing the ones of that day loses nothing.
func (a *app) learn(peers []*coordinatorv1.Peer) {
	if a.server != "" {
		return
	}
	addresses := make([]string, 0, len(peers))
	for _, p := range peers {
		addresses = append(addresses, p.GetAddress())
	}
	if !a.client.Add(addresses...) {
		return
	}
	file, paths, err := a.load()
	if err != nil {
		return // it was read a moment ago; what matters now is the connection.
	}
	c, ok := file.Context(a.context)
	if !ok {
		return
	}
	current := file.Current
	c.Coordinators = union(c.Coordinators, a.client.Addresses())
	file.Put(c)
	file.Current = current
	if err := file.Save(paths.Config); err != nil {
		a.note("warning: new coordinators are not remembered: %v", err)
	}
}

// learnPeers asks for the coordinators, and goes on without them where nobody answers at once.
func (a *app) learnPeers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*shortTimeout)
	defer cancel()
	a.silent = true
	answer, err := coordinatorv1.NewClusterServiceClient(a.client).ListPeers(ctx, &coordinatorv1.ListPeersRequest{})
	a.silent = false
	if err == nil {
		a.learn(answer.GetPeers())
	}
}

// fail returns the error to show for a call that did not work.
func (a *app) fail(what string, err error, hints map[string]string) error {
	if err == nil {
		return nil
	}
	e := output.FromRPC(what, err, hints)
	if e.Code == output.CodeDeclined && e.Reason == "" && a.router.ended.Load() {
		e.Code = output.CodeInterrupted // gRPC says "cancelled" whoever did it: this time it was we.
	}
	if a.client != nil {
		e.Detail = strings.TrimPrefix(e.Detail+", server "+a.client.Server(), ", ")
	}
	if a.requestID != "" {
		e.Detail += ", request id " + a.requestID
		if e.Code == output.CodeDetached || e.Code == output.CodeUnreachable || e.Reason == "OUTCOME_UNKNOWN" {
			e.Hint = "it is not known whether the request was taken; repeat the command with --request-id " + a.requestID
		}
	}
	return e
}

// call returns a context for unary calls, which --timeout bounds.
func (a *app) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

func splitList(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// exactly returns a check of the number of arguments that says which are missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		use := cmd.CommandPath() + " " + strings.Join(names, " ")
		if len(args) < len(names) {
			return output.Usage(use, "%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return output.Usage(strings.TrimSpace(use), "%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

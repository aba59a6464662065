package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// maxSecret is Docker's own limit.
const maxSecret = 512000

func (a *app) secretCommand() *cobra.Command {
	return a.noun("secret", "Keep the external secrets of stacks", a.secretSetCommand(), a.secretListCommand())
}

func (a *app) secretSetCommand() *cobra.Command {
	var c change
	var file string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Store a new version of a secret", Args: exactly("NAME"),
		Long: `Set stores a value, which comes from standard input, from a file, or from a prompt that does not show it.
It never comes out again. A stack that names the secret takes the newest version with its next release.`,
		Example: "  openssl rand -base64 32 | musterctl secret set jwt_secret\n  musterctl secret set tls_key --from-file key.pem",
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := a.secretValue(cmd.Context(), args[0], file)
			if err != nil {
				return err
			}
			if err := a.connect(); err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := coordinatorv1.NewSecretServiceClient(a.client).PutSecret(ctx, &coordinatorv1.PutSecretRequest{
				Name: args[0], Value: value, RequestId: request,
			})
			if err != nil {
				return a.fail("secret "+args[0]+" was not stored", err, nil)
			}
			s := answer.GetSecret()
			return a.printer().Print(output.Data{
				Kind: "Secret", Items: []proto.Message{s}, Names: []string{"secret/" + s.GetName()},
				Text: func(w io.Writer, _ bool) {
					_, _ = fmt.Fprintf(w, "secret/%s has version %d now\n", output.Clean(s.GetName()), s.GetVersion())
				},
			})
		},
	}
	cmd.Flags().StringVar(&file, "from-file", "", "file that holds the value; it is stored as it is, with the line feed at its end")
	c.requestFlags(cmd)
	_ = cmd.MarkFlagFilename("from-file")
	return cmd
}

// secretValue reads the value. It is never an argument: those show in ps and in the shell's history.
func (a *app) secretValue(ctx context.Context, name, file string) ([]byte, error) {
	var value []byte
	var err error
	switch {
	case file != "" && file != "-":
		if !filepath.IsAbs(file) {
			file = filepath.Join(a.WorkingDirectory, file)
		}
		if value, err = os.ReadFile(file); err != nil {
			return nil, output.Usage("--from-file FILE", "the value cannot be read: %v", err)
		}
	case a.terminal(a.Stdin):
		if !a.interactive() {
			return nil, output.Usage("musterctl secret set "+name+" --from-file FILE", "there is no value: standard input is a terminal, and nobody may be asked")
		}
		_, _ = fmt.Fprintf(a.Stderr, "value of %s (it is not shown): ", output.Clean(name))
		value, err = a.readHidden(ctx)
		_, _ = fmt.Fprintln(a.Stderr)
		if err != nil {
			return nil, a.fail("secret "+name+" was not stored", err, nil)
		}
	default:
		if value, err = io.ReadAll(io.LimitReader(a.Stdin, maxSecret+1)); err != nil {
			return nil, fmt.Errorf("read the value from standard input: %w", err)
		}
	}
	switch {
	case len(value) == 0:
		return nil, output.Usage("musterctl secret set "+name+" --from-file FILE", "the value of %s is empty", name)
	case len(value) > maxSecret:
		return nil, output.Usage("", "the value of %s is larger than %d bytes, which is the limit", name, maxSecret)
	}
	return value, nil
}

func (a *app) secretListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List secrets and their versions, without values", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := coordinatorv1.NewSecretServiceClient(a.client).ListSecrets(ctx, &coordinatorv1.ListSecretsRequest{})
			if err != nil {
				return a.fail("secrets cannot be listed", err, nil)
			}
			d := output.Data{Kind: "Secret", Empty: "there is no secret; musterctl secret set NAME stores one",
				Columns: []output.Column{{Title: "NAME"}, {Title: "VERSION"}, {Title: "AGE"}, {Title: "BY"}}}
			for _, s := range answer.GetSecrets() {
				d.Items = append(d.Items, s)
				d.Names = append(d.Names, "secret/"+s.GetName())
				d.Rows = append(d.Rows, []string{s.GetName(), number(s.GetVersion()), output.Age(s.GetCreatedAt(), a.Now()), who(s.GetCreatedBy())})
			}
			return a.printer().Print(d)
		},
	}
}

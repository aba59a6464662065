package command

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/client"
	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// maxToken bounds what is read as a token.
const maxToken = 4096

func (a *app) loginCommand() *cobra.Command {
	var coordinators []string
	var tokenFile, name string
	cmd := &cobra.Command{
		Use: "login", Short: "Get an identity of a cluster with a token", Args: exactly(),
		Long: `Login makes a key, has it signed by the cluster that made the token, and adds the cluster to the configuration.

The token comes from an admin (musterctl operator user token) or, for the first login, from muster-coordinator init.
It names its cluster: it is sent to no other.`,
		Example: "  musterctl login --coordinator c1.example.org:7443,c2.example.org:7443 --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.login(cmd.Context(), coordinators, tokenFile, name)
		},
	}
	cmd.Flags().StringSliceVar(&coordinators, "coordinator", nil, "address of a coordinator, as HOST:PORT; several are tried in turn")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the token; - reads standard input")
	cmd.Flags().StringVar(&name, "name", "", "name of the context (default: that of the cluster)")
	_ = cmd.MarkFlagFilename("token-file")
	return cmd
}

func (a *app) login(ctx context.Context, coordinators []string, tokenFile, name string) error {
	usage := "musterctl login --coordinator HOST:PORT --token-file FILE"
	if len(coordinators) == 0 && a.server != "" {
		coordinators = splitList(a.server)
	}
	switch {
	case len(coordinators) == 0:
		return output.Usage(usage, "--coordinator is missing: where is the cluster?")
	case tokenFile == "":
		return output.Usage(usage, "--token-file is missing")
	}
	if err := validName("--name", name); err != nil {
		return err
	}
	token, err := a.readToken(tokenFile)
	if err != nil {
		return err
	}
	file, paths, err := a.load()
	if err != nil {
		return err
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	answer, err := a.join(ctx, coordinators, token, csr)
	if err != nil {
		return err
	}
	id, err := identity.Parse(answer.GetIdentity())
	if err != nil {
		return fmt.Errorf("the coordinator's answer: %w", err)
	}
	if err := pinned(answer.GetCaBundle(), token.Pin); err != nil {
		return err
	}
	c := config.Context{
		Name: first(name, id.Cluster), Cluster: answer.GetClusterId(), Identity: answer.GetIdentity(),
		Coordinators: union(coordinators, answer.GetCoordinators()),
	}
	if old, ok := file.Context(c.Name); ok && old.Name == c.Name && old.Cluster != c.Cluster {
		return &output.Error{What: fmt.Sprintf("context %q is another cluster's", c.Name),
			Cause: "the token has been used; a new one is needed", Hint: usage + " --name OTHER", Code: output.CodeUsage}
	}
	c.Credentials = filepath.Join(paths.State, c.Name)
	if err := identity.SaveCredentials(c.Credentials, key, answer.GetCertificateChain(), answer.GetCaBundle()); err != nil {
		return err
	}
	file.Put(c)
	if err := file.Save(paths.Config); err != nil {
		return err
	}
	until := ""
	if t := answer.GetExpiresAt(); t != nil {
		until = ", until " + t.AsTime().UTC().Format(time.DateOnly)
	}
	return a.printer().Print(output.Data{Kind: "Context", Names: []string{"context/" + c.Name}, Text: func(w io.Writer, _ bool) {
		_, _ = fmt.Fprintf(w, "logged in to cluster %s as %s%s; context %s is the current one\n",
			output.Clean(id.Cluster), output.Clean(who(answer.GetIdentity())), until, c.Name)
	}})
}

// readToken reads the token. No message ever holds its text.
func (a *app) readToken(file string) (identity.Token, error) {
	in := a.Stdin
	if file != "-" {
		if !filepath.IsAbs(file) {
			file = filepath.Join(a.WorkingDirectory, file)
		}
		f, err := os.Open(file)
		if err != nil {
			return identity.Token{}, output.Usage("--token-file FILE, or - for standard input", "the token cannot be read: %v", err)
		}
		defer func() { _ = f.Close() }() // it was only read.
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return identity.Token{}, output.Usage("--token-file FILE, or - for standard input", "the token cannot be read: %v", err)
	}
	token, err := identity.ParseToken(strings.TrimSpace(string(raw)))
	if err != nil {
		return token, &output.Error{What: first(strings.TrimPrefix(file, "-"), "standard input") + " holds no token", Cause: err.Error(),
			Hint: "ask an admin for one: musterctl operator user token --for NAME --role operator", Code: output.CodeUsage}
	}
	return token, nil
}

// join burns the token at the first coordinator that answers.
func (a *app) join(ctx context.Context, coordinators []string, token identity.Token, csr []byte) (*coordinatorv1.JoinResponse, error) {
	conn, err := client.New(client.Options{
		Addresses: coordinators, TLS: mtls.Pinned(token.Pin, mtls.ALPNgRPC),
		Notify: func(why string) { a.note("waiting for a coordinator, up to %s: %s", a.timeout, why) },
	})
	if err != nil {
		return nil, output.Usage("--coordinator HOST:PORT", "%v", err)
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	answer, err := coordinatorv1.NewEnrollServiceClient(conn).Join(ctx, &coordinatorv1.JoinRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: csr,
	})
	if err != nil {
		err = a.fail("login did not work", err, map[string]string{
			"NO_LEADER": "repeat the command: the token has not been used",
		})
	}
	return answer, errors.Join(err, conn.Close())
}

// pinned makes sure that what we shall trust from now on holds what the token names.
func pinned(roots [][]byte, pin [32]byte) error {
	for _, der := range roots {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("the coordinator's roots: %w", err)
		}
		if identity.Pin(cert) == pin {
			return nil
		}
	}
	return errors.New("the coordinator's roots do not hold the one that the token names")
}

// union returns a and then what b has besides.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/agent"
	"github.com/spheroseg/muster/internal/logging"
	"github.com/spheroseg/muster/internal/version"
)

const dataDir = "/var/lib/muster-agent"

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "muster-agent", Short: "Serves this host to the coordinators of its cluster", Version: version.Version,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(joinCommand(), runCommand())
	return root
}

func joinCommand() *cobra.Command {
	var o agent.JoinOptions
	var tokenFile string
	cmd := &cobra.Command{
		Use: "join", Short: "Get an identity for this host", Args: cobra.NoArgs,
		Example: "  musterctl host token | muster-agent join --coordinator c1.example:7443 --token-file -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := cmd.InOrStdin()
			if tokenFile != "-" {
				f, err := os.Open(tokenFile)
				if err != nil {
					return fmt.Errorf("--token-file: %w", err)
				}
				defer f.Close()
				in = f
			}
			token, err := io.ReadAll(io.LimitReader(in, 4096))
			if err != nil {
				return fmt.Errorf("read the token: %w", err)
			}
			o.Token = string(token)
			id, err := agent.Join(cmd.Context(), o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Joined as %s. Start it: muster-agent run --data-dir %s\n", id, o.DataDir)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.DataDir, "data-dir", dataDir, "directory for identity, settings and ledger")
	flags.StringSliceVar(&o.Coordinators, "coordinator", nil, "host:port of a coordinator; more than one are asked in turn")
	flags.StringVar(&tokenFile, "token-file", "-", "file that holds the token, - for standard input")
	flags.StringVar(&o.Name, "name", "", "name of the host in the cluster (default the machine's)")
	return cmd
}

func runCommand() *cobra.Command {
	var o agent.Options
	var level, format string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the agent", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Logger, err = logging.New(cmd.ErrOrStderr(), level, format); err != nil {
				return err
			}
			return agent.Run(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.DataDir, "data-dir", dataDir, "directory that join made")
	flags.StringSliceVar(&o.Coordinators, "coordinator", nil, "host:port of a coordinator to start with, besides the stored ones; it tells where all of them are")
	flags.StringVar(&o.DockerHost, "docker-host", "unix:///var/run/docker.sock", "address of the Docker engine")
	flags.StringVar(&o.AdvertiseAddress, "advertise-address", "", "IP address at which published ports are reached (default that of the way to the coordinators)")
	flags.StringToStringVar(&o.Labels, "label", nil, "label of the host for placement, as key=value; may be repeated")
	flags.StringVar(&o.PortRange, "port-range", "20000-29999", "ports of the host from which instances get theirs")
	flags.StringVar(&o.RouteDriver, "route-driver", "", "proxy that this agent drives: caddy, or none")
	flags.StringVar(&o.CaddyAdmin, "caddy-admin", "http://127.0.0.1:2019", "URL of Caddy's admin API")
	flags.StringVar(&o.PolicyFile, "policy", "", "file that says what containers may do on this host")
	flags.StringVar(&o.SecretsDir, "secrets-dir", "", "directory for the files of secrets (default /run/muster/secrets)")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&format, "log-format", "text", "text or json")
	return cmd
}

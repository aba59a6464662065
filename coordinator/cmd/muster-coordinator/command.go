package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/coordinator"
	"github.com/spheroseg/muster/internal/logging"
	"github.com/spheroseg/muster/internal/version"
)

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "muster-coordinator", Short: "Plans and drives procedures on a fleet of hosts", Version: version.Version,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(initCommand(), joinCommand(), runCommand(), inspectCommand(), recoverCommand())
	return root
}

func settingsFlags(cmd *cobra.Command, dir *string, s *coordinator.Settings) {
	cmd.Flags().StringVar(dir, "data-dir", "/var/lib/muster-coordinator", "directory for identity, settings and state")
	cmd.Flags().StringVar(&s.Name, "name", "", "name of this coordinator, like c1")
	cmd.Flags().StringVar(&s.Listen, "listen", ":7443", "address of the one port for gRPC, agents and raft")
	cmd.Flags().StringVar(&s.Advertise, "advertise", "", "host:port at which others reach that port")
	cmd.Flags().StringVar(&s.HTTPListen, "http-listen", ":7480", "address for JSON, metrics and health; empty for none")
}

func initCommand() *cobra.Command {
	var o coordinator.InitOptions
	var tokenFile string
	cmd := &cobra.Command{
		Use: "init", Short: "Found a cluster and its first coordinator", Args: cobra.NoArgs,
		Example: "  muster-coordinator init --name c1 --cluster prod --advertise c1.example:7443 --admin-token-file admin.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logger, err = logging.New(cmd.ErrOrStderr(), "warn", "text"); err != nil {
				return err
			}
			token, err := coordinator.Init(cmd.Context(), o)
			if err != nil {
				return err
			}
			if tokenFile == "-" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
				return err
			}
			if err := coordinator.WriteToken(tokenFile, token); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Start it:   muster-coordinator run --data-dir %s\nThen log in: musterctl login --coordinator %s --token-file %s\n", o.DataDir, o.Advertise, tokenFile)
			return err
		},
	}
	settingsFlags(cmd, &o.DataDir, &o.Settings)
	cmd.Flags().StringVar(&o.ClusterName, "cluster", "", "name of the cluster, like prod")
	cmd.Flags().StringVar(&tokenFile, "admin-token-file", "-", "file for the first administrator's token (24 h, once), - for standard output")
	return cmd
}

func joinCommand() *cobra.Command {
	var o coordinator.JoinOptions
	var tokenFile string
	cmd := &cobra.Command{
		Use: "join", Short: "Get an identity for a further coordinator", Args: cobra.NoArgs,
		Example: "  musterctl operator raft token | muster-coordinator join --name c2 --advertise c2.example:7443 --coordinator c1.example:7443 --token-file -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Token, err = coordinator.ReadToken(tokenFile, cmd.InOrStdin()); err != nil {
				return err
			}
			if err := coordinator.Join(cmd.Context(), o); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Joined. Start it: muster-coordinator run --data-dir %s\n", o.DataDir)
			return err
		},
	}
	settingsFlags(cmd, &o.DataDir, &o.Settings)
	cmd.Flags().StringVar(&o.Coordinator, "coordinator", "", "host:port of a coordinator that runs")
	cmd.Flags().StringVar(&tokenFile, "token-file", "-", "file that holds the token, - for standard input")
	return cmd
}

func runCommand() *cobra.Command {
	var o coordinator.Options
	var level, format string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the coordinator", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logger, err = logging.New(cmd.ErrOrStderr(), level, format); err != nil {
				return err
			}
			return coordinator.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "/var/lib/muster-coordinator", "directory that init or join made")
	cmd.Flags().StringVar(&o.Listen, "listen", "", "override the stored address of the one port")
	cmd.Flags().StringVar(&o.HTTPListen, "http-listen", "", "override the stored address for JSON, metrics and health")
	cmd.Flags().StringVar(&o.UnlockKeyFile, "unlock-key-file", "", "file with the key that seals log and snapshots (default unlock.key in the data directory)")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	return cmd
}

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/coordinator"
)

func offlineFlags(cmd *cobra.Command, o *coordinator.OfflineOptions) {
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "/var/lib/muster-coordinator", "directory of a coordinator that does not run")
	cmd.Flags().StringVar(&o.UnlockKeyFile, "unlock-key-file", "", "file with the key that seals log and snapshots (default unlock.key in the data directory)")
}

func inspectCommand() *cobra.Command {
	var o coordinator.OfflineOptions
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show what the data directory of a stopped coordinator holds", Args: cobra.NoArgs,
		Long: `Inspect reads the whole log of a coordinator that does not run, proves that every entry opens, and prints how far it goes.
Of the coordinators that survived the loss of a quorum, recover the one with the highest last term; among those, the highest last index.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			survey, err := coordinator.Inspect(o)
			if err != nil {
				return err
			}
			return printSurvey(cmd.OutOrStdout(), survey)
		},
	}
	offlineFlags(cmd, &o)
	return cmd
}

func printSurvey(to io.Writer, s coordinator.Survey) error {
	members := make([]string, 0, len(s.Members))
	for _, m := range s.Members {
		member := m.ID + " at " + m.Address
		if !m.Voter {
			member += " (no vote)"
		}
		members = append(members, member)
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"cluster", s.ClusterID}, {"coordinator", s.ID}, {"last term", fmt.Sprint(s.LastTerm)}, {"last index", fmt.Sprint(s.LastIndex)},
		{"snapshot at", fmt.Sprint(s.Snapshot)}, {"log begins at", fmt.Sprint(s.FirstIndex)}, {"term seen", fmt.Sprint(s.Term)},
		{"members", strings.Join(members, ", ")}, {"all entries open", "yes"},
	} {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	return w.Flush()
}

func recoverCommand() *cobra.Command {
	var o coordinator.RecoverOptions
	cmd := &cobra.Command{
		Use: "recover", Short: "Go on with one coordinator after the quorum was lost for good", Args: cobra.NoArgs,
		Long: `Recover makes a stopped coordinator the only member of its cluster, when so many others are lost that no majority will ever meet again.

It commits every entry in this coordinator's log, also those that no majority had. What only the lost ones had is lost. The other coordinators
are evicted: one that starts again is refused and stops. The raft folder is copied before anything is changed.

  1. Stop every coordinator that still runs.
  2. muster-coordinator inspect --data-dir DIR     on each survivor; take the highest last term, then the highest last index
  3. muster-coordinator recover --data-dir DIR --i-have-stopped-all-others     on that one only
  4. muster-coordinator run --data-dir DIR
  5. musterctl operator raft token                 and join new coordinators, under new names, on empty data directories`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := coordinator.Recover(o)
			if err != nil {
				return err
			}
			evicted := "no other coordinator was known"
			if len(done.Evicted) > 0 {
				evicted = "evicted: " + strings.Join(done.Evicted, ", ")
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), `Recovered: %s is the only coordinator of cluster %s, with every entry up to index %d of term %d; %s.
The raft folder as it was: %s
Start it:    muster-coordinator run --data-dir %s
Then let new coordinators join, under new names: musterctl operator raft token
`, done.ID, done.ClusterID, done.LastIndex, done.LastTerm, evicted, done.Copy, o.DataDir)
			return err
		},
	}
	offlineFlags(cmd, &o.OfflineOptions)
	cmd.Flags().BoolVar(&o.OthersStopped, "i-have-stopped-all-others", false, "no other coordinator of this cluster runs, or ever will")
	return cmd
}

package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) raftRemoveCommand() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use: "remove COORDINATOR", Short: "Take a coordinator out of the cluster for good", Args: exactly("COORDINATOR"), ValidArgsFunction: a.completePeers,
		Long: `Remove takes a coordinator out of the cluster, whether it runs or not, and refuses its certificate from then on. If it leads, another one takes
over first. It is refused if those that are left and work would be no majority. A coordinator on the same machine must join under another name.`,
		Example: "  musterctl operator raft remove c3 --reason 'its disk is broken'",
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			if err := a.confirm(cmd.Context(), &c, "take coordinator "+args[0]+" out of the cluster for good"); err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := cluster.RemovePeer(ctx, &coordinatorv1.RemovePeerRequest{Id: args[0], Reason: c.reason, RequestId: request})
			if err != nil {
				return a.fail("coordinator "+args[0]+" was not removed", err, raftHints())
			}
			return a.printer().Print(output.Data{
				Kind: "Peer", Items: peerItems(answer.GetPeers()), Names: peerNames(answer.GetPeers()),
				Text: func(w io.Writer, _ bool) {
					_, _ = fmt.Fprintf(w, "coordinator/%s is out of the cluster, which has %s now\n", output.Clean(args[0]), strings.Join(peerNames(answer.GetPeers()), ", "))
				},
			})
		},
	}
	c.requestFlags(cmd)
	cmd.Flags().BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&c.reason, "reason", "", "why; it is kept in the log")
	return cmd
}

func (a *app) raftTransferCommand() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [COORDINATOR]", Short: "Let another coordinator lead", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completePeers,
		Long: `Transfer lets another coordinator lead: the named one, or the one that is furthest. Runs go on; writes wait for some milliseconds. It is what comes
before the upgrade of the leader. A coordinator that is stopped with SIGTERM hands over by itself.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := cluster.TransferLeadership(ctx, &coordinatorv1.TransferLeadershipRequest{Id: strings.Join(args, "")})
			if err != nil {
				return a.fail("the leadership was not transferred", err, raftHints())
			}
			return a.printer().Print(output.Data{
				Kind: "Transfer", Items: []proto.Message{answer}, Names: []string{"coordinator/" + answer.GetLeader()},
				Text: func(w io.Writer, _ bool) {
					_, _ = fmt.Fprintf(w, "coordinator/%s leads; before it was %s\n", output.Clean(answer.GetLeader()), output.Clean(answer.GetBefore()))
				},
			})
		},
	}
}

func raftHints() map[string]string {
	const peers = "musterctl operator raft peers"
	return map[string]string{"PEER_NOT_FOUND": peers, "QUORUM": peers}
}

func peerItems(peers []*coordinatorv1.Peer) []proto.Message {
	items := make([]proto.Message, 0, len(peers))
	for _, p := range peers {
		items = append(items, p)
	}
	return items
}

func peerNames(peers []*coordinatorv1.Peer) []string {
	names := make([]string, 0, len(peers))
	for _, p := range peers {
		names = append(names, "coordinator/"+p.GetId())
	}
	return names
}

// tellOfDead says what can be done about coordinators that do not answer. None is removed by itself: one that is away for a while is worth more
// than the tidiness of the list.
func (a *app) tellOfDead(peers []*coordinatorv1.Peer) {
	for _, p := range peers {
		if !p.GetReachable() {
			a.note("%s does not answer. If it is gone for good: musterctl operator raft remove %s", p.GetId(), p.GetId())
		}
	}
}

func (a *app) completePeers(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(cmd, args, prefix, func(ctx context.Context) []string {
		answer, err := coordinatorv1.NewClusterServiceClient(a.client).ListPeers(ctx, &coordinatorv1.ListPeersRequest{})
		if err != nil {
			return nil
		}
		var names []string
		for _, p := range answer.GetPeers() {
			names = append(names, p.GetId())
		}
		return names
	})
}

package command

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spheroseg/muster/ctl/internal/output"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) operatorCommand() *cobra.Command {
	return a.noun("operator", "Look after the coordinators and those who may use them",
		a.noun("raft", "Show the coordinators, and let others join, leave and lead",
			a.raftPeersCommand(), a.raftTokenCommand(), a.raftRemoveCommand(), a.raftTransferCommand()),
		a.snapshotCommand(),
		a.noun("user", "Let persons and programs in", a.userTokenCommand()))
}

func (a *app) cluster() (coordinatorv1.ClusterServiceClient, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	return coordinatorv1.NewClusterServiceClient(a.client), nil
}

func peerColumns() []output.Column {
	return []output.Column{{Title: "COORDINATOR"}, {Title: "ADDRESS"}, {Title: "ROLE", State: true}, {Title: "VERSION"}, {Title: "COMMIT"},
		{Title: "TRAILS"}, {Title: "LEADER-SEEN"}, {Title: "TERM", Wide: true}}
}

func peerRow(p *coordinatorv1.Peer) []string {
	role := "follower"
	switch {
	case !p.GetReachable():
		role = "unreachable"
	case p.GetLeader():
		role = "leader"
	case !p.GetVoter():
		role = "joining"
	}
	if !p.GetReachable() {
		return []string{p.GetId(), p.GetAddress(), role, "", "", "", "", ""}
	}
	seen := ""
	switch {
	case p.GetLeader():
		seen = "itself"
	case p.GetLastContact() != nil:
		seen = p.GetLastContact().AsDuration().Round(time.Millisecond).String()
	}
	return []string{p.GetId(), p.GetAddress(), role, p.GetVersion(), fmt.Sprint(p.GetCommitIndex()), fmt.Sprint(p.GetTrailsLeaderBy()), seen, fmt.Sprint(p.GetTerm())}
}

func (a *app) raftPeersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "peers", Short: "List the coordinators and how far each is behind the leader", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := cluster.ListPeers(ctx, &coordinatorv1.ListPeersRequest{})
			if err != nil {
				return a.fail("coordinators cannot be listed", err, nil)
			}
			a.learn(answer.GetPeers())
			d := output.Data{Kind: "Peer", Empty: "there is no coordinator", Columns: peerColumns(), Items: peerItems(answer.GetPeers()), Names: peerNames(answer.GetPeers())}
			for _, p := range answer.GetPeers() {
				d.Rows = append(d.Rows, peerRow(p))
			}
			a.tellOfDead(answer.GetPeers())
			if answer.GetStale() {
				a.note("stale: no leader confirmed this list")
			}
			return a.printer().Print(d)
		},
	}
}

func (a *app) raftTokenCommand() *cobra.Command {
	var c change
	var name string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token with which one coordinator joins", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := validName("--for", name); err != nil {
				return err
			}
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := cluster.CreateCoordinatorToken(ctx, &coordinatorv1.CreateCoordinatorTokenRequest{Name: name, Ttl: lifetime(ttl), RequestId: request})
			if err != nil {
				return a.fail("no token was made", err, nil)
			}
			return a.printToken(answer, answer.GetToken(), answer.GetExpiresAt(), "muster-coordinator join --token-file FILE")
		},
	}
	cmd.Flags().StringVar(&name, "for", "", "name that the coordinator must take (default: it chooses)")
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token can be used, at most 24h")
	c.requestFlags(cmd)
	return cmd
}

// userRoles are the roles that a person or a program may have.
func userRoles() []string { return []string{"viewer", "operator", "admin", "service"} }

func (a *app) userTokenCommand() *cobra.Command {
	var c change
	var name, role string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token with which one person or program logs in", Args: exactly(),
		Example: "  musterctl operator user token --for alice --role operator > token\n  musterctl login --coordinator HOST:PORT --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return output.Usage(cmd.CommandPath()+" --for NAME --role "+role, "--for is missing: whom is the token for?")
			}
			if err := validName("--for", name); err != nil {
				return err
			}
			if !slices.Contains(userRoles(), role) {
				return output.Usage("--role "+first(output.Nearest(role, userRoles()), "operator"), "--role %q is not one of %s", role, strings.Join(userRoles(), ", "))
			}
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := cluster.CreateUserToken(ctx, &coordinatorv1.CreateUserTokenRequest{
				Name: name, Role: accessv1.Role(accessv1.Role_value["ROLE_"+strings.ToUpper(role)]), Ttl: lifetime(ttl), RequestId: request,
			})
			if err != nil {
				return a.fail("no token was made", err, nil)
			}
			return a.printToken(answer, answer.GetToken(), answer.GetExpiresAt(), "musterctl login --token-file FILE")
		},
	}
	cmd.Flags().StringVar(&name, "for", "", "name of the person or program")
	cmd.Flags().StringVar(&role, "role", "operator", "what they may do: "+strings.Join(userRoles(), ", "))
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token can be used, at most 24h")
	c.requestFlags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(userRoles(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

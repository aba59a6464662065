package command

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/identity"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) hostCommand() *cobra.Command {
	return a.noun("host", "Show hosts, let them join, and empty them", a.hostListCommand(), a.hostShowCommand(), a.hostTokenCommand(),
		a.hostCordonCommand(), a.hostUncordonCommand("uncordon", "Let new instances come to a host again"),
		a.hostDrainCommand(), a.hostUncordonCommand("undrain", "Let new instances come to a drained host again"))
}

func (a *app) hosts() (coordinatorv1.HostServiceClient, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	return coordinatorv1.NewHostServiceClient(a.client), nil
}

func (a *app) hostListCommand() *cobra.Command {
	var request coordinatorv1.ListHostsRequest
	cmd := &cobra.Command{
		Use: "list", Short: "List hosts", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			hosts, err := a.hosts()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := hosts.ListHosts(ctx, &request)
			if err != nil {
				return a.fail("hosts cannot be listed", err, nil)
			}
			empty := "there is no host; musterctl host token lets one join"
			if request.GetSelector() != "" {
				empty = "no host matches " + request.GetSelector()
			}
			d := output.Data{Kind: "Host", Empty: empty, Columns: []output.Column{
				{Title: "NAME"}, {Title: "STATE", State: true}, {Title: "SINCE"}, {Title: "ADDRESS"}, {Title: "ENGINE"}, {Title: "AGENT"},
				{Title: "CPUS", Wide: true}, {Title: "MEMORY", Wide: true}, {Title: "GPUS", Wide: true}, {Title: "PLATFORM", Wide: true},
				{Title: "ROUTES", Wide: true}, {Title: "LABELS"},
			}}
			for _, h := range answer.GetHosts() {
				i := h.GetInventory()
				d.Items = append(d.Items, h)
				d.Names = append(d.Names, "host/"+h.GetName())
				d.Rows = append(d.Rows, []string{h.GetName(), hostWord(h), output.Age(h.GetStateSince(), a.Now()),
					i.GetAddress(), i.GetEngine().GetVersion(), i.GetAgentVersion(), cpus(i.GetNanoCpus()), bytesOf(i.GetMemoryBytes()),
					fmt.Sprint(i.GetGpus()), i.GetPlatform(), strings.Join(i.GetRouteDrivers(), ","), output.Pairs(h.GetLabels())})
			}
			return a.printer().Print(d)
		},
	}
	cmd.Flags().StringVarP(&request.Selector, "selector", "l", "", "only hosts with these labels, like zone=a,role!=db")
	cmd.Flags().BoolVar(&request.Stale, "stale", false, "take the asked coordinator's own word, without asking the leader")
	return cmd
}

func (a *app) hostShowCommand() *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use: "show HOST", Short: "Show a host", Args: exactly("HOST"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			hosts, err := a.hosts()
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			name := strings.TrimPrefix(args[0], "host/")
			answer, err := hosts.GetHost(ctx, &coordinatorv1.GetHostRequest{Host: name, Stale: stale})
			if err != nil {
				return a.missing(cmd.Context(), "host "+name+" cannot be shown", "HOST_NOT_FOUND", "musterctl host show", name, err, a.hostNames)
			}
			h := answer.GetHost()
			return a.printer().Print(output.Data{
				Kind: "Host", Items: []proto.Message{h}, Names: []string{"host/" + h.GetName()},
				Text: func(w io.Writer, _ bool) { a.writeHost(w, h) },
			})
		},
	}
	cmd.Flags().BoolVar(&stale, "stale", false, "take the asked coordinator's own word, without asking the leader")
	return cmd
}

// hostWord is the state of a host, and whether new instances may come to it.
func hostWord(h *coordinatorv1.Host) string {
	word := output.Word(h.GetState(), "HOST_STATE_")
	if h.GetCordoned() {
		word += ",cordoned"
	}
	return word
}

// cordonWord says who keeps new instances away from a host, and why; empty if nobody does.
func cordonWord(h *coordinatorv1.Host) string {
	if !h.GetCordoned() {
		return ""
	}
	text := "by " + who(h.GetCordonedBy())
	if reason := h.GetCordonReason(); reason != "" {
		text += ": " + reason
	}
	return text
}

func (a *app) writeHost(w io.Writer, h *coordinatorv1.Host) {
	i := h.GetInventory()
	engine := i.GetEngine().GetVersion()
	if e := i.GetEngine(); e != nil && !e.GetUp() {
		engine = "down: " + e.GetError()
	}
	portRange := ""
	if i.GetPortFirst() > 0 {
		portRange = fmt.Sprintf("%d-%d", i.GetPortFirst(), i.GetPortLast())
	}
	writePairs(w, [][2]string{
		{"host", h.GetName()},
		{"state", output.Word(h.GetState(), "HOST_STATE_") + " for " + output.Age(h.GetStateSince(), a.Now())},
		{"cordoned", cordonWord(h)},
		{"joined", output.Age(h.GetJoinedAt(), a.Now()) + " ago"},
		{"labels", output.Pairs(h.GetLabels())},
		{"address", i.GetAddress()}, {"hostname", i.GetHostname()}, {"platform", i.GetPlatform()}, {"kernel", i.GetKernel()},
		{"cpus", cpus(i.GetNanoCpus())}, {"memory", bytesOf(i.GetMemoryBytes())}, {"gpus", fmt.Sprint(i.GetGpus())},
		{"engine", engine}, {"engine API", i.GetEngine().GetApiVersion()}, {"storage driver", i.GetEngine().GetStorageDriver()},
		{"agent", i.GetAgentVersion()}, {"route drivers", strings.Join(i.GetRouteDrivers(), ", ")}, {"port range", portRange},
	})
}

func (a *app) hostTokenCommand() *cobra.Command {
	var c change
	var labels []string
	var name string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "Make a token with which one host joins", Args: exactly(),
		Example: "  musterctl host token --label zone=a --for web-1 > token\n  muster-agent join --coordinator HOST:PORT --token-file token --data-dir DIR",
		RunE: func(cmd *cobra.Command, _ []string) error {
			given, err := parseLabels(labels)
			if err != nil {
				return err
			}
			if err := validName("--for", name); err != nil {
				return err
			}
			hosts, err := a.hosts()
			if err != nil {
				return err
			}
			request, err := a.request(&c)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(cmd.Context())
			defer cancel()
			answer, err := hosts.CreateHostToken(ctx, &coordinatorv1.CreateHostTokenRequest{
				Name: name, Labels: given, Ttl: lifetime(ttl), RequestId: request,
			})
			if err != nil {
				return a.fail("no token was made", err, nil)
			}
			return a.printToken(answer, answer.GetToken(), answer.GetExpiresAt(), "muster-agent join --token-file FILE")
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label of the host, as KEY=VALUE")
	cmd.Flags().StringVar(&name, "for", "", "name that the host must take (default: it chooses)")
	cmd.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long the token can be used, at most 24h")
	c.requestFlags(cmd)
	return cmd
}

// printToken writes a token alone, so that it can be sent to a file.
func (a *app) printToken(answer proto.Message, token string, expires *timestamppb.Timestamp, use string) error {
	a.note("the token works once, until %s: %s", expires.AsTime().UTC().Format(time.RFC3339), use)
	return a.printer().Print(output.Data{
		Kind: "Token", Items: []proto.Message{answer}, Names: []string{token},
		Text: func(w io.Writer, _ bool) { _, _ = io.WriteString(w, token+"\n") },
	})
}

// lifetime leaves out what the coordinator decides by itself.
func lifetime(d time.Duration) *durationpb.Duration {
	if d <= 0 {
		return nil
	}
	return durationpb.New(d)
}

func parseLabels(pairs []string) (map[string]string, error) {
	labels := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, output.Usage("--label KEY=VALUE", "--label %q is not KEY=VALUE", p)
		}
		labels[k] = v
	}
	return labels, nil
}

// validName checks a name that may be empty.
func validName(flag, name string) error {
	if name == "" {
		return nil
	}
	if err := identity.ValidName(name); err != nil {
		return output.Usage(flag+" NAME", "%s: %v", flag, err)
	}
	return nil
}

func (a *app) hostNames(ctx context.Context) []string {
	answer, err := coordinatorv1.NewHostServiceClient(a.client).ListHosts(ctx, &coordinatorv1.ListHostsRequest{Stale: true})
	if err != nil {
		return nil
	}
	var names []string
	for _, h := range answer.GetHosts() {
		names = append(names, h.GetName())
	}
	return names
}

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/version"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func (a *app) status(ctx context.Context) (*coordinatorv1.GetStatusResponse, error) {
	cluster, err := a.cluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.call(ctx)
	defer cancel()
	answer, err := cluster.GetStatus(ctx, &coordinatorv1.GetStatusRequest{})
	if err != nil {
		return nil, a.fail("the cluster does not tell its status", err, nil)
	}
	a.learn(answer.GetPeers())
	return answer, nil
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster and the fleet in figures", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := a.status(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.printer().Print(output.Data{
				Kind: "Status", Items: []proto.Message{answer}, Names: []string{"cluster/" + answer.GetClusterName()},
				Text: func(w io.Writer, wide bool) { a.writeStatus(w, answer, wide) },
			}); err != nil {
				return err
			}
			a.tellOfDead(answer.GetPeers())
			if answer.GetHosts()["down"] > 0 {
				a.tellLost(cmd.Context(), "")
			}
			return nil
		},
	}
}

func (a *app) writeStatus(w io.Writer, s *coordinatorv1.GetStatusResponse, wide bool) {
	leader := s.GetLeader()
	if leader == "" {
		leader = "none"
		if c := s.GetLeaderContact(); c != nil {
			leader += ", lost " + output.Span(c.AsDuration()) + " ago"
		}
		a.note("stale: there is no leader (%s answered); figures may be old, and nothing can be changed", s.GetAnsweredBy())
	}
	var hosts []string
	for _, state := range slices.Sorted(maps.Keys(s.GetHosts())) {
		word := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(state, "HOST_STATE_"), "_", "-"))
		hosts = append(hosts, fmt.Sprintf("%d %s", s.GetHosts()[state], word))
	}
	runs := fmt.Sprintf("%d active", s.GetActiveRuns())
	if n := s.GetBlockedRuns(); n > 0 {
		runs += fmt.Sprintf(", %d blocked (musterctl run list --active)", n)
	}
	pairs := [][2]string{
		{"cluster", s.GetClusterName()}, {"leader", leader}, {"hosts", first(strings.Join(hosts, ", "), "none")},
		{"stacks", fmt.Sprint(s.GetStacks())}, {"runs", runs}, {"answered by", s.GetAnsweredBy()},
	}
	if wide {
		pairs = append(pairs, [2]string{"cluster id", s.GetClusterId()}, [2]string{"engine epoch", number(s.GetEngineEpoch())},
			[2]string{"agents", histogram(s.GetAgentVersions())})
	}
	writePairs(w, pairs)
	rows := make([][]string, 0, len(s.GetPeers()))
	for _, p := range s.GetPeers() {
		rows = append(rows, peerRow(p))
	}
	if len(rows) > 0 {
		_, _ = fmt.Fprintln(w)
		output.WriteTable(w, peerColumns(), rows, wide, a.style(a.Stdout))
	}
}

func histogram(versions map[string]uint32) string {
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(versions)) {
		parts = append(parts, fmt.Sprintf("%s on %d %s", v, versions[v], plural(int(versions[v]), "host", "hosts")))
	}
	return strings.Join(parts, ", ")
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of musterctl, the coordinators and the agents", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			own := [][2]string{{"musterctl", version.Version + "  " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}}
			var answer *coordinatorv1.GetStatusResponse
			var err error
			if !clientOnly {
				answer, err = a.status(cmd.Context())
				var shown *output.Error
				if errors.As(err, &shown) && shown.What == errNoContext().Error() {
					err = nil
				}
				if err != nil && shown != nil && shown.Code == output.CodeDenied && a.client == nil {
					err = nil // nobody has logged in: the program's own version is what there is.
				}
			}
			d := output.Data{Kind: "Version", Items: []proto.Message{}, Names: []string{"musterctl/" + version.Version}}
			status := &coordinatorv1.GetStatusResponse{Version: version.Version}
			if answer != nil {
				status = answer
			}
			d.Items = append(d.Items, status)
			d.Text = func(w io.Writer, _ bool) {
				for _, p := range answer.GetPeers() {
					own = append(own, [2]string{"coordinator " + p.GetId(), first(p.GetVersion(), "does not answer")})
				}
				own = append(own, [2]string{"agents", histogram(answer.GetAgentVersions())})
				writePairs(w, own)
			}
			if e := a.printer().Print(d); e != nil {
				return e
			}
			a.warnOfSkew(answer)
			return err
		},
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only that of musterctl")
	return cmd
}

// warnOfSkew names the parts whose minor version is more than one away from ours.
func (a *app) warnOfSkew(s *coordinatorv1.GetStatusResponse) {
	for _, p := range s.GetPeers() {
		if skewed(p.GetVersion(), version.Version) {
			a.note("warning: coordinator %s has version %s, and musterctl %s: more than one minor version apart", p.GetId(), p.GetVersion(), version.Version)
		}
	}
	for v, n := range s.GetAgentVersions() {
		if skewed(v, version.Version) {
			a.note("warning: %d %s agent version %s, and musterctl has %s: more than one minor version apart", n, plural(int(n), "host has", "hosts have"), v, version.Version)
		}
	}
}

// skewed compares versions like v1.4.2. Others, like dev, are not compared.
func skewed(a, b string) bool {
	majorA, minorA, okA := minor(a)
	majorB, minorB, okB := minor(b)
	if !okA || !okB {
		return false
	}
	return majorA != majorB || minorA-minorB > 1 || minorB-minorA > 1
}

func minor(v string) (major, minor int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, errA := strconv.Atoi(parts[0])
	minor, errB := strconv.Atoi(parts[1])
	return major, minor, errA == nil && errB == nil
}

// shortTimeout is for what is nice to know and must not be waited for.
const shortTimeout = 500 * time.Millisecond

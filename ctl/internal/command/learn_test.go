package command_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// TestCoordinatorsThatJoinedLater are found by the first run that is followed, and remembered: the one that was there at the login may die.
func TestCoordinatorsThatJoinedLater(t *testing.T) {
	d := planner(t, 2, plan())
	first, second := d.cluster.Nodes[0], d.cluster.Nodes[1]
	credentials := d.cluster.Credentials(t, accessv1.Role_ROLE_OPERATOR, "alice")
	d.configure(config.Context{Name: "early", Coordinators: d.cluster.Addresses()[:1], Credentials: credentials})
	d.configure(config.Context{Name: "other", Coordinators: []string{"c9:7443"}, Credentials: credentials})
	coordinatortest.On(first, "ListPeers", func(context.Context, *coordinatorv1.ListPeersRequest) (*coordinatorv1.ListPeersResponse, error) {
		return &coordinatorv1.ListPeersResponse{Peers: []*coordinatorv1.Peer{{Id: "c1", Address: first.Address}, {Id: "c2", Address: second.Address}, {Id: "c3"}}}, nil
	})
	d.endless()
	d.stderr = when{"web.1/pull done", first.Stop}
	if r := d.run("stack apply -y --context early"); r.code != 0 || !strings.Contains(r.stderr, "following run/r-3 on c2:7443") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	f, err := config.Load(filepath.Join(d.env["HOME"], ".config", "musterctl", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := f.Context("early"); !slices.Equal(c.Coordinators, d.cluster.Addresses()) || f.Current != "other" {
		t.Errorf("coordinators %q, want %q; current context %q, want %q", c.Coordinators, d.cluster.Addresses(), f.Current, "other")
	}
	d.stderr = nil
	if r := d.run("host list -o name --context early"); r.code != 0 {
		t.Errorf("afterwards: exit code %d: %s", r.code, r.stderr)
	}
}

// TestCompletion answers at once, with names or with nothing, and never with an error.
func TestCompletion(t *testing.T) {
	d := planner(t, 1, plan())
	for line, want := range map[string]string{
		"__complete host show web-": "web-1\nweb-2\nweb-3\n:4\n", "__complete host show w x": ":4\n", "__complete stack rollback d": "demo\n:4\n",
		"__complete run watch r-":                 "r-3\trunning apply demo, release 3\n:4\n",
		"__complete service ps demo/":             "demo/api\ndemo/web\n:4\n",
		"__complete host list --output j":         "table\nwide\njson\nyaml\nname\n:4\n",
		"__complete host list --context d":        "demo\n:4\n",
		"__complete run list --stack f":           "fresh\n:4\n",
		"__complete operator user token --role o": "viewer\noperator\nadmin\nservice\n:4\n",
	} {
		if r := d.run(line); r.stdout != want {
			t.Errorf("%s: %q, want %q", line, r.stdout, want)
		}
	}
	coordinatortest.On(d.cluster.Nodes[0], "ListHosts", func(ctx context.Context, _ *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for name, prepare := range map[string]func(){
		"a coordinator that does not answer": func() {}, "a coordinator that is down": d.cluster.Nodes[0].Stop, "no configuration": func() { d.env["HOME"] = t.TempDir() },
	} {
		prepare()
		start := time.Now()
		if r := d.run("__complete host", "show", "w"); r.stdout != ":4\n" || strings.Contains(r.stderr, "Error") || strings.Contains(r.stderr, "waiting") {
			t.Errorf("%s: %q, %q", name, r.stdout, r.stderr)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

package command_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestLogin(t *testing.T) {
	d := newDesk(t, 2)
	d.fill()
	d.file("token", d.cluster.Token(t, accessv1.Role_ROLE_ADMIN, "bob")+"\n")
	d.cluster.Nodes[0].Stop() // the second one serves.
	addresses := strings.Join(d.cluster.Addresses(), ",")
	r := d.run("login --token-file token --coordinator " + addresses)
	if want := "logged in to cluster demo as admin/bob; context demo is the current one\n"; r.code != 0 || r.stdout != want {
		t.Fatalf("exit code %d, %q, want %q; %s", r.code, r.stdout, want, r.stderr)
	}
	f, err := config.Load(filepath.Join(d.env["HOME"], ".config", "musterctl", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := f.Context("")
	if !ok || c.Name != "demo" || c.Cluster != "cluster-1" || c.Identity != "spiffe://user.demo.muster/admin/bob" || strings.Join(c.Coordinators, ",") != addresses {
		t.Errorf("context %+v", c)
	}
	key := filepath.Join(d.env["HOME"], ".local", "state", "musterctl", "demo", "identity.key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	if r := d.run("host list -o name"); r.code != 0 || !strings.Contains(r.stdout, "host/web-1") {
		t.Errorf("the new identity: %d %s", r.code, r.stderr)
	}
	for _, m := range d.cluster.Nodes[1].Calls("Join") {
		if q := m.(*coordinatorv1.JoinRequest); len(q.GetCsr()) == 0 {
			t.Errorf("join without a request: %v", q)
		}
	}
}

func TestLoginFromStandardInputUnderAnotherName(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	d.stdin = strings.NewReader(d.cluster.Token(t, accessv1.Role_ROLE_VIEWER, "eve"))
	if r := d.run("login --token-file - --name second --coordinator " + d.cluster.Addresses()[0]); r.code != 0 {
		t.Fatal(r.stderr)
	}
	d.env["MUSTERCTL_CONTEXT"] = "demo"
	if r := d.run("host list -o name --context second"); r.code != 0 {
		t.Errorf("the new context: %s", r.stderr)
	}
	if r := d.run("host list -o name"); r.code != 0 {
		t.Errorf("the old context: %s", r.stderr)
	}
}

// TestLoginRefusals sends the token to nobody but the cluster that made it, and never overwrites another cluster's keys.
func TestLoginRefusals(t *testing.T) {
	d := newDesk(t, 1)
	other := coordinatortest.New(t, 1)
	token := other.Token(t, accessv1.Role_ROLE_ADMIN, "bob")
	d.file("token", token)
	r := d.run("login --token-file token --timeout 5s --coordinator " + d.cluster.Addresses()[0])
	if r.code != 4 || !strings.Contains(r.stderr, "is not of the cluster that made the token") || len(d.cluster.Nodes[0].Calls("Join")) != 0 {
		t.Errorf("another cluster's token: exit code %d: %s", r.code, r.stderr)
	}
	if strings.Contains(r.stderr, strings.Split(token, ".")[2]) {
		t.Error("the secret of the token was shown")
	}
	d.file("token", d.cluster.Token(t, accessv1.Role_ROLE_ADMIN, "bob"))
	d.configure(config.Context{Name: "demo", Cluster: "cluster-0"})
	r = d.run("login --token-file token --coordinator " + d.cluster.Addresses()[0])
	if r.code != 2 || !strings.Contains(r.stderr, `context "demo" is another cluster's`) {
		t.Errorf("a name that is taken: exit code %d: %s", r.code, r.stderr)
	}
}

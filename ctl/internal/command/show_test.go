package command_test

import (
	"encoding/json"
	"strings"
	"testing"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// TestTables shows every command that only looks, as a person sees it.
func TestTables(t *testing.T) {
	tests := map[string][]string{
		"status":    {"status", "status -o wide", "status -o name", "version --client", "version"},
		"hosts":     {"host list", "host list -o wide", "host list -o name", "host list -l zone=none", "host show web-1", "host show web-2", "host show web2", "host show x"},
		"stacks":    {"stack list", "stack list -o wide", "stack show demo", "stack show demo -o wide", "stack show dem", "stack history demo", "stack history nothing-like-it"},
		"services":  {"service list", "service list -o wide", "service show api", "service show web", "service show other/web", "service show ap", "service ps", "service ps demo/api -o wide"},
		"runs":      {"run list", "run list -o wide", "run list --active", "run list --limit 1", "run show r-3", "run show run/r-3 --plan -o wide", "run show r-4"},
		"operators": {"operator raft peers", "operator raft token --for c4", "operator user token --for bob --role viewer", "host token --label zone=a --for web-4", "secret list"},
	}
	d := loggedIn(t, 1)
	d.fill()
	for name, lines := range tests {
		t.Run(name, func(t *testing.T) {
			golden(t, name, d.transcript(lines...))
		})
	}
}

// TestDocuments shows the documents that scripts read.
func TestDocuments(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	golden(t, "json", d.transcript("host show web-1 -o json", "run list --active -o json", "service ps -o json", "stack list -o json", "operator user token --for bob -o json"))
	d.planning(plan())
	d.file("compose.yaml", "services: {}")
	golden(t, "yaml", d.transcript("host show web-2 -o yaml", "run show r-3 -o yaml", "stack apply --dry-run -o yaml"))
	for _, line := range []string{"status", "version", "host list", "host show web-1", "stack list", "stack show demo", "stack history demo", "service list", "service ps", "service show api",
		"run list", "run show r-3", "operator raft peers", "secret list"} {
		r := d.run(line + " -o json")
		var doc struct {
			Kind  string
			Items []json.RawMessage
		}
		if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || doc.Kind == "" || len(doc.Items) == 0 {
			t.Errorf("%s: %v, kind %q, %d items", line, err, doc.Kind, len(doc.Items))
		}
	}
}

// TestColours are for terminals, and for those who ask.
func TestColours(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	if r := d.run("host list"); strings.Contains(r.stdout, "\x1b") {
		t.Errorf("colours in a pipe: %q", r.stdout)
	}
	if r := d.run("host list --color always"); !strings.Contains(r.stdout, "\x1b[32mup\x1b[0m") {
		t.Errorf("no colours: %q", r.stdout)
	}
	d.env["MUSTERCTL_COLOR"] = "always"
	if r := d.run("host list --color never"); strings.Contains(r.stdout, "\x1b") {
		t.Errorf("colours: %q", r.stdout)
	}
}

// TestRequests looks at what the flags become on the wire.
func TestRequests(t *testing.T) {
	d := loggedIn(t, 1)
	d.fill()
	node := d.cluster.Nodes[0]
	d.stdin = strings.NewReader("s3cret\n")
	for _, line := range []string{"host token --label a=1 --label b= --for web-9 --ttl 1h --request-id id-1", "operator user token --for bob --role admin", "secret set jwt --request-id id-2",
		"run list --stack demo --active --limit 600"} {
		if r := d.run(line); r.code != 0 {
			t.Fatalf("%s: %d %s", line, r.code, r.stderr)
		}
	}
	host := node.Calls("CreateHostToken")[0].(*coordinatorv1.CreateHostTokenRequest)
	if host.GetName() != "web-9" || host.GetLabels()["a"] != "1" || len(host.GetLabels()) != 2 || host.GetTtl().AsDuration().Hours() != 1 || host.GetRequestId() != "id-1" {
		t.Errorf("host token: %v", host)
	}
	user := node.Calls("CreateUserToken")[0].(*coordinatorv1.CreateUserTokenRequest)
	if user.GetName() != "bob" || user.GetRole().String() != "ROLE_ADMIN" || len(user.GetRequestId()) != 36 || user.GetRequestId()[14] != '7' {
		t.Errorf("user token: %v", user)
	}
	secret := node.Calls("PutSecret")[0].(*coordinatorv1.PutSecretRequest)
	if secret.GetName() != "jwt" || string(secret.GetValue()) != "s3cret\n" || secret.GetRequestId() != "id-2" {
		t.Errorf("secret: %v", secret)
	}
	list := node.Calls("ListRuns")[0].(*coordinatorv1.ListRunsRequest)
	if list.GetStack() != "demo" || !list.GetActive() || list.GetPageSize() != 500 {
		t.Errorf("runs: %v", list)
	}
}

package command_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// TestWrongInput shows what is said about every kind of mistake.
func TestWrongInput(t *testing.T) {
	fresh := newDesk(t, 0)
	fresh.file("not-a-token", "hello\n")
	fresh.file("compose.yaml", "services: {}\n")
	golden(t, "wrong-fresh", fresh.transcript("status", "stack apply", "host list --context demo", "login", "login --coordinator c1:7443", "login --coordinator c1:7443 --token-file gone",
		"login --coordinator c1:7443 --token-file not-a-token", "login --coordinator c1:7443 --token-file -", "login --coordinator c1:7443 --token-file not-a-token --name Bad_Name"))

	d := loggedIn(t, 1)
	d.fill()
	d.file("broken.yaml", "services:\n  a: [\n")
	d.file("missing.yaml", "services:\n  a:\n    env_file: gone.env\n")
	d.file("large.yaml", "x-data: "+strings.Repeat("0123456789", 500_000)+"\n")
	golden(t, "wrong-usage", d.transcript("hots list", "host lst", "host", "stack aply -f x", "stack apply x", "run watch", "run watch a b", "service ps a b", "host list -o jsno", "host list --progress live",
		"host list --color green", "host list --selctor a", "host list --timeout 0s", "host list --timeout soon", "host list --context deom", "host list --server c1.example.org", "host token --label a", "host token --for Web_1",
		"operator user token", "operator user token --for bob --role operater", "stack show demo --release x"))
	golden(t, "wrong-files", d.transcript("stack apply", "stack apply -f gone.yaml", "stack apply -f missing.yaml", "stack apply -f broken.yaml", "stack apply -f large.yaml", "stack diff -f compose.yaml --project-directory gone",
		"secret set jwt --from-file gone", "secret set jwt"))
	d.env["MUSTERCTL_OUTPUT"] = "xml"
	golden(t, "wrong-environment", d.transcript("host list", "host list -o name"))
}

// TestRefusals shows what becomes of every reason for which a coordinator refuses.
func TestRefusals(t *testing.T) {
	d := loggedIn(t, 1)
	d.file("compose.yaml", "services: {}\n")
	var b strings.Builder
	for _, r := range []struct {
		code   codes.Code
		reason coordinatorv1.ErrorReason
		text   string
	}{
		{codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID, "compose.yaml:3: services.api.network_mod: unknown key; did you mean network_mode?"},
		{codes.NotFound, coordinatorv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, "image api:9 is neither in its registry nor on a host"},
		{codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NO_GATE, "service frontend has no gate"},
		{codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN, "host web-2 does not answer"},
		{codes.Aborted, coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "the stack changed meanwhile"},
		{codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "a viewer may not call ApplyStack"},
		{codes.AlreadyExists, coordinatorv1.ErrorReason_ERROR_REASON_REQUEST_REUSED, "the request id was used for another request"},
	} {
		coordinatortest.On(d.cluster.Nodes[0], "ApplyStack", func(context.Context, *coordinatorv1.ApplyStackRequest) (*coordinatorv1.ApplyStackResponse, error) {
			return nil, rpcerr.New(r.code, r.reason, "%s", r.text)
		})
		b.WriteString(d.transcript("stack apply -y") + "\n")
	}
	if strings.Contains(b.String(), "rpc error") {
		t.Error("gRPC's words reached the user")
	}
	golden(t, "refusals", b.String())
}

// TestNobodyAnswers ends after the timeout with one line about the waiting, and one about each coordinator.
func TestNobodyAnswers(t *testing.T) {
	d := loggedIn(t, 3)
	for _, n := range d.cluster.Nodes {
		n.Stop()
	}
	r := d.run("host list --timeout 400ms")
	why := "c1:7443: connection refused; c2:7443: connection refused; c3:7443: connection refused"
	want := "waiting for a coordinator, up to 400ms: " + why + "\nError: hosts cannot be listed\nCause: " + why + "\nHint:  look whether a coordinator runs at these addresses, or name others with --server HOST:PORT\n"
	if r.code != 7 || r.stderr != want {
		t.Errorf("exit code %d, want 7:\n%s\nwant\n%s", r.code, r.stderr, want)
	}
	r = d.run("secret set x --request-id id-1 --timeout 300ms")
	if d.stdin = strings.NewReader("v"); r.code != 2 {
		t.Errorf("an empty value: exit code %d", r.code)
	}
	r = d.run("secret set x --request-id id-1 --timeout 300ms")
	if r.code != 7 || !strings.Contains(r.stderr, "repeat the command with --request-id id-1") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}

func TestNoLeader(t *testing.T) {
	d := loggedIn(t, 1)
	coordinatortest.On(d.cluster.Nodes[0], "ListHosts", func(context.Context, *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
		return nil, rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "the coordinators have no leader now")
	})
	r := d.run("host list --timeout 300ms -v")
	if want := "Cause: c1:7443: the coordinators have no leader now (NO_LEADER)\nHint:  musterctl operator raft peers\nDetail: code Unavailable, server c1:7443\n"; r.code != 7 || !strings.HasSuffix(r.stderr, want) {
		t.Errorf("exit code %d, want 7: %s", r.code, r.stderr)
	}
}

func TestKeysThatCannotBeUsed(t *testing.T) {
	d := newDesk(t, 1)
	creds := d.cluster.Credentials(t, accessv1.Role_ROLE_OPERATOR, "alice")
	d.configure(config.Context{Name: "demo", Coordinators: d.cluster.Addresses(), Credentials: creds})
	if err := os.Chmod(filepath.Join(creds, "identity.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := d.run("host list")
	if r.code != 4 || !strings.Contains(r.stderr, `Error: the keys of context "demo" cannot be used`) || !strings.Contains(r.stderr, "musterctl login --coordinator HOST:PORT --token-file FILE --name demo") {
		t.Errorf("a key that others can read: exit code %d: %s", r.code, r.stderr)
	}
	d.configure(config.Context{Name: "demo", Coordinators: d.cluster.Addresses(), Credentials: "/nowhere"})
	if r := d.run("host list"); r.code != 4 {
		t.Errorf("no key: exit code %d: %s", r.code, r.stderr)
	}
	// The certificate is valid for a microsecond, and the handshake is what finds it out.
	d.configure(config.Context{Name: "demo", Coordinators: d.cluster.Addresses(), Credentials: d.cluster.CredentialsFor(t, accessv1.Role_ROLE_OPERATOR, "alice", time.Microsecond)})
	if r := d.run("host list --timeout 5s"); r.code != 4 || strings.Contains(r.stderr, "rpc error") {
		t.Errorf("an expired certificate: exit code %d: %s", r.code, r.stderr)
	}
}

package client_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/ctl/internal/client"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// dial returns a client of addresses with an identity of the cluster.
func dial(t *testing.T, c *coordinatortest.Cluster, addresses []string, notify func(string)) *client.Client {
	t.Helper()
	creds, err := identity.LoadCredentials(c.Credentials(t, accessv1.Role_ROLE_OPERATOR, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.New(client.Options{
		Addresses: addresses, TLS: mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC), Notify: notify,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func put(ctx context.Context, conn *client.Client, id string) (*coordinatorv1.PutSecretResponse, error) {
	return coordinatorv1.NewSecretServiceClient(conn).PutSecret(ctx, &coordinatorv1.PutSecretRequest{Name: "s", Value: []byte("v"), RequestId: id})
}

func take(n *coordinatortest.Node) {
	coordinatortest.On(n, "PutSecret", func(context.Context, *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
		return &coordinatorv1.PutSecretResponse{Secret: &coordinatorv1.SecretInfo{Name: "s", Version: 1}}, nil
	})
}

func TestTheOthersAreTriedWhenOneIsDown(t *testing.T) {
	c := coordinatortest.New(t, 3)
	take(c.Nodes[2])
	c.Nodes[0].Stop()
	c.Nodes[1].Stop()
	conn := dial(t, c, c.Addresses(), func(why string) { t.Errorf("told of %q", why) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	for range 3 {
		if _, err := put(ctx, conn, "id-1"); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if conn.Server() != c.Nodes[2].Address || len(c.Nodes[2].Calls("PutSecret")) != 3 {
		t.Errorf("server %s, want %s", conn.Server(), c.Nodes[2].Address)
	}
}

func TestASilentCoordinatorIsLeftAfterTwoSeconds(t *testing.T) {
	c := coordinatortest.New(t, 1)
	take(c.Nodes[0])
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and says nothing, like a stopped process.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	conn := dial(t, c, []string{silent.Addr().String(), c.Nodes[0].Address}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	if _, err := put(ctx, conn, "id-1"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v, want about 2 s", took)
	}
}

// TestARepeatedCallHasTheSameRequestID makes every kind of answer after which the outcome of the first attempt is open.
func TestARepeatedCallHasTheSameRequestID(t *testing.T) {
	unsure := []error{
		rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "no leader"),
		rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_NOT_LEADER, "not the leader"),
		rpcerr.New(codes.Unknown, coordinatorv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN, "leadership lost"),
		status.Error(codes.Unavailable, "shutting down"),
	}
	c := coordinatortest.New(t, 2)
	var n atomic.Int32
	for _, node := range c.Nodes {
		coordinatortest.On(node, "PutSecret", func(context.Context, *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
			if i := int(n.Add(1)) - 1; i < len(unsure) {
				return nil, unsure[i]
			}
			return &coordinatorv1.PutSecretResponse{}, nil
		})
	}
	var told []string
	conn := dial(t, c, c.Addresses(), func(why string) { told = append(told, why) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := put(ctx, conn, "the-id"); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, node := range c.Nodes {
		for _, m := range node.Calls("PutSecret") {
			seen++
			if id := m.(*coordinatorv1.PutSecretRequest).GetRequestId(); id != "the-id" {
				t.Errorf("request id %q", id)
			}
		}
	}
	if seen != len(unsure)+1 {
		t.Errorf("%d calls, want %d", seen, len(unsure)+1)
	}
	if len(told) != 1 {
		t.Errorf("told %d times (%q), want once", len(told), told)
	}
}

func TestADefiniteAnswerIsNotRepeated(t *testing.T) {
	for _, code := range []codes.Code{codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.FailedPrecondition, codes.Aborted, codes.Internal, codes.Unknown, codes.Unimplemented} {
		c := coordinatortest.New(t, 2)
		coordinatortest.On(c.Nodes[0], "PutSecret", func(context.Context, *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
			return nil, status.Error(code, "no")
		})
		conn := dial(t, c, c.Addresses(), nil)
		if _, err := put(t.Context(), conn, "id"); status.Code(err) != code {
			t.Errorf("%s: %v", code, err)
		}
		if a, b := len(c.Nodes[0].Calls("PutSecret")), len(c.Nodes[1].Calls("PutSecret")); a != 1 || b != 0 {
			t.Errorf("%s: %d and %d calls, want 1 and 0", code, a, b)
		}
	}
}

func TestUnreachable(t *testing.T) {
	c := coordinatortest.New(t, 2)
	coordinatortest.On(c.Nodes[0], "PutSecret", func(context.Context, *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
		return nil, rpcerr.New(codes.Unavailable, coordinatorv1.ErrorReason_ERROR_REASON_NO_LEADER, "the coordinators have no leader now")
	})
	c.Nodes[1].Stop()
	conn := dial(t, c, c.Addresses(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := put(ctx, conn, "id")
	if rpcerr.Reason(err) != "NO_LEADER" || status.Code(err) != codes.Unavailable {
		t.Errorf("reason %q, code %s", rpcerr.Reason(err), status.Code(err))
	}
	want := c.Nodes[0].Address + ": the coordinators have no leader now; " + c.Nodes[1].Address + ": connection refused"
	if got := rpcerr.Message(err); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

// TestStrangersAreNotTriedForLong meets coordinators of another cluster: waiting does not make them ours.
func TestStrangersAreNotTriedForLong(t *testing.T) {
	ours, theirs := coordinatortest.New(t, 1), coordinatortest.New(t, 2)
	conn := dial(t, ours, theirs.Addresses(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start := time.Now()
	_, err := put(ctx, conn, "id")
	var u *client.Unreachable
	if status.Code(err) != codes.Unauthenticated || !errors.As(err, &u) {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if strings.Contains(err.Error(), "rpc error") || strings.Contains(err.Error(), "handshake failed") {
		t.Errorf("gRPC's words in %q", err)
	}
}

func TestNewRefuses(t *testing.T) {
	c := coordinatortest.New(t, 1)
	creds, err := identity.LoadCredentials(c.Credentials(t, accessv1.Role_ROLE_VIEWER, "v"))
	if err != nil {
		t.Fatal(err)
	}
	conf := mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC)
	for name, o := range map[string]client.Options{
		"no address": {TLS: conf}, "no port": {TLS: conf, Addresses: []string{"c1.example.org"}}, "no TLS": {Addresses: []string{"c1:7443"}},
	} {
		if _, err := client.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

package coordinator_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/coordinator"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// member is one coordinator that runs in this process, on real sockets, with a real disk.
type member struct {
	dir, address, http string
	stop               func()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newMember(t *testing.T, name string) (*member, coordinator.Settings) {
	m := &member{dir: filepath.Join(t.TempDir(), name), address: freeAddress(t), http: freeAddress(t)}
	return m, coordinator.Settings{Name: name, Listen: m.address, Advertise: m.address, HTTPListen: m.http}
}

func (m *member) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- coordinator.Run(ctx, coordinator.Options{DataDir: m.dir, Logger: slog.New(slog.DiscardHandler)})
	}()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", m.dir, err)
		}
	}
	t.Cleanup(m.stop)
}

// login gets credentials for a token, as musterctl does.
func login(t *testing.T, address, token, name string) *identity.Credentials {
	t.Helper()
	parsed, err := identity.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	response, err := join(t, address, parsed, &coordinatorv1.JoinRequest{TokenId: parsed.ID, TokenSecret: parsed.Secret, Csr: csr, Name: name})
	if err != nil {
		t.Fatalf("join: %v", err)
	}
	c, err := identity.NewCredentials(key, response.GetCertificateChain(), response.GetCaBundle())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func join(t *testing.T, address string, token identity.Token, req *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(mtls.Pinned(token.Pin, mtls.ALPNgRPC))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return coordinatorv1.NewEnrollServiceClient(conn).Join(ctx, req, grpc.WaitForReady(true))
}

func dial(t *testing.T, m *member, c *identity.Credentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.address,
		grpc.WithTransportCredentials(credentials.NewTLS(mtls.Client(c, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// found starts a cluster of three and logs its administrator in.
func found(t *testing.T) ([]*member, *identity.Credentials) {
	t.Helper()
	ctx := context.Background()
	first, settings := newMember(t, "c1")
	token, err := coordinator.Init(ctx, coordinator.InitOptions{
		Settings: settings, DataDir: first.dir, ClusterName: "test", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	first.run(t)
	admin := login(t, first.address, token, "admin")
	members := []*member{first}
	for _, name := range []string{"c2", "c3"} {
		response, err := coordinatorv1.NewClusterServiceClient(dial(t, first, admin)).CreateCoordinatorToken(ctx, &coordinatorv1.CreateCoordinatorTokenRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		m, settings := newMember(t, name)
		if err := coordinator.Join(ctx, coordinator.JoinOptions{Settings: settings, DataDir: m.dir, Coordinator: first.address, Token: response.GetToken()}); err != nil {
			t.Fatal(err)
		}
		m.run(t)
		members = append(members, m)
	}
	until(t, "three voters", func() bool {
		peers, err := coordinatorv1.NewClusterServiceClient(dial(t, first, admin)).ListPeers(ctx, &coordinatorv1.ListPeersRequest{})
		voters := 0
		for _, peer := range peers.GetPeers() {
			if peer.GetVoter() {
				voters++
			}
		}
		return err == nil && voters == 3
	})
	return members, admin
}

func until(t *testing.T, what string, met func() bool) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-ticker.C {
		if met() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestClusterOfThree(t *testing.T) {
	members, admin := found(t)
	ctx := context.Background()
	t.Run("a follower takes writes and serves them at once on all", func(t *testing.T) {
		for i, m := range members {
			name := fmt.Sprintf("secret-%d", i)
			secrets := coordinatorv1.NewSecretServiceClient(dial(t, m, admin))
			for range 2 { // The second is a repeated request.
				response, err := secrets.PutSecret(ctx, &coordinatorv1.PutSecretRequest{Name: name, Value: []byte("x"), RequestId: name})
				if err != nil || response.GetSecret().GetVersion() != 1 {
					t.Fatalf("put through %s: %v, %v", m.address, response, err)
				}
			}
			for _, other := range members {
				list, err := coordinatorv1.NewSecretServiceClient(dial(t, other, admin)).ListSecrets(ctx, &coordinatorv1.ListSecretsRequest{})
				if err != nil || len(list.GetSecrets()) != i+1 {
					t.Fatalf("list through %s: %v, %v", other.address, list, err)
				}
			}
		}
	})
	t.Run("roles", func(t *testing.T) {
		cluster := coordinatorv1.NewClusterServiceClient(dial(t, members[1], admin))
		response, err := cluster.CreateUserToken(ctx, &coordinatorv1.CreateUserTokenRequest{Name: "eve", Role: accessv1.Role_ROLE_VIEWER})
		if err != nil {
			t.Fatal(err)
		}
		viewer := login(t, members[2].address, response.GetToken(), "eve")
		conn := dial(t, members[1], viewer)
		if _, err := coordinatorv1.NewHostServiceClient(conn).ListHosts(ctx, &coordinatorv1.ListHostsRequest{}); err != nil {
			t.Errorf("a viewer may look: %v", err)
		}
		_, err = coordinatorv1.NewHostServiceClient(conn).CreateHostToken(ctx, &coordinatorv1.CreateHostTokenRequest{})
		if status.Code(err) != codes.PermissionDenied || rpcerr.Reason(err) != "NOT_ALLOWED" {
			t.Errorf("a viewer made a host token: %v", err)
		}
		used, _ := identity.ParseToken(response.GetToken())
		_, csr, _ := identity.NewRequest()
		_, err = join(t, members[0].address, used, &coordinatorv1.JoinRequest{TokenId: used.ID, TokenSecret: used.Secret, Csr: csr, Name: "eve"})
		if status.Code(err) != codes.PermissionDenied || rpcerr.Reason(err) != "JOIN_DENIED" {
			t.Errorf("a token was used twice: %v", err)
		}
	})
	t.Run("json", func(t *testing.T) { checkJSON(t, members[2], admin) })
	t.Run("the leader goes", func(t *testing.T) {
		leader := 0
		state, err := coordinatorv1.NewClusterServiceClient(dial(t, members[0], admin)).GetStatus(ctx, &coordinatorv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"c1", "c2", "c3"} {
			if state.GetLeader() == name {
				leader = i
			}
		}
		members[leader].stop()
		other := members[(leader+1)%3]
		list, err := coordinatorv1.NewSecretServiceClient(dial(t, other, admin)).ListSecrets(ctx, &coordinatorv1.ListSecretsRequest{})
		if err != nil || len(list.GetSecrets()) != 3 {
			t.Fatalf("after the leader went: %v, %v", list, err)
		}
		members[leader].run(t)
		until(t, "the stopped member is back", func() bool {
			list, err := coordinatorv1.NewSecretServiceClient(dial(t, members[leader], admin)).ListSecrets(ctx, &coordinatorv1.ListSecretsRequest{})
			return err == nil && len(list.GetSecrets()) == 3
		})
	})
}

// checkJSON calls a coordinator as another service would, with nothing but HTTP and a client certificate.
func checkJSON(t *testing.T, m *member, admin *identity.Credentials) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: admin.Pool(), Certificates: []tls.Certificate{*admin.Certificate()}, MinVersion: tls.VersionTLS13,
	}}}
	defer client.CloseIdleConnections()
	post := func(method, body string) (int, string) {
		t.Helper()
		response, err := client.Post("https://"+m.http+"/muster.coordinator.v1."+method, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	if code, body := post("SecretService/ListSecrets", "{}"); code != http.StatusOK || !strings.Contains(body, `"secret-0"`) {
		t.Errorf("list: %d %s", code, body)
	}
	if code, body := post("RunService/GetRun", `{"runId":"r-0"}`); code != http.StatusNotFound || !strings.Contains(body, "RUN_NOT_FOUND") {
		t.Errorf("missing run: %d %s", code, body)
	}
	if code, body := post("RunService/GetRun", `{"runIdd":"r-0"}`); code != http.StatusBadRequest || !strings.Contains(body, "runIdd") {
		t.Errorf("misspelt field: %d %s", code, body)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		response, err := client.Get("https://" + m.http + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %d %s", path, response.StatusCode, body)
		}
	}
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
	client.CloseIdleConnections()
	bare := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: admin.Pool(), MinVersion: tls.VersionTLS13}}}
	response, err := bare.Post("https://"+m.http+"/muster.coordinator.v1.SecretService/ListSecrets", "application/json", bytes.NewReader([]byte("{}")))
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d, want 401", response.StatusCode)
	}
}

func TestInitRefusesWhatItCannotFound(t *testing.T) {
	for name, change := range map[string]func(*coordinator.InitOptions){
		"cluster name": func(o *coordinator.InitOptions) { o.ClusterName = "Prod!" },
		"name":         func(o *coordinator.InitOptions) { o.Name = "" },
		"listen":       func(o *coordinator.InitOptions) { o.Listen = "7443" },
		"advertise":    func(o *coordinator.InitOptions) { o.Advertise = ":7443" },
		"http":         func(o *coordinator.InitOptions) { o.HTTPListen = "x" },
	} {
		o := coordinator.InitOptions{
			Settings: coordinator.Settings{Name: "c1", Listen: ":7443", Advertise: "c1:7443"}, DataDir: filepath.Join(t.TempDir(), "d"),
			ClusterName: "prod", Logger: slog.New(slog.DiscardHandler),
		}
		change(&o)
		if _, err := coordinator.Init(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	o := coordinator.InitOptions{
		Settings: coordinator.Settings{Name: "c1", Listen: ":7443", Advertise: "c1:7443"}, DataDir: t.TempDir(), ClusterName: "prod", Logger: slog.New(slog.DiscardHandler),
	}
	if _, err := coordinator.Init(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	if _, err := coordinator.Init(context.Background(), o); err == nil || !strings.Contains(err.Error(), "holds a coordinator already") {
		t.Errorf("init twice: %v", err)
	}
}

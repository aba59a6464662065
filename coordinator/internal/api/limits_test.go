package api_test

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestTokens(t *testing.T) {
	w := newWorld(t)
	hosts, clusters := coordinatorv1.NewHostServiceClient(w.conn), coordinatorv1.NewClusterServiceClient(w.conn)
	for ttl, want := range map[time.Duration]time.Duration{0: 15 * time.Minute, time.Hour: time.Hour, 24 * time.Hour: 24 * time.Hour} {
		response, err := hosts.CreateHostToken(t.Context(), &coordinatorv1.CreateHostTokenRequest{Ttl: durationpb.New(ttl)})
		if err != nil {
			t.Fatalf("ttl %s: %v", ttl, err)
		}
		if left := time.Until(response.GetExpiresAt().AsTime()); left > want || left < want-time.Minute {
			t.Errorf("ttl %s: lives for %s", ttl, left)
		}
		token, err := identity.ParseToken(response.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		if stored := w.state.View().Token(token.ID); !bytes.Equal(stored.GetSecretHash(), token.SecretHash()) || stored.GetRole() != accessv1.Role_ROLE_AGENT {
			t.Errorf("stored is %v", stored)
		}
	}
	for _, ttl := range []time.Duration{-time.Second, 24*time.Hour + time.Second} {
		if _, err := hosts.CreateHostToken(t.Context(), &coordinatorv1.CreateHostTokenRequest{Ttl: durationpb.New(ttl)}); rpcerr.Reason(err) != "INVALID" {
			t.Errorf("ttl %s: %v, want it refused", ttl, err)
		}
	}
	for name, req := range map[string]*coordinatorv1.CreateUserTokenRequest{
		"no name": {Role: accessv1.Role_ROLE_VIEWER}, "no role": {Name: "eve"}, "an agent": {Name: "eve", Role: accessv1.Role_ROLE_AGENT},
		"a coordinator": {Name: "eve", Role: accessv1.Role_ROLE_COORDINATOR}, "a bad name": {Name: "Eve!", Role: accessv1.Role_ROLE_VIEWER},
		"a long request id": {Name: "eve", Role: accessv1.Role_ROLE_VIEWER, RequestId: strings.Repeat("r", 65)},
	} {
		if _, err := clusters.CreateUserToken(t.Context(), req); rpcerr.Reason(err) != "INVALID" {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}

func TestJoinThroughTheAPI(t *testing.T) {
	w := newWorld(t)
	clusters, enroll := coordinatorv1.NewClusterServiceClient(w.conn), coordinatorv1.NewEnrollServiceClient(w.conn)
	token := func() identity.Token {
		t.Helper()
		response, err := clusters.CreateCoordinatorToken(t.Context(), &coordinatorv1.CreateCoordinatorTokenRequest{})
		if err != nil {
			t.Fatal(err)
		}
		token, err := identity.ParseToken(response.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	join := func(token identity.Token, name, address string) (*coordinatorv1.JoinResponse, error) {
		t.Helper()
		_, csr, err := identity.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		return enroll.Join(t.Context(), &coordinatorv1.JoinRequest{TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Name: name, Address: address})
	}
	denied := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied || rpcerr.Reason(err) != "JOIN_DENIED" || strings.Contains(err.Error(), "address") {
			t.Errorf("%s: %v, want it denied without a reason", what, err)
		}
	}
	first := token()
	own := w.state.View().Identity("spiffe://coordinator.test.muster/c1").GetAddress()
	for what, address := range map[string]string{"no address": "", "no port": "c2", "no host": ":7443", "200 KB": strings.Repeat("a", 200<<10) + ":7443", "that of c1": own} {
		_, err := join(first, "c2", address)
		denied(what, err)
	}
	response, err := join(first, "c2", "c2.example:7443") // None of those burnt the token.
	if err != nil {
		t.Fatal(err)
	}
	if got := response.GetCoordinators(); len(got) != 1 || got[0] != own {
		t.Errorf("c2 is told of %v, want %s", got, own)
	}
	leaf, err := x509.ParseCertificate(response.GetCertificateChain()[0])
	if err != nil || leaf.VerifyHostname("c2.example") != nil {
		t.Errorf("the certificate is for %v, %v", leaf.DNSNames, err)
	}
	_, err = join(token(), "c2", "c2.example:7443")
	denied("c2 again", err)
	_, err = join(token(), "c3", "c2.example:7443")
	denied("the address of c2", err)
	forC2, err := clusters.CreateCoordinatorToken(t.Context(), &coordinatorv1.CreateCoordinatorTokenRequest{Name: "c2"})
	if err != nil {
		t.Fatal(err)
	}
	named, err := identity.ParseToken(forC2.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	_, err = join(named, "c2", "c2.example:7443")
	denied("c2 with a token for it", err)
	user, err := clusters.CreateUserToken(t.Context(), &coordinatorv1.CreateUserTokenRequest{Name: "eve", Role: accessv1.Role_ROLE_VIEWER})
	if err != nil {
		t.Fatal(err)
	}
	eve, err := identity.ParseToken(user.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	_, err = join(eve, "eve", "eve.example:1")
	denied("a user with an address", err)
	if _, err := join(eve, "eve", ""); err != nil {
		t.Errorf("a user: %v", err)
	}
}

func TestSecrets(t *testing.T) {
	w := newWorld(t)
	secrets := coordinatorv1.NewSecretServiceClient(w.conn)
	put := func(name string, size int, request string) (*coordinatorv1.PutSecretResponse, error) {
		return secrets.PutSecret(t.Context(), &coordinatorv1.PutSecretRequest{Name: name, Value: bytes.Repeat([]byte{1}, size), RequestId: request})
	}
	for i, name := range []string{"a", "A.b_c-9", strings.Repeat("n", 64), "9", "db.password"} {
		response, err := put(name, 1+i*100, "ok-"+name[:1])
		if err != nil || response.GetSecret().GetVersion() != 1 || response.GetSecret().GetName() != name {
			t.Errorf("%q: %v, %v", name, response, err)
		}
	}
	if response, err := put("a", 512000, "largest"); err != nil || response.GetSecret().GetVersion() != 2 {
		t.Errorf("a secret of 512000 bytes: %v, %v", response, err)
	}
	for name, try := range map[string]func() (*coordinatorv1.PutSecretResponse, error){
		"empty name": func() (*coordinatorv1.PutSecretResponse, error) { return put("", 1, "r") },
		"long name":  func() (*coordinatorv1.PutSecretResponse, error) { return put(strings.Repeat("n", 65), 1, "r") },
		"a path":     func() (*coordinatorv1.PutSecretResponse, error) { return put("../a", 1, "r") },
		"a newline":  func() (*coordinatorv1.PutSecretResponse, error) { return put("a\n", 1, "r") },
		"dot first":  func() (*coordinatorv1.PutSecretResponse, error) { return put(".a", 1, "r") },
		"no value":   func() (*coordinatorv1.PutSecretResponse, error) { return put("b", 0, "r") },
		"too large":  func() (*coordinatorv1.PutSecretResponse, error) { return put("b", 512001, "r") },
		"no request": func() (*coordinatorv1.PutSecretResponse, error) { return put("b", 1, "") },
	} {
		if _, err := try(); rpcerr.Reason(err) != "INVALID" || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	if _, err := put("other", 1, "largest"); rpcerr.Reason(err) != "REQUEST_REUSED" {
		t.Errorf("another request with a used id: %v", err)
	}
	list, err := secrets.ListSecrets(t.Context(), &coordinatorv1.ListSecretsRequest{})
	if err != nil || len(list.GetSecrets()) != 5 {
		t.Errorf("listed are %v, %v, want 5", list.GetSecrets(), err)
	}
}

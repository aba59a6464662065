package api_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

func TestJSON(t *testing.T) {
	w := newWorld(t)
	w.host("h1", map[string]string{"zone": "a"})
	w.host("h2", map[string]string{"zone": "b"})
	const http1 = "http/1.1"
	l, err := tls.Listen("tcp", "127.0.0.1:0", mtls.Server(w.identities.Credentials(t, accessv1.Role_ROLE_COORDINATOR, "c1"), http1))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: w.servers.Handler(grpcserver.NewGate(grpcserver.GateOptions{})), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	client := func(c *identity.Credentials) *http.Client {
		config := mtls.Client(c, accessv1.Role_ROLE_COORDINATOR, http1)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		t.Cleanup(client.CloseIdleConnections)
		return client
	}
	viewer := client(w.identities.Credentials(t, accessv1.Role_ROLE_VIEWER, "eve"))
	nobody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(nobody.CloseIdleConnections)
	for _, test := range []struct {
		name, method, body string
		client             *http.Client
		code               int
		has, hasNot        string
	}{
		{name: "a call", method: "HostService/ListHosts", body: `{"selector":"zone=a"}`, code: 200, has: `"h1"`, hasNot: `"h2"`},
		{name: "nothing at all", method: "HostService/ListHosts", code: 200, has: `"h2"`},
		{name: "an empty object", method: "HostService/ListHosts", body: "{}", code: 200, has: `"h2"`},
		// With the misspelt selector dropped, this would be all hosts.
		{name: "a misspelt field", method: "HostService/ListHosts", body: `{"selektor":"zone=a"}`, code: 400, has: "selektor", hasNot: `"h2"`},
		{name: "a wrong type", method: "HostService/ListHosts", body: `{"selector":7}`, code: 400, has: "selector"},
		{name: "a field twice", method: "HostService/ListHosts", body: `{"selector":"zone=a","selector":"zone=b"}`, code: 400, has: "selector"},
		{name: "no JSON", method: "HostService/ListHosts", body: `selector=zone`, code: 400, has: "invalid_argument"},
		{name: "more than one", method: "HostService/ListHosts", body: `{}{}`, code: 400, has: "invalid_argument"},
		{name: "a bad selector", method: "HostService/ListHosts", body: `{"selector":"zone"}`, code: 400, has: "INVALID"},
		{name: "not found", method: "RunService/GetRun", body: `{"runId":"r-0"}`, code: 404, has: "RUN_NOT_FOUND"},
		{name: "not allowed", method: "SecretService/PutSecret", body: `{"name":"a","value":"eA==","requestId":"1"}`, code: 403, has: "NOT_ALLOWED"},
		{name: "nobody", method: "HostService/ListHosts", body: "{}", client: nobody, code: 401, has: "UNKNOWN_IDENTITY"},
		{name: "no such method", method: "HostService/EatHosts", body: "{}", code: 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.client == nil {
				test.client = viewer
			}
			response, err := test.client.Post("https://"+l.Addr().String()+"/muster.coordinator.v1."+test.method, "application/json", strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != test.code || !strings.Contains(string(body), test.has) || test.hasNot != "" && strings.Contains(string(body), test.hasNot) {
				t.Errorf("%d %s, want %d with %q and without %q", response.StatusCode, body, test.code, test.has, test.hasNot)
			}
		})
	}
}

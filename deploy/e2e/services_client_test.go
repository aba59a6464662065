//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// otherServices: a program that has a client certificate and the .proto, and no code of ours, applies a stack and watches its run.
func otherServices(t *testing.T, h *house) {
	_, keys, err := h.Muster.Login(t.Context(), "deployer", "service")
	if err != nil {
		t.Fatal(err)
	}
	before := h.version(t)
	next := map[string]string{"v1": "v2", "v2": "v1", "v5": "v1"}[before]
	t.Run("JSON", func(t *testing.T) {
		client := jsonClient(t, keys)
		base := "https://" + h.Muster.Coordinators[1].HTTP() + "/muster.coordinator.v1."
		var applied struct{ Run struct{ ID string } }
		post(t, client, base+"StackService/ApplyStack", request(h.shop(next)), &applied)
		if applied.Run.ID == "" {
			t.Fatal("no run was started")
		}
		err := fleet.Poll(t.Context(), 200*time.Millisecond, "the run to succeed", func() (bool, error) {
			var got struct{ Run struct{ State string } }
			post(t, client, base+"RunService/GetRun", map[string]any{"runId": applied.Run.ID}, &got)
			switch got.Run.State {
			case "RUN_STATE_SUCCEEDED":
				return true, nil
			case "RUN_STATE_RUNNING":
				return false, nil
			}
			return false, fmt.Errorf("the run is %s", got.Run.State)
		})
		if err != nil {
			t.Fatal(err)
		}
		h.settled(t, next)
	})
	t.Run("grpcurl", func(t *testing.T) {
		grpcurl, err := h.Grpcurl(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var applied struct{ Run struct{ ID string } }
		answer := h.grpcurl(t, grpcurl, keys, "stack_service.proto", "StackService/ApplyStack", request(h.shop(before)))
		if err := json.Unmarshal([]byte(answer), &applied); err != nil {
			t.Fatalf("%v: %s", err, answer)
		}
		watched := h.grpcurl(t, grpcurl, keys, "run_service.proto", "RunService/WatchRun", map[string]any{"runId": applied.Run.ID})
		if !strings.Contains(watched, "RUN_STATE_SUCCEEDED") {
			t.Errorf("watched a run that did not succeed: %s", watched[max(0, len(watched)-600):])
		}
		h.settled(t, before)
	})
}

func request(compose string) map[string]any {
	return map[string]any{
		"requestId": fmt.Sprintf("deployer-%d", time.Now().UnixNano()),
		"source": map[string]any{
			"composeFiles": []string{"compose.yaml"},
			"files":        []any{map[string]any{"path": "compose.yaml", "content": base64.StdEncoding.EncodeToString([]byte(compose))}},
		},
	}
}

// jsonClient is what curl --cacert --cert --key is.
func jsonClient(t *testing.T, keys string) *http.Client {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(keys, "identity.crt"), filepath.Join(keys, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(keys, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}},
	}
}

func post(t *testing.T, client *http.Client, url string, body, out any) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, resp.Status, text)
	}
	if err := json.Unmarshal(text, out); err != nil {
		t.Fatalf("%s: %v: %s", url, err, text)
	}
}

func (h *house) grpcurl(t *testing.T, program, keys, proto, method string, body any) string {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	protos, err := filepath.Abs(filepath.Join("..", "..", "proto"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.Run(t.Context(), fleet.Command{Path: program, Stdin: string(data), Args: []string{
		"-cacert", filepath.Join(keys, "ca.crt"), "-cert", filepath.Join(keys, "identity.crt"), "-key", filepath.Join(keys, "identity.key"),
		"-import-path", protos, "-proto", "muster/coordinator/v1/" + proto, "-max-time", "90", "-d", "@",
		h.Muster.Coordinators[2].Endpoint(), "muster.coordinator.v1." + method,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Stdout
}

//go:build e2e

package e2e_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/spheroseg/muster/deploy/fleet"
)

// badInput: each is a clear error before anything is touched.
func badInput(t *testing.T, h *house) {
	web := func(image, more string) string {
		return fmt.Sprintf("name: bad\nservices:\n  web:\n    image: %s/%s\n%s", h.Registry.Address, image, more)
	}
	const gate = "    x-muster: {gate: {http: {port: 8080, path: /healthz}}}\n"
	at := func(zone string) string {
		return "    deploy: {placement: {constraints: [\"node.labels.zone == " + zone + "\"]}}\n"
	}
	for _, tc := range []struct {
		name string
		text string
		args []string
		code int
		want []string // all in the message
		set  func(*testing.T) (undo func(*testing.T))
	}{
		{name: "unknown key", text: web("shop-app:v1", gate+"    replicas_wanted: 2\n"), code: 2, want: []string{"replicas_wanted"}},
		{name: "image that does not exist", text: web("shop-app:v404", gate), code: 3, want: []string{"shop-app:v404"}},
		{name: "no gate", text: web("shop-app:v1", ""), code: 8, want: []string{"web", "gate"}},
		{name: "file of 5 MB", text: web("shop-app:v1", gate) + "# " + strings.Repeat("x", 5<<20) + "\n", code: 2, want: []string{"compose.yaml"}},
		{name: "stale plan hash", text: web("shop-app:v1", gate), args: []string{"--plan", strings.Repeat("0", 64)}, code: 8, want: []string{"plan"}},
		{
			name: "port taken", text: web("shop-app:v1", gate+"    ports: [\"4000:8080\"]\n"+at("b")), code: 8, want: []string{"4000", "h2"},
			set: h.takePort,
		},
		{
			name: "host down", text: web("shop-app:v1", gate+at("c")), code: 8, want: []string{"h3"},
			set: h.takeHost,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.set != nil {
				undo := tc.set(t)
				defer undo(t)
			}
			mark := h.Witness.Mark()
			before := h.runs(t)
			o := h.apply(t, tc.text, tc.args...)
			o.want(t, tc.code)
			t.Logf("%s", o.text[:min(len(o.text), 600)])
			for _, w := range tc.want {
				if !strings.Contains(o.text, w) {
					t.Errorf("the message does not name %q:\n%s", w, o.text)
				}
			}
			if regexp.MustCompile(`rpc error|code =|desc =`).MatchString(o.text) {
				t.Errorf("the message speaks gRPC: %s", o.text)
			}
			if made := h.Witness.Names(mark, "create", "bad."); len(made) > 0 {
				t.Errorf("created %v", made)
			}
			if after := h.runs(t); after != before {
				t.Errorf("%d runs, before %d", after, before)
			}
		})
	}
}

func (h *house) runs(t *testing.T) int {
	t.Helper()
	list, err := fleet.Items[struct{ ID string }](t.Context(), h.Muster, "run", "list")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// takePort lets a foreign process listen on h2.
func (h *house) takePort(t *testing.T) func(*testing.T) {
	p, err := h.Start(fleet.Command{
		Name: "taker", Path: h.Programs.App, Env: []string{"LISTEN=0.0.0.0:4000"}, Machine: h.Hosts[1],
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	}
}

// takeHost ends the agent of h3.
func (h *house) takeHost(t *testing.T) func(*testing.T) {
	agent := h.agent(t, "h3")
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) {
		if err := agent.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
			t.Error(err)
		}
	}
}

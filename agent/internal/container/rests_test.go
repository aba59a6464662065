package container_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestListTellsWhatRests: what Muster stopped can be started as it is, unless its files are gone.
func TestListTellsWhatRests(t *testing.T) {
	h := newHost(t, container.Policy{})
	spec := server(t, h)
	spec.Restart = &agentv1.RestartPolicy{Name: "unless-stopped"}
	spec.Secrets = []*agentv1.SecretMount{{Secret: &agentv1.SecretValue{Name: "jwt", Value: []byte("s3cret")}, Target: "/run/secrets/jwt"}}
	rests := func(when string, want bool) {
		t.Helper()
		all := list(t, h)
		if len(all) != 1 || all[0].GetStopped() != want {
			t.Errorf("%s: got %v, want one container that rests: %t", when, all, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.Create(t.Context(), "run/create/1", spec)
	do(err)
	rests("created", false)
	do(h.Start(t.Context(), spec.GetName()))
	rests("started", false)
	_, err = h.Stop(t.Context(), spec.GetName(), time.Second)
	do(err)
	rests("stopped", true)
	do(h.Start(t.Context(), spec.GetName()))
	rests("started again", false)
	_, err = h.Stop(t.Context(), spec.GetName(), time.Second)
	do(err)
	do(os.RemoveAll(filepath.Join(h.secrets, spec.GetName()))) // as a restart of the host does.
	rests("without its secrets", false)
}

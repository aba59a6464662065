package container_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestSignalByTheEngine: an agent that does not see the container's process asks the engine, once, whatever becomes of the answer.
func TestSignalByTheEngine(t *testing.T) {
	const interrupted = agentv1.FailureReason_FAILURE_REASON_INTERRUPTED
	for _, tt := range []struct {
		name      string
		answer    func(http.ResponseWriter)
		reason    agentv1.FailureReason
		permanent bool
	}{
		{name: "sent", answer: func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }},
		{name: "no answer", answer: func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, reason: interrupted},
		{name: "has ended", answer: refuse(http.StatusConflict), reason: exited, permanent: true},
		{name: "is gone", answer: refuse(http.StatusNotFound), reason: exited, permanent: true},
		{name: "refused", answer: refuse(http.StatusInternalServerError), reason: agentv1.FailureReason_FAILURE_REASON_ENGINE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int32
			// Process 1 exists everywhere, and is not of this container.
			inspected, err := json.Marshal(map[string]any{
				"Id": strings.Repeat("c0ffee", 10), "Name": "/web", "HostConfig": map[string]any{},
				"State":  map[string]any{"Status": "running", "Running": true, "Pid": 1},
				"Config": map[string]any{"Labels": map[string]string{"muster.host": "h1"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/_ping"):
					w.Header().Set("Api-Version", "1.41")
				case strings.HasSuffix(r.URL.Path, "/kill"):
					asked.Add(1)
					if got := r.URL.Query().Get("signal"); got != "1" {
						t.Errorf("got signal %q, want 1", got)
					}
					tt.answer(w)
				default:
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write(inspected)
				}
			}))
			path := filepath.Join(t.TempDir(), "docker.sock")
			if engine.Listener, err = net.Listen("unix", path); err != nil {
				t.Fatal(err)
			}
			engine.Start()
			defer engine.Close()
			e, err := container.New(container.Options{DockerHost: "unix://" + path, HostName: "h1", Logger: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			err = e.Signal(t.Context(), "web", "SIGHUP")
			if tt.reason != 0 {
				wantFailure(t, err, tt.reason, tt.permanent, "web")
			} else if err != nil {
				t.Error(err)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("the engine was asked %d times, want once", n)
			}
		})
	}
}

func refuse(status int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"message":"no"}`))
	}
}

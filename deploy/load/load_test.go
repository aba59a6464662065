package load_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/load"
)

func TestRunCounts(t *testing.T) {
	for _, tc := range []struct {
		name      string
		keepAlive bool
		failEvery int64
	}{
		{"new connections", false, 0},
		{"keep-alive", true, 0},
		{"failures", true, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n, failed atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Version", "v1")
				if tc.failEvery > 0 && n.Add(1)%tc.failEvery == 0 {
					failed.Add(1)
					http.Error(w, "no", http.StatusBadGateway)
				}
			}))
			defer srv.Close()
			l, err := load.New(load.Options{URL: srv.URL, Rate: 200, KeepAlive: tc.keepAlive})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			start := time.Now()
			l.Run(ctx)
			took := time.Since(start)
			r := l.Report()
			if most := int(200*took.Seconds()) + 10; r.Total < 20 || r.Total > most {
				t.Errorf("%d requests in %s at 200 per second, at most %d are due", r.Total, took, most)
			}
			if int64(r.Failed) != failed.Load() {
				t.Errorf("%d failed, the server failed %d: %v", r.Failed, failed.Load(), r.Errors)
			}
			if r.Versions["v1"] != r.Total-r.Failed {
				t.Errorf("versions %v of %d answers", r.Versions, r.Total-r.Failed)
			}
			l.Reset()
			if total, _ := l.Counts(); total != 0 {
				t.Errorf("%d after Reset", total)
			}
		})
	}
}

func TestRefusesPublicAddresses(t *testing.T) {
	for _, url := range []string{"http://8.8.8.8/", "http://example.com/", "http://[2001:4860:4860::8888]/"} {
		if _, err := load.New(load.Options{URL: url}); err == nil {
			t.Errorf("%s was taken", url)
		}
	}
}

func TestUnreachableIsFailure(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	url := srv.URL
	srv.Close()
	l, err := load.New(load.Options{URL: url, Rate: 100, Limit: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l.Run(t.Context())
	if r := l.Report(); r.Failed != r.Total || r.Total == 0 || len(r.Errors) == 0 {
		t.Errorf("report %s, errors %v", r, r.Errors)
	}
}

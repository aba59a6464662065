package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		name    string
		s       *settings
		started time.Time
		path    string
		want    int
	}{
		{"ready", &settings{startup: time.Second}, long, "/healthz", http.StatusOK},
		{"ready work", &settings{startup: time.Second}, long, "/", http.StatusOK},
		{"starting", &settings{startup: time.Hour}, time.Now(), "/healthz", http.StatusServiceUnavailable},
		{"starting work", &settings{startup: time.Hour}, time.Now(), "/", http.StatusServiceUnavailable},
		{"broken is never healthy", &settings{broken: true}, long, "/healthz", http.StatusServiceUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.s.version = "v7"
			rec := httptest.NewRecorder()
			handler(tc.s, tc.started).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, tc.path, nil))
			if rec.Code != tc.want {
				t.Errorf("status %d, want %d", rec.Code, tc.want)
			}
			if rec.Code == http.StatusOK && rec.Header().Get("X-Version") != "v7" {
				t.Errorf("version %q, want v7", rec.Header().Get("X-Version"))
			}
		})
	}
}

func TestMilliseconds(t *testing.T) {
	t.Setenv("GOOD", "250")
	t.Setenv("BAD", "soon")
	if d, err := milliseconds("GOOD", 1); err != nil || d != 250*time.Millisecond {
		t.Errorf("GOOD: %v, %v", d, err)
	}
	if d, err := milliseconds("MISSING", 7); err != nil || d != 7*time.Millisecond {
		t.Errorf("MISSING: %v, %v", d, err)
	}
	if _, err := milliseconds("BAD", 1); err == nil {
		t.Error("BAD: no error")
	}
}

func TestMigrate(t *testing.T) {
	t.Setenv("DATA", t.TempDir())
	t.Setenv("FAIL_MIGRATION", "v3")
	answer := func(path string) string {
		rec := httptest.NewRecorder()
		handler(&settings{}, time.Now()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Body.String()
	}
	if schema := answer("/schema"); schema != "none" {
		t.Errorf("schema before the first migration is %q", schema)
	}
	if err := migrateTo("v2"); err != nil {
		t.Fatal(err)
	}
	if err := migrateTo("v3"); err == nil {
		t.Error("a migration that is to fail does not")
	}
	if schema, notes := answer("/schema"), answer("/migrations"); schema != "v2" || notes != "v2\nv3\n" {
		t.Errorf("schema %q after the migrations %q", schema, notes)
	}
}

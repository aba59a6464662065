package grpcserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

func TestValidRule(t *testing.T) {
	const agent, read = accessv1.Role_ROLE_AGENT, accessv1.Risk_RISK_READ
	for _, tc := range []struct {
		name string
		rule *accessv1.Rule
		want string // "" means valid.
	}{
		{"roles", &accessv1.Rule{Roles: []accessv1.Role{agent}, Risk: read}, ""},
		{"anonymous", &accessv1.Rule{Anonymous: true, Risk: read}, ""},
		{"largest", &accessv1.Rule{Roles: []accessv1.Role{agent}, Risk: read, MaxRequestBytes: MaxRequestBytes}, ""},
		{"nobody", &accessv1.Rule{Risk: read}, "either roles or anonymous"},
		{"both", &accessv1.Rule{Roles: []accessv1.Role{agent}, Anonymous: true, Risk: read}, "either roles or anonymous"},
		{"no risk", &accessv1.Rule{Roles: []accessv1.Role{agent}}, "no risk"},
		{"no role", &accessv1.Rule{Roles: []accessv1.Role{agent, 0}, Risk: read}, "ROLE_UNSPECIFIED"},
		{"too large", &accessv1.Rule{Roles: []accessv1.Role{agent}, Risk: read, MaxRequestBytes: MaxRequestBytes + 1}, "max_request_bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := validRule(tc.rule)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("validRule = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestRates(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := newRates(func() time.Time { return now })
	taken := func(method, caller string, perMinute uint32) (n int) {
		for range 1000 {
			if _, ok := r.take(method, caller, perMinute); !ok {
				return n
			}
			n++
		}
		return n
	}
	if got := taken("/a", "h1", 60); got != 60 {
		t.Errorf("%d calls at once, want 60", got)
	}
	if got := taken("/a", "h2", 60); got != 60 {
		t.Errorf("another caller has %d calls, want 60", got)
	}
	if got := taken("/b", "h1", 6); got != 6 {
		t.Errorf("another method has %d calls, want 6", got)
	}
	if got := taken("/c", "h1", 0); got != 1000 {
		t.Errorf("a method without a rate has %d calls", got)
	}
	if wait, _ := r.take("/b", "h1", 6); wait != 10*time.Second {
		t.Errorf("told to wait %s, want 10s", wait)
	}
	now = now.Add(10 * time.Second)
	if got := taken("/b", "h1", 6); got != 1 {
		t.Errorf("%d calls after waiting, want 1", got)
	}
}

func TestRatesAreBounded(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := newRates(func() time.Time { return now })
	allowed := 0
	for i := range 3 * maxBuckets {
		if _, ok := r.take("/join", fmt.Sprint("10.", i), 2); ok {
			allowed++
		}
	}
	if len(r.buckets) > maxBuckets+1 {
		t.Errorf("%d buckets, want at most %d", len(r.buckets), maxBuckets+1)
	}
	if allowed != maxBuckets+2 {
		t.Errorf("%d calls allowed, want %d: one of each with a bucket and two of all others", allowed, maxBuckets+2)
	}
	now = now.Add(time.Minute) // all are full again, so newcomers get buckets of their own.
	for _, caller := range []string{"10.x", "10.y"} {
		if _, ok := r.take("/join", caller, 2); !ok {
			t.Errorf("%s is refused after the flood", caller)
		}
	}
	if len(r.buckets) != 2 {
		t.Errorf("%d buckets after a minute, want 2", len(r.buckets))
	}
}

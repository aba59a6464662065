package main

import (
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    series
		want float64
	}{
		{"none", nil, 0},
		{"one", series{3}, 3},
		{"odd", series{9, 1, 2}, 2},
		{"even", series{4, 1, 2, 9}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.s.median(); got != tc.want {
				t.Errorf("median %v, want %v", got, tc.want)
			}
		})
	}
}

func TestReport(t *testing.T) {
	var out strings.Builder
	report(&out, "rolling-update-p1", "wall", "s", "swarm", series{2, 3, 2.5}, series{10, 12, 11})
	report(&out, "rolling-update-p1", "failed_requests", "requests", "floor", series{0}, series{0})
	want := "RESULT name=rolling-update-p1 metric=wall value=2.500 unit=s peer=swarm ratio=0.227 peer_value=11.000 runs=3\n" +
		"RESULT name=rolling-update-p1 metric=failed_requests value=0.000 unit=requests peer=floor ratio=- peer_value=0.000 runs=1\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

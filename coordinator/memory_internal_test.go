package coordinator

import "testing"

func TestGCPercent(t *testing.T) {
	for _, tc := range []struct {
		live uint64
		want int
	}{
		{0, 400}, // before the first collection
		{8 << 20, 400},
		{16 << 20, 400},
		{32 << 20, 200},
		{64 << 20, 100},
		{256 << 20, 25},
		{4 << 30, 25},
	} {
		if got := gcPercent(tc.live); got != tc.want {
			t.Errorf("%d MiB in use: collected after %d %% more, want %d", tc.live>>20, got, tc.want)
		}
	}
}

//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// watchWindow kills the leader while new instances that will crash are being watched. What one leader saw, the next one must count: the release is rolled
// back, whoever leads. In the first case all instances are new when the leader dies, in the second half of them are.
func watchWindow(t *testing.T, h *house) {
	for _, tt := range []struct {
		name        string
		parallelism int
		delay       string
		starts      int // of new containers before the leader dies
	}{
		{"all updated", replicas, "0s", replicas},
		{"half updated", replicas / 2, "3s", replicas / 2},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			before := h.version(t)
			leader, err := h.Muster.Leader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(h.shop("late"), "parallelism: 2, order: start-first, monitor: 500ms",
				fmt.Sprintf("parallelism: %d, delay: %s, order: start-first, monitor: 8s", tt.parallelism, tt.delay), 1)
			mark := h.Witness.Mark()
			apply := h.applying(t, text)
			apply.until(t, h, mark, "start", tt.starts)
			if died := h.Witness.Names(mark, "die", prefix); len(died) > 0 {
				t.Errorf("%v ended before the leader was killed", died)
			}
			if err := leader.Kill(); err != nil {
				t.Fatal(err)
			}
			o := apply.wait()
			o.want(t, 1)
			if !strings.Contains(o.text, "was rolled back") {
				t.Errorf("the run was not rolled back:\n%s", o.text)
			}
			h.settled(t, before)
			if err := leader.Restart(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(h.Muster.Voters(t.Context(), 3), h.Muster.Reaches(t.Context(), leader)); err != nil {
				t.Error(err)
			}
		}) {
			return
		}
	}
}

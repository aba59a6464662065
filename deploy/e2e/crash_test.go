//go:build crash

package e2e_test

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

const repeats = 20

// TestCrash repeats the three updates that must lose no request: the default one, the failed one, and the one whose leader is killed.
func TestCrash(t *testing.T) {
	h := furnish(t)
	h.apply(t, h.shop("v1")).want(t, 0)
	h.settled(t, "v1")
	now := "v1"
	end := until(t, 0.9)
	for i := range repeats {
		if time.Now().After(end) {
			t.Logf("%d of %d repeats in the time that was given", i, repeats)
			return
		}
		next := map[string]string{"v1": "v2", "v2": "v1"}[now]
		ok := t.Run(fmt.Sprintf("update %d", i+1), func(t *testing.T) {
			defer h.explain(t)
			mark := h.Witness.Mark()
			stop := h.loaded(t, i%2 == 1)
			h.apply(t, h.shop(next)).want(t, 0)
			unharmed(t, stop())
			h.settled(t, next)
			h.onceEach(t, mark)
		})
		ok = ok && t.Run(fmt.Sprintf("failed update %d", i+1), func(t *testing.T) {
			stop := h.loaded(t, i%2 == 1)
			h.apply(t, h.shop("bad")).want(t, 1)
			unharmed(t, stop())
			h.settled(t, next)
		})
		ok = ok && t.Run(fmt.Sprintf("leader killed %d", i+1), func(t *testing.T) {
			defer h.explain(t)
			h.killLeader(t, now, i)
		})
		if !ok {
			t.Fatal("the next repeat would start from another state")
		}
	}
}

// killLeader kills the leader at another moment with every repeat: after the 1st to 6th start of a new container.
func (h *house) killLeader(t *testing.T, version string, i int) {
	leader, err := h.Muster.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mark := h.Witness.Mark()
	stop := h.loaded(t, i%2 == 1)
	apply := h.applying(t, h.shop(version))
	apply.until(t, h, mark, "start", 1+i%replicas)
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	apply.wait().want(t, 0)
	unharmed(t, stop())
	h.settled(t, version)
	h.onceEach(t, mark)
	if err := leader.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Muster.Voters(t.Context(), 3), h.Muster.Reaches(t.Context(), leader)); err != nil {
		t.Fatal(err)
	}
}

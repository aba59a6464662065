//go:build crash

package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const repeats = 20

// TestCrash repeats updates on real engines that must lose no request: the default one, the failed one, those whose leader or agent is killed; and one whose
// engine is.
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
		ok = ok && t.Run(fmt.Sprintf("agent killed %d", i+1), func(t *testing.T) {
			defer h.explain(t)
			h.killAgent(t, next, i)
		})
		ok = ok && t.Run(fmt.Sprintf("engine killed %d", i+1), func(t *testing.T) {
			defer h.explain(t)
			h.killEngine(t, now, next, i)
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

// moments of an update at which something is killed, in the engines' words.
func moment(i int) (action string, n int) {
	return []string{"create", "start", "die", "destroy"}[i%4], 1 + i%replicas
}

// killAgent kills an agent at another moment with every repeat, and starts it again at once.
func (h *house) killAgent(t *testing.T, version string, i int) {
	agent := h.Muster.Agents[i%len(h.Muster.Agents)]
	action, n := moment(i)
	mark := h.Witness.Mark()
	stop := h.loaded(t, i%2 == 1)
	apply := h.applying(t, h.shop(version))
	apply.until(t, h, mark, action, n)
	if err := errors.Join(agent.Kill(), agent.Restart()); err != nil {
		t.Fatal(err)
	}
	apply.wait().want(t, 0)
	unharmed(t, stop())
	h.settled(t, version)
	h.onceEach(t, mark)
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Fatal(err)
	}
}

// killEngine kills a daemon at another moment with every repeat, and starts it again at once. What ran on it has died with it, so the run may end either
// way; what the release that is current then assigns must run, and nothing else. It leaves the version that was asked for.
func (h *house) killEngine(t *testing.T, version, before string, i int) {
	engine := h.Engines[i%len(h.Engines)]
	action, n := moment(i)
	mark := h.Witness.Mark()
	apply := h.applying(t, h.shop(version))
	apply.until(t, h, mark, action, n)
	if err := errors.Join(engine.Kill(), engine.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	o := apply.wait()
	if err := h.Muster.HostsUp(t.Context(), len(h.Hosts)); err != nil {
		t.Fatal(err)
	}
	switch {
	case o.code == 0:
		h.settled(t, version)
	case o.code == 1 && strings.Contains(o.text, "was rolled back"):
		h.settled(t, before)
		h.apply(t, h.shop(version)).want(t, 0)
		h.settled(t, version)
	default:
		t.Fatalf("musterctl ended with %d:\n%s", o.code, o.text)
	}
}

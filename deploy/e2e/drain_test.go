//go:build e2e

package e2e_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

// lostLimit is the time in which a host that was cut off must be called down: 30 s of silence, and some.
const lostLimit = 90 * time.Second

// TestScaleAndDrain scales a stack, empties a host and loses another, under load; each part finds the stack as the one before left it.
func TestScaleAndDrain(t *testing.T) {
	h := furnish(t)
	for _, part := range []struct {
		name string
		do   func(*testing.T, *house)
	}{
		{"first deploy", firstDeploy},
		{"scale up and down", scaleUpAndDown},
		{"drain and undrain", drainAndUndrain},
		{"lost host", lostHost},
		{"lost host replaced by policy", lostHostReplaced},
	} {
		if !t.Run(part.name, func(t *testing.T) {
			defer h.explain(t)
			part.do(t, h)
		}) && part.name == "first deploy" {
			t.Fatal("nothing can be tested on a stack that is not there")
		}
	}
}

func scaleUpAndDown(t *testing.T, h *house) {
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	kept := h.loaded(t, true)
	for _, n := range []string{"9", "4", "6"} {
		h.ctl(t, "service", "scale", "shop/web", n, "--yes", "--progress", "plain").want(t, 0)
		h.holds(t, int(n[0]-'0'))
	}
	unharmed(t, stop())
	unharmed(t, kept())
	if made := h.Witness.Names(mark, "create", prefix); len(made) != 5 {
		t.Errorf("6 to 9 to 4 to 6 created %v, want 3 and 2", made)
	}
	h.ctl(t, "service", "scale", "shop/web", "6", "--yes", "--progress", "plain").want(t, 0)
	if o := h.ctl(t, "service", "scale", "web", "20000", "--yes"); o.code == 0 || !strings.Contains(o.text, "10000") {
		t.Errorf("20000 instances: exit code %d\n%s", o.code, o.text)
	}
}

func drainAndUndrain(t *testing.T, h *house) {
	h.ctl(t, "host", "drain", "h2", "--dry-run").want(t, 0)
	if len(h.on(t, 1)) != replicas/3 {
		t.Errorf("a dry run left %v on h2", h.on(t, 1))
	}
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	kept := h.loaded(t, true)
	o := h.ctl(t, "host", "drain", "h2", "--yes", "--progress", "plain", "--reason", "kernel")
	o.want(t, 0)
	unharmed(t, stop())
	unharmed(t, kept())
	h.holds(t, replicas)
	if left := h.on(t, 1); len(left) > 0 {
		t.Errorf("h2 is drained and has %v", left)
	}
	if made := h.Witness.Names(mark, "create", prefix); len(made) != replicas/3 {
		t.Errorf("the drain created %v, want %d", made, replicas/3)
	}
	if o := h.ctl(t, "host", "list"); !strings.Contains(o.text, "up,cordoned") {
		t.Errorf("no host is shown as cordoned:\n%s", o.text)
	}
	h.ctl(t, "service", "scale", "shop/web", "8", "--yes", "--progress", "plain").want(t, 0)
	if came := h.on(t, 1); len(came) > 0 {
		t.Errorf("h2 is cordoned and got %v", came)
	}
	h.ctl(t, "host", "undrain", "h2").want(t, 0)
	h.ctl(t, "service", "scale", "shop/web", "6", "--yes", "--progress", "plain").want(t, 0)
	h.holds(t, replicas)
}

// lostHost cuts the third host off. Its containers run on there, unseen, and must be gone by themselves when it is back.
func lostHost(t *testing.T, h *house) {
	if o := h.ctl(t, "host", "drain", "h3", "--lost", "--yes"); o.code == 0 || !strings.Contains(o.text, "answers") {
		t.Errorf("a host that answers was given up: exit code %d\n%s", o.code, o.text)
	}
	former := h.on(t, 2)
	if len(former) == 0 {
		t.Fatal("h3 has no instances to lose")
	}
	mark := h.Witness.Mark()
	lost := h.Hosts[2]
	if err := lost.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lost.Join(context.WithoutCancel(t.Context())) })
	h.await(t, lostLimit, "h3 to be called down", func(context.Context) bool { return strings.Contains(h.ctl(t, "status").text, "1 down") })
	if o := h.ctl(t, "status"); !strings.Contains(o.text, "host drain h3 --lost") {
		t.Errorf("nothing says what to do about h3:\n%s", o.text)
	}
	if o := h.ctl(t, "host", "drain", "h3", "--yes"); o.code == 0 || !strings.Contains(o.text, "--lost") {
		t.Errorf("a host that does not answer was drained: exit code %d\n%s", o.code, o.text)
	}
	h.ctl(t, "host", "drain", "h3", "--lost", "--yes", "--progress", "plain").want(t, 0)
	unharmed(t, h.loadedFor(t, 2*time.Second))
	if made := h.Witness.Names(mark, "create", prefix); len(made) != len(former) {
		t.Errorf("%v were lost and %v created", former, made)
	}
	if still := h.on(t, 2); !slices.Equal(still, former) {
		t.Errorf("h3 had %v, and while it was cut off it has %v", former, still)
	}
	if names := append(h.on(t, 0), h.on(t, 1)...); len(names) != replicas {
		t.Errorf("h1 and h2 have %v, want %d", names, replicas)
	}
	if err := lost.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := h.loaded(t, false)
	h.await(t, lostLimit, "h3 to be rid of what it had", func(context.Context) bool { return len(h.on(t, 2)) == 0 })
	unharmed(t, stop())
	h.holds(t, replicas)
	h.ctl(t, "host", "undrain", "h3").want(t, 0)
	h.apply(t, h.shop("v2")).want(t, 0)
	h.settled(t, "v2")
}

// lostHostReplaced cuts the second host off, and nobody types anything.
func lostHostReplaced(t *testing.T, h *house) {
	replace := strings.Replace(h.shop("v2"), "route: {port: 8080}", "route: {port: 8080}\n      on_host_lost: replace\n      replace_after: 2s", 1)
	h.apply(t, replace).want(t, 0)
	former := h.on(t, 1)
	if len(former) == 0 {
		t.Fatal("h2 has no instances to lose")
	}
	mark := h.Witness.Mark()
	lost := h.Hosts[1]
	if err := lost.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lost.Join(context.WithoutCancel(t.Context())) })
	h.await(t, lostLimit, "the instances of h2 to run elsewhere", func(context.Context) bool {
		runs, err := fleet.Items[struct{ State, Procedure, CreatedBy string }](t.Context(), h.Muster, "run", "list")
		return err == nil && len(runs) > 0 && runs[0].Procedure == "drain" && runs[0].State == "RUN_STATE_SUCCEEDED" && strings.HasPrefix(runs[0].CreatedBy, "warden/")
	})
	unharmed(t, h.loadedFor(t, 2*time.Second))
	if made := h.Witness.Names(mark, "create", prefix); len(made) != len(former) {
		t.Errorf("%v were lost and %v created", former, made)
	}
	if err := lost.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.await(t, lostLimit, "h2 to be rid of what it had", func(context.Context) bool { return len(h.on(t, 1)) == 0 })
	h.settled(t, "v2")
}

// on returns the names of the stack's containers on a host that run, sorted.
func (h *house) on(t *testing.T, host int) []string {
	t.Helper()
	list, err := h.Engines[host].Containers(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name())
	}
	slices.Sort(names)
	return names
}

// holds waits until the engines hold exactly the n instances that the release assigns, all running.
func (h *house) holds(t *testing.T, n int) {
	t.Helper()
	var names, want []string
	h.await(t, settleLimit, "the engines to hold what the release assigns", func(ctx context.Context) bool {
		containers, err := h.Containers(ctx, label)
		if err != nil {
			return false
		}
		names = nil
		for _, c := range containers {
			if c.State != "running" {
				return false
			}
			names = append(names, c.Name())
		}
		slices.Sort(names)
		want = h.instances(t)
		return slices.Equal(names, want) && len(names) == n
	})
	if len(names) != n {
		t.Errorf("engines hold %v, the release assigns %v", names, want)
	}
}

func (h *house) await(t *testing.T, limit time.Duration, what string, ok func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := fleet.Poll(ctx, 200*time.Millisecond, what, func() (bool, error) { return ok(ctx), nil }); err != nil {
		t.Error(err)
	}
}

// loadedFor sends requests for a while, and returns what became of them.
func (h *house) loadedFor(t *testing.T, d time.Duration) load.Report {
	t.Helper()
	stop := h.loaded(t, false)
	h.pause(t, d)
	return stop()
}

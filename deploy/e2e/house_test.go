//go:build e2e || crash

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
	"github.com/spheroseg/muster/deploy/load"
)

const (
	replicas    = 6
	prefix      = "shop." // of the containers of the tests' stack
	label       = "muster.stack=shop"
	settleLimit = 30 * time.Second
	runLimit    = 90 * time.Second
)

// house is a bed with images in its registry, and the stack that the tests roll.
type house struct {
	*fleet.Bed
	images map[string]*fleet.Image
}

func open(t *testing.T) *fleet.Fleet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: nothing was tested on real engines, networks and processes")
	}
	if err := fleet.CanStartEngines(); err != nil {
		t.Skipf("nothing was tested on real engines: %v", err)
	}
	f, err := fleet.Open(t.Context(), fleet.Options{Name: "e2e", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			f.Logs(t.Output(), 30)
		}
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

// furnish makes the house: v1, v2 and v5 are good, bad never becomes healthy, late does and crashes after a while.
func furnish(t *testing.T) *house {
	t.Helper()
	f := open(t)
	bed, err := f.MakeBed(t.Context(), fleet.BedOptions{Registry: true})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{Bed: bed, images: map[string]*fleet.Image{}}
	for _, v := range []string{"v1", "v2", "v5", "bad", "late"} {
		env := []string{"VERSION=" + v}
		switch v {
		case "bad":
			env = append(env, "BROKEN=1")
		case "late":
			env = append(env, "CRASH_AFTER_MS=5000")
		}
		image, err := fleet.NewImage(fleet.ImageSpec{Tag: "shop-app:" + v, Program: bed.Programs.App, Env: env, Labels: map[string]string{"version": v}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image.Push(t.Context(), bed.Registry.Address); err != nil {
			t.Fatal(err)
		}
		h.images[v] = image
	}
	return h
}

// shop is the stack of the tests.
func (h *house) shop(version string) string {
	return fmt.Sprintf(`name: shop
services:
  web:
    image: %s/shop-app:%s
    restart: always
    ports: ["8080"]
    environment: {STARTUP_MS: "300"}
    deploy:
      replicas: %d
      update_config: {parallelism: 2, order: start-first, monitor: 500ms, failure_action: rollback}
    x-muster:
      gate: {http: {port: 8080, path: /healthz}, deadline: 4s}
      route: {port: 8080}
`, h.Registry.Address, version, replicas)
}

// outcome of a musterctl that ran to its end.
type outcome struct {
	code int
	text string
}

func (h *house) ctl(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	var out strings.Builder
	err := h.Muster.CtlTo(ctx, &out, &out, args...)
	o := outcome{text: out.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		o.code = exit.ExitCode()
	} else if err != nil {
		t.Errorf("musterctl %s: %v: %s", strings.Join(args, " "), err, o.text)
		o.code = -1
	}
	return o
}

// apply applies a compose file and follows its run to the end.
func (h *house) apply(t *testing.T, text string, args ...string) outcome {
	t.Helper()
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return h.ctl(t, append([]string{"stack", "apply", "-f", file, "--yes", "--progress", "plain"}, args...)...)
}

// applied is an apply beside the test's own doings.
type applied struct {
	outcome
	done chan struct{} // closed when the outcome is there
}

// applying starts to apply a compose file.
func (h *house) applying(t *testing.T, text string) *applied {
	t.Helper()
	return h.doing(t, func() outcome { return h.apply(t, text) })
}

// doing starts something that ends with an outcome.
func (h *house) doing(t *testing.T, do func() outcome) *applied {
	t.Helper()
	a := &applied{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.outcome = do()
	}()
	t.Cleanup(func() { <-a.done })
	return a
}

// wait returns the outcome when it is there.
func (a *applied) wait() outcome {
	<-a.done
	return a.outcome
}

// until waits for the n-th action on the stack's containers while the apply goes on.
func (a *applied) until(t *testing.T, h *house, mark int, action string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	go func() {
		select {
		case <-a.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := h.Witness.Await(ctx, mark, action, prefix, n); err != nil {
		cancel()
		t.Fatalf("%v; musterctl ended with %d:\n%s", err, a.wait().code, a.text)
	}
}

// explain shows the latest run of a test that failed.
func (h *house) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, args := range [][]string{{"run", "list"}, {"service", "ps", "--all"}, {"host", "list"}} {
		t.Logf("musterctl %s:\n%s", strings.Join(args, " "), h.ctl(t, args...).text)
	}
	if runs, err := fleet.Items[struct{ ID string }](t.Context(), h.Muster, "run", "list"); err == nil && len(runs) > 0 {
		t.Log(h.ctl(t, "run", "show", runs[0].ID).text)
	}
}

func (o outcome) want(t *testing.T, code int) {
	t.Helper()
	if o.code != code {
		t.Errorf("musterctl ended with %d, want %d:\n%s", o.code, code, o.text)
	}
}

// instance as musterctl shows it.
type instance struct {
	Expected  bool
	Host      string
	Container struct{ Name string }
}

func (h *house) instances(t *testing.T) []string {
	t.Helper()
	list, err := fleet.Items[instance](t.Context(), h.Muster, "service", "ps", "shop/web")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		if i.Expected {
			names = append(names, i.Container.Name)
		}
	}
	slices.Sort(names)
	return names
}

// settled checks that the engines hold exactly the instances that the release assigns, all running, all of the version: no orphan and no duplicate.
func (h *house) settled(t *testing.T, version string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	last := ""
	err := fleet.Poll(ctx, 200*time.Millisecond, "the engines to hold what the release assigns", func() (bool, error) {
		containers, err := h.Containers(ctx, label)
		if err != nil {
			last = err.Error()
			return false, nil
		}
		var names []string
		for _, c := range containers {
			name := c.Name()
			if c.State != "running" || c.ImageID != h.images[version].ID() {
				name += " (" + c.State + ", " + c.Image + ")"
			}
			names = append(names, name)
		}
		slices.Sort(names)
		want := h.instances(t)
		last = fmt.Sprintf("engines hold %v, the release assigns %v", names, want)
		return slices.Equal(names, want) && len(names) == replicas, nil
	})
	if err != nil {
		t.Errorf("%v: %s", err, last)
	}
}

// loaded sends requests until the returned function is called, which returns what became of them.
func (h *house) loaded(t *testing.T, keepAlive bool) (stop func() load.Report) {
	t.Helper()
	l, err := load.New(load.Options{URL: h.Proxy.URL, Rate: 150, KeepAlive: keepAlive})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	stop = func() load.Report {
		if ctx.Err() == nil { // late failures show within a second
			late := time.NewTimer(time.Second)
			defer late.Stop()
			select {
			case <-late.C:
			case <-ctx.Done():
			}
		}
		cancel()
		wg.Wait()
		return l.Report()
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return stop
}

// unharmed checks that no request was lost.
func unharmed(t *testing.T, r load.Report) {
	t.Helper()
	t.Log(r)
	if r.Failed > 0 || r.Total < 100 {
		t.Errorf("%d of %d requests failed: %s", r.Failed, r.Total, strings.Join(r.Errors, "; "))
	}
}

// onceEach checks with the engines' events that each instance of the release was created exactly once since mark, and nothing else was.
func (h *house) onceEach(t *testing.T, mark int) {
	t.Helper()
	if err := h.Witness.OnceEach(mark, prefix, h.instances(t)); err != nil {
		t.Error(err)
	}
}

// pause gives something the time to happen.
func (h *house) pause(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// version that runs now.
func (h *house) version(t *testing.T) string {
	t.Helper()
	containers, err := h.Containers(t.Context(), label)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		for v, image := range h.images {
			if c.State == "running" && c.ImageID == image.ID() {
				return v
			}
		}
	}
	t.Fatal("no version runs")
	return ""
}

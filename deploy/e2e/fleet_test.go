//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// traces of fleets in the root namespaces: mounts, links, cgroups and folders.
func traces(t *testing.T) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "muster-fleet-e2e") || strings.Contains(line, "docker") {
			found = append(found, line)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if !ofOthers(t, strings.TrimPrefix(l.Name, "mst")) {
			found = append(found, "link "+l.Name)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/muster-fleet-*", "/sys/fs/cgroup/muster-fleet-*", filepath.Join(os.TempDir(), "muster-fleet-e2e-*")} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(file), "muster-fleet-"), "-")
			if !ofOthers(t, number) {
				found = append(found, file)
			}
		}
	}
	rules, err := exec.Command("iptables-save").Output()
	if err == nil {
		for line := range strings.Lines(string(rules)) {
			if strings.Contains(line, "DOCKER") {
				found = append(found, line)
			}
		}
	}
	return found
}

// ofOthers says that a fleet of another name, a demo at the same time, has the number.
func ofOthers(t *testing.T, number string) bool {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "muster-fleet-*-"+number))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs) > 0 && !strings.Contains(dirs[0], "-e2e-")
}

func TestThreeEngines(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: machines, engines and their clean-up were not tested")
	}
	if err := fleet.Sweep(t.Context(), slog.New(slog.DiscardHandler), false); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	f := open(t)
	start := time.Now()
	engines := make([]*fleet.Engine, 3)
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i, name := range []string{"h1", "h2", "h3"} {
		m, err := f.Machine(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { engines[i], errs[i] = f.StartEngine(t.Context(), m) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("three engines after %s", took)
	if took > 15*time.Second {
		t.Errorf("three engines took %s, want at most 15 s", took)
	}
	down := time.Now()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("down after %s", time.Since(down))
	if after := traces(t); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestCrashedFleet kills a fleet's own process: its machines end with it, and the next fleet removes the rest.
func TestCrashedFleet(t *testing.T) {
	if os.Getenv("MUSTER_FLEET_VICTIM") != "" {
		victim(t)
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: machines and their clean-up after a crash were not tested")
	}
	if err := fleet.Sweep(t.Context(), slog.New(slog.DiscardHandler), false); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestCrashedFleet$")
	cmd.Env = append(os.Environ(), "MUSTER_FLEET_VICTIM=1")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the victim was not killed: %v: %s", err, out)
	}
	f := open(t) // sweeps
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if after := traces(t); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// victim starts an engine and a process beside the machines, then dies.
func victim(t *testing.T) {
	f := open(t)
	m, err := f.Machine(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.StartEngine(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(fleet.Command{Name: "beside", Path: "/bin/sleep", Args: []string{"600"}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done()
}

func TestCutAndKill(t *testing.T) {
	f := open(t)
	m, err := f.Machine(t.Context(), "m1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := f.Machine(t.Context(), "m2")
	if err != nil {
		t.Fatal(err)
	}
	reach := func(from *fleet.Machine) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := f.Run(ctx, fleet.Command{Path: "/bin/bash", Args: []string{"-c", "exec 3<>/dev/tcp/" + m.Address + "/4000"}, Machine: from})
		return err
	}
	p, err := f.Start(fleet.Command{Name: "listener", Path: "/usr/bin/perl", Machine: m, Args: []string{"-MIO::Socket::INET", "-e",
		`$s=IO::Socket::INET->new(LocalPort=>4000,Listen=>5,ReuseAddr=>1) or die; while($c=$s->accept){close $c}`}})
	if err != nil {
		t.Fatal(err)
	}
	err = fleet.Poll(t.Context(), 20*time.Millisecond, "listener", func() (bool, error) { return reach(nil) == nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(other); err != nil {
		t.Errorf("from the other machine: %v", err)
	}
	if err := m.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if reach(other) == nil || reach(nil) == nil {
		t.Error("a machine that is cut off answers")
	}
	if err := m.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := reach(other); err != nil {
		t.Errorf("after the join: %v", err)
	}
	for _, direction := range []fleet.Direction{fleet.Inbound, fleet.Outbound} {
		if err := m.Refuse(t.Context(), direction, other); err != nil {
			t.Fatal(err)
		}
		if reach(other) == nil || reach(nil) != nil {
			t.Errorf("a machine that drops what is %d of one other answers it, or not the rest", direction)
		}
		if err := m.Join(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := reach(other); err != nil {
			t.Errorf("after the join: %v", err)
		}
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("a process outlived its machine")
	}
	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Restart(); err != nil {
		t.Fatal(err)
	}
	err = fleet.Poll(t.Context(), 20*time.Millisecond, "listener after the reboot", func() (bool, error) { return reach(other) == nil, nil })
	if err != nil {
		t.Error(err)
	}
}

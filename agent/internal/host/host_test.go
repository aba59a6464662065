package host_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spheroseg/muster/agent/internal/host"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// engine is up or not, and counts the questions.
type engine struct {
	up    atomic.Bool
	asked atomic.Int32
}

func (e *engine) Status(context.Context) *agentv1.EngineStatus {
	e.asked.Add(1)
	return &agentv1.EngineStatus{Up: e.up.Load()}
}

// root is a machine's file system.
func root(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"proc/meminfo":                         "MemFree:  1 kB\nMemTotal:       2048 kB\n",
		"proc/sys/kernel/osrelease":            "6.1.0-test\n",
		"proc/driver/nvidia/gpus/0000:01:00.0": "",
		"proc/driver/nvidia/gpus/0000:02:00.0": "",
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if text == "" {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestInventoryFollowsTheEngine(t *testing.T) {
	root := root(t)
	synctest.Test(t, func(t *testing.T) {
		e := &engine{}
		h, err := host.New(host.Options{
			Settings: &agentv1.Inventory{Address: "10.0.0.1"}, Engine: e, Logger: slog.New(slog.DiscardHandler), Root: root,
		})
		if err != nil {
			t.Fatal(err)
		}
		before, changed := h.Inventory()
		if before != nil {
			t.Fatalf("got %v before the first look", before)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		<-changed
		first, changed := h.Inventory()
		if first.GetAddress() != "10.0.0.1" || first.GetMemoryBytes() != 2048<<10 || first.GetKernel() != "6.1.0-test" || first.GetGpus() != 2 ||
			first.GetNanoCpus() < 1e9 || first.GetPlatform() == "" || first.GetEngine().GetUp() {
			t.Fatalf("got %v", first)
		}
		e.up.Store(true)
		start := time.Now()
		<-changed
		second, changed := h.Inventory()
		if took := time.Since(start); !second.GetEngine().GetUp() || took > 2*time.Second {
			t.Fatalf("got %v after %s, want the engine up within 2 s", second.GetEngine(), took)
		}
		if first.GetEngine().GetUp() {
			t.Error("an inventory that was handed out has changed")
		}
		asked := e.asked.Load()
		select {
		case <-changed:
			t.Error("a change is told although there is none")
		case <-time.NewTimer(time.Minute).C:
		}
		if got := e.asked.Load() - asked; got < 29 || got > 31 {
			t.Errorf("the engine was asked %d times in a minute, want 30", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A machine that tells nothing is one on which nothing can be counted.
func TestAMachineThatTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := host.New(host.Options{
			Settings: &agentv1.Inventory{}, Engine: &engine{}, Logger: slog.New(slog.DiscardHandler), Root: "/does/not/exist",
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, changed := h.Inventory()
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		<-changed
		if i, _ := h.Inventory(); i.GetMemoryBytes() != 0 || i.GetKernel() != "" || i.GetGpus() != 0 {
			t.Errorf("got %v", i)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/cluster"
)

// smallDisk mounts a file system of so many MiB.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: a full disk was not tested")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("no file system can be mounted, so a full disk was not tested: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill takes room on a disk until so many MiB are left.
func fill(t *testing.T, dir string, leave uint64) (file string) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "ballast")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if take := fs.Bavail*uint64(fs.Bsize) - leave; take > 0 {
		if _, err := f.Write(make([]byte, take)); err != nil && !errors.Is(err, syscall.ENOSPC) { // the member writes, too
			t.Fatal(err)
		}
	}
	return file
}

// runs starts a member whose end is looked at, instead of failing the test.
func (f *fleet) runs(name string) (*node, <-chan error) {
	f.t.Helper()
	n := f.newNode(name)
	ctx, cancel := context.WithCancel(context.Background())
	ended, done := make(chan error, 1), make(chan struct{})
	go func() { defer close(done); ended <- n.Run(ctx) }()
	inner := n.stop
	n.stop = func() { cancel(); <-done; inner() }
	f.t.Cleanup(n.stop)
	f.nodes[name] = n
	return n, ended
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{true, false} {
		for _, leave := range []uint64{32 << 20, 0} { // the guard sees it in time; everything is taken at once
			t.Run(fmt.Sprintf("leader %t, %d MiB left", leads, leave>>20), func(t *testing.T) {
				dir := smallDisk(t, 256)
				f := newFleet(t, func(o *cluster.Options) {
					if o.ID == "c3" {
						o.MinFree = 64 << 20
					}
				}, "c1", "c2")
				f.dirs["c3"] = dir
				c3, ended := f.runs("c3")
				f.join("c3")
				f.waitVoters(3)
				if leads {
					if err := c3.HandOver(t.Context(), "c3"); err != nil {
						t.Fatal(err)
					}
				} else if err := c3.HandOver(t.Context(), "c1"); err != nil {
					t.Fatal(err)
				}
				acked := map[string]string{}
				write := func(n *node, i int) {
					t.Helper()
					key, value := fmt.Sprintf("n%d", i), strings.Repeat("v", 4096)
					if _, _, err := n.Propose(t.Context(), put(key, value)); err != nil {
						t.Fatal(err)
					}
					acked[key] = value
				}
				for i := range 10 {
					write(f.nodes["c1"], i)
				}
				ballast := fill(t, dir, leave)
				for i := 10; i < 40; i++ {
					write(f.nodes["c2"], i)
				}
				select {
				case err := <-ended:
					if !errors.Is(err, cluster.ErrDiskFull) || !strings.Contains(err.Error(), "make room") {
						t.Fatalf("Run ended with %v, want ErrDiskFull and what to do", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("a member with a full disk still runs")
				}
				c3.stop()
				delete(f.nodes, "c3")
				for i := 40; i < 50; i++ {
					write(f.nodes["c2"], i)
				}
				again, ended := f.runs("c3")
				if err := <-ended; !errors.Is(err, cluster.ErrDiskFull) {
					t.Fatalf("it started on a full disk: %v", err)
				}
				again.stop()
				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				back := f.start("c3")
				if err := back.Read(t.Context()); err != nil {
					t.Fatal(err)
				}
				rows, applied := back.fsm.all()
				for key, value := range acked {
					if rows[key] != value || applied[key] != 1 {
						t.Errorf("%s was acknowledged, the member that came back applied it %d times", key, applied[key])
					}
				}
			})
		}
	}
}

func TestDamagedDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(o *cluster.Options) { o.Compaction.Trailing = 10 }, "c1")
	c1 := f.nodes["c1"]
	write := func(from, to int) {
		for i := from; i < to; i++ {
			if _, _, err := c1.Propose(t.Context(), put(fmt.Sprintf("n%d", i), "value")); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(0, 30)
	if err := c1.Snapshot(); err != nil {
		t.Fatal(err)
	}
	write(30, 60)
	c1.stop()
	whole := f.dirs["c1"]
	one := func(t *testing.T, dir, pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "raft", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		return found[len(found)-1]
	}
	change := func(t *testing.T, file string, edit func([]byte) []byte) {
		t.Helper()
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, edit(raw), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	middle := func(b []byte) []byte { // of what is written: the rest of a segment is zeros. Some bytes are padding, which nobody reads.
		end := len(bytes.TrimRight(b, "\x00"))
		for i := range 24 {
			b[end-end/4+i] ^= 0x40
		}
		return b
	}
	for _, c := range []struct {
		name, pattern, says string
		edit                func([]byte) []byte
	}{
		{"some bytes of the log", "wal/*.wal", ".wal", middle},
		{"the log is cut", "wal/*.wal", "wal", func(b []byte) []byte { return b[:100] }},
		{"the log's list of files", "wal/wal-meta.db", "wal", func(b []byte) []byte { clear(b); return b }},
		{"the end of the snapshot", "snapshots/*/state.bin", "snapshot", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		{"the snapshot is cut", "snapshots/*/state.bin", "snapshot", func(b []byte) []byte { return b[:len(b)/2] }},
		{"the description of the snapshot", "snapshots/*/meta.json", "", func([]byte) []byte { return []byte("{") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			change(t, one(t, dir, c.pattern), c.edit)
			o := f.options("c1", newTable())
			o.DataDir, o.Raft, o.DialRaft, o.DialPeer = dir, listen(t), noConn, noPeer
			m, err := cluster.New(o)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err = m.Run(ctx)
			if !errors.Is(err, cluster.ErrDamaged) || !strings.Contains(err.Error(), "operator raft remove c1") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Run: %v, want ErrDamaged, where it is and what to do", err)
			}
			if _, err := cluster.Inspect(o); !errors.Is(err, cluster.ErrDamaged) {
				t.Errorf("Inspect: %v, want ErrDamaged", err)
			}
		})
	}
}

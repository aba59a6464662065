package route_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spheroseg/muster/agent/internal/route"
)

// TestSlotsAreReadableWhateverTheUmask: the agent's unit sets UMask=0077, and the proxy runs as a user of its own.
func TestSlotsAreReadableWhateverTheUmask(t *testing.T) {
	base := t.TempDir()
	private := filepath.Join(base, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "routes", "127.0.0.1-2019")
	before := filepath.Join(base, "before")
	if err := os.MkdirAll(filepath.Join(before, "shop.web"), 0o700); err != nil { // as an agent made it that did not care.
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, d := range []string{dir, before, filepath.Join(private, "routes")} {
		for _, upstream := range []string{"10.0.0.1:80", "10.0.0.2:80"} {
			if err := route.WriteSlots(d, "shop.web", upstream); err != nil {
				t.Fatal(err)
			}
		}
		if err := filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Type() == fs.ModeSymlink {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			want := fs.FileMode(0o644)
			if e.IsDir() {
				want = 0o755
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s has mode %#o, want %#o", path, got, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(base, "routes")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("got %v, %v; want the folder above, which was made too, open", info, err)
	}
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v; want a folder that is not the agent's as it was", info, err)
	}

	if os.Geteuid() != 0 {
		t.Skip("not root: that another user reads the slots was told from their modes only")
	}
	for _, d := range []string{filepath.Dir(base), base} { // the test's own, which are private.
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "shop.web", "current", "0"), filepath.Join(dir, "probe")} {
		read := exec.Command("cat", path)
		read.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		read.Dir = "/"
		if out, err := read.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) == "" {
			t.Errorf("another user reads %s: got %q, %v", path, out, err)
		}
	}
}

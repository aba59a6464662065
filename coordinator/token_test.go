package coordinator_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spheroseg/muster/coordinator"
)

func TestTokenFilesAreTheOwnersOnly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("an older token that is longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o620} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if token, err := coordinator.ReadToken(file, nil); err == nil || !strings.Contains(err.Error(), "chmod 600 "+file) {
			t.Errorf("a token file of mode %o was read: %q, %v", mode, token, err)
		}
	}
	if err := coordinator.WriteToken(file, "mjt1.x"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v, want 0600 whatever it was before", info.Mode(), err)
	}
	if token, err := coordinator.ReadToken(file, nil); err != nil || token != "mjt1.x" {
		t.Errorf("read %q, %v", token, err)
	}
	if token, err := coordinator.ReadToken("-", strings.NewReader(" mjt1.y\n")); err != nil || token != "mjt1.y" {
		t.Errorf("read %q from standard input, %v", token, err)
	}
	for _, missing := range []string{"", filepath.Join(t.TempDir(), "none")} {
		if _, err := coordinator.ReadToken(missing, nil); err == nil {
			t.Errorf("no error for %q", missing)
		}
	}
}

func TestTokensGoThroughPipes(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- coordinator.WriteToken(pipe, "mjt1.z") }()
	token, err := coordinator.ReadToken(pipe, io.LimitReader(nil, 0))
	if err != nil || token != "mjt1.z" {
		t.Errorf("read %q, %v", token, err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the pipe was replaced: %v, %v", info, err)
	}
}

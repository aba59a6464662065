package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spheroseg/muster/internal/durable"
)

func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("an old and longer one"), 0o644); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path) // Who reads the old file goes on reading the old file.
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for _, mode := range []os.FileMode{0o600, 0o644, 0o640} {
		if err := durable.WriteFile(path, []byte("new"), mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != "new" {
			t.Errorf("holds %q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode is %v, %v, want %v", info.Mode(), err, mode)
		}
	}
	raw := make([]byte, 100)
	if n, _ := old.Read(raw); string(raw[:n]) != "an old and longer one" {
		t.Errorf("the old file was written to: %q", raw[:n])
	}
	leftNothingBut(t, dir, "a")
}

func TestWriteFileFailsWhole(t *testing.T) {
	dir := t.TempDir()
	if err := durable.WriteFile(filepath.Join(dir, "missing", "a"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a directory that is not there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "taken", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "taken"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced by a file")
	}
	leftNothingBut(t, dir, "taken")
	if err := durable.SyncDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sync of a directory that is not there: %v", err)
	}
}

func leftNothingBut(t *testing.T, dir, want string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != want {
		t.Errorf("the directory holds %v, %v, want only %s", entries, err, want)
	}
}

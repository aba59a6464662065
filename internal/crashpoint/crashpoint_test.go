package crashpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "points")
	test, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	program, err := Open(path) // as another process does
	if err != nil {
		t.Fatal(err)
	}
	test.Arm(LedgerAfter, 3)
	for n := range 5 {
		if last := program.pass(LedgerAfter); last != (n == 2) {
			t.Errorf("pass %d is the last: %v", n+1, last)
		}
		if program.pass(LedgerBefore) {
			t.Error("a point that is not armed is the last")
		}
	}
	if n := test.Count(LedgerAfter); n != 5 {
		t.Errorf("the test counts %d passes, want 5", n)
	}
	test.Reset()
	if test.Count(LedgerAfter) != 0 || program.pass(LedgerAfter) {
		t.Error("a reset leaves a count or an armed point")
	}
	for p := range Points {
		if p.String() == Points.String() {
			t.Errorf("point %d has no name", p)
		}
	}
	if err := test.Close(); err != nil {
		t.Error(err)
	}
	if err := program.Close(); err != nil {
		t.Error(err)
	}
}

// TestKill builds a program with the tag and lets it die at the third pass.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("short: that the tag crashpoint kills was not tested")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "points")
	table, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
	for _, tt := range []struct {
		name, tags string
		passes     int
		killed     bool
	}{
		{"with the tag", "crashpoint", 3, true},
		{"without it", "", 5, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table.Reset()
			table.Arm(LogBefore, 3)
			program := filepath.Join(dir, "program")
			if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", tt.tags, "-o", program, "./testdata/program").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			cmd := exec.CommandContext(t.Context(), program)
			cmd.Env = append(os.Environ(), Variable+"="+file)
			out, err := cmd.CombinedOutput()
			if n := strings.Count(string(out), "pass"); n != tt.passes || (err != nil) != tt.killed {
				t.Errorf("%d passes (%v), want %d and killed: %v", n, err, tt.passes, tt.killed)
			}
		})
	}
}

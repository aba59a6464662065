package ctl_test

import (
	"bytes"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spheroseg/muster/ctl"
	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = ctl.Run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// TestHelpNeedsNothing runs with the process's own environment, and without a configuration.
func TestHelpNeedsNothing(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, args := range [][]string{{}, {"help"}, {"help", "exit-codes"}, {"help", "environment"}, {"stack", "apply", "--help"}, {"version", "--client"}, {"completion", "bash"}} {
		if code, out, errs := run(t, args...); code != 0 || out == "" || errs != "" {
			t.Errorf("%q: exit code %d, %d bytes, %q", args, code, len(out), errs)
		}
	}
	if code, _, errs := run(t, "status"); code != 4 || !strings.Contains(errs, "Hint:  musterctl login --coordinator HOST:PORT --token-file FILE") {
		t.Errorf("status: exit code %d, %q", code, errs)
	}
}

// TestSignal sends this process a real SIGINT while a command waits for a coordinator that says nothing.
func TestSignal(t *testing.T) {
	c := coordinatortest.New(t, 1)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("MUSTERCTL_CONFIG", home+"/config.yaml")
	f := &config.File{}
	f.Put(config.Context{Name: "demo", Coordinators: []string{silent.Addr().String()}, Credentials: c.Credentials(t, accessv1.Role_ROLE_VIEWER, "eve")})
	if err := f.Save(home + "/config.yaml"); err != nil {
		t.Fatal(err)
	}
	kill := make(chan error, 1)
	go func() { // the channel tells when it is over.
		if _, err := silent.Accept(); err != nil {
			kill <- err
			return
		}
		kill <- syscall.Kill(syscall.Getpid(), syscall.SIGINT)
	}()
	start := time.Now()
	code, out, errs := run(t, "host", "list")
	if err := <-kill; err != nil {
		t.Fatal(err)
	}
	if code != 130 || out != "" || time.Since(start) > 5*time.Second {
		t.Errorf("exit code %d, want 130: %q, %q", code, out, errs)
	}
}

package command_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/command"
	"github.com/spheroseg/muster/ctl/internal/config"
	"github.com/spheroseg/muster/ctl/internal/coordinatortest"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

type watchStream = grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]

// noon is now in every test.
func noon() time.Time { return time.Date(2025, 1, 2, 12, 0, 0, 0, time.UTC) }

// ago returns a time before now.
func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon().Add(-d)) }

// desk is where an operator sits: a working folder, an environment, a configuration.
type desk struct {
	t          *testing.T
	cluster    *coordinatortest.Cluster
	env        map[string]string
	dir        string
	stdin      io.Reader
	interrupts chan os.Signal
	stderr     io.Writer // gets a copy
}

// newDesk returns a desk without a configuration, and a cluster.
func newDesk(t *testing.T, nodes int) *desk {
	t.Helper()
	home := t.TempDir()
	d := &desk{t: t, env: map[string]string{"HOME": home, "TERM": "xterm"}, dir: filepath.Join(home, "demo"), stdin: strings.NewReader(""), interrupts: make(chan os.Signal, 2)}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if nodes > 0 {
		d.cluster = coordinatortest.New(t, nodes)
	}
	return d
}

// loggedIn returns a desk whose configuration has the cluster.
func loggedIn(t *testing.T, nodes int) *desk {
	t.Helper()
	d := newDesk(t, nodes)
	d.configure(config.Context{
		Name: "demo", Cluster: "cluster-1", Coordinators: d.cluster.Addresses(), Credentials: d.cluster.Credentials(t, accessv1.Role_ROLE_OPERATOR, "alice"),
	})
	return d
}

func (d *desk) configure(c config.Context) {
	d.t.Helper()
	path := filepath.Join(d.env["HOME"], ".config", "musterctl", "config.yaml")
	f, err := config.Load(path)
	if err != nil {
		d.t.Fatal(err)
	}
	f.Put(c)
	if err := f.Save(path); err != nil {
		d.t.Fatal(err)
	}
}

// file writes a file into the working folder.
func (d *desk) file(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// result is what a command did.
type result struct {
	code           int
	stdout, stderr string
}

// run runs musterctl with words split at spaces.
func (d *desk) run(line string, more ...string) result {
	d.t.Helper()
	var out, errs bytes.Buffer
	var stderr io.Writer = &errs
	if d.stderr != nil {
		stderr = io.MultiWriter(&errs, d.stderr)
	}
	code := command.Run(d.t.Context(), command.Options{
		Args: append(strings.Fields(line), more...), Stdin: d.stdin, Stdout: &out, Stderr: stderr,
		Env: func(n string) (string, bool) { v, ok := d.env[n]; return v, ok },
		Now: noon, WorkingDirectory: d.dir, Interrupts: d.interrupts,
	})
	return result{code, d.neutral(out.String()), d.neutral(errs.String())}
}

// neutral takes what differs from test to test out of a text.
func (d *desk) neutral(text string) string {
	if d.cluster != nil {
		for i, n := range d.cluster.Nodes {
			text = strings.ReplaceAll(text, n.Address, fmt.Sprintf("c%d:7443", i+1))
		}
	}
	text = strings.ReplaceAll(text, runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH, "go1.2.3 os/arch")
	return strings.ReplaceAll(text, d.env["HOME"], "/home/alice")
}

// golden compares results, with the commands that led to them, with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", path, got, want)
	}
}

// transcript returns what the commands print, as a person sees it, with the two outputs told apart.
func (d *desk) transcript(lines ...string) string {
	d.t.Helper()
	var b strings.Builder
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\n")
		}
		r := d.run(line)
		fmt.Fprintf(&b, "$ musterctl %s\n%s", line, r.stdout)
		for l := range strings.Lines(r.stderr) {
			b.WriteString("! " + l)
		}
		if r.code != 0 {
			fmt.Fprintf(&b, "exit code %d\n", r.code)
		}
	}
	return b.String()
}

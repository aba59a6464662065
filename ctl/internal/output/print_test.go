package output_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func hosts() output.Data {
	d := output.Data{Kind: "Host", Columns: []output.Column{{Title: "NAME"}, {Title: "STATE", State: true}, {Title: "MORE", Wide: true}, {Title: "LABELS"}}}
	for _, h := range []*coordinatorv1.Host{
		{Name: "web-1", State: coordinatorv1.HostState_HOST_STATE_UP, Labels: map[string]string{"zone": "a"}},
		{Name: "datenbank-müller", State: coordinatorv1.HostState_HOST_STATE_DOWN},
	} {
		d.Items = append(d.Items, h)
		d.Names = append(d.Names, "host/"+h.Name)
		d.Rows = append(d.Rows, []string{h.Name, output.Word(h.State, "HOST_STATE_"), "x", output.Pairs(h.Labels)})
	}
	return d
}

func TestPrint(t *testing.T) {
	tests := []struct {
		format output.Format
		color  bool
		want   string
	}{
		{output.FormatTable, false, "NAME              STATE  LABELS\nweb-1             up     zone=a\ndatenbank-müller  down   -\n"},
		{output.FormatWide, false, "NAME              STATE  MORE  LABELS\nweb-1             up     x     zone=a\ndatenbank-müller  down   x     -\n"},
		{output.FormatTable, true, "\x1b[1mNAME\x1b[0m              \x1b[1mSTATE\x1b[0m  \x1b[1mLABELS\x1b[0m\nweb-1             \x1b[32mup\x1b[0m     zone=a\ndatenbank-müller  \x1b[31mdown\x1b[0m   -\n"},
		{output.FormatName, false, "host/web-1\nhost/datenbank-müller\n"},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		p := &output.Printer{Out: &out, Notes: io.Discard, Format: tt.format, Style: output.Style{Color: tt.color}}
		if err := p.Print(hosts()); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.want {
			t.Errorf("%s:\n%q\nwant\n%q", tt.format, out.String(), tt.want)
		}
	}
}

func TestPrintJSON(t *testing.T) {
	d := hosts()
	d.Extra = map[string][]proto.Message{"unreachable": {&coordinatorv1.HostError{Host: "web-2", Message: "is down"}}}
	var first []byte
	for range 20 { // protojson varies its white space from program to program; what we print must not.
		var out bytes.Buffer
		p := &output.Printer{Out: &out, Notes: io.Discard, Format: output.FormatJSON}
		if err := p.Print(d); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = out.Bytes()
		}
		if !bytes.Equal(first, out.Bytes()) {
			t.Fatalf("two outputs differ:\n%s\n%s", first, out.Bytes())
		}
	}
	var doc struct {
		Kind  string
		Items []struct {
			Name, State string
			Labels      map[string]string
		}
		Unreachable []struct{ Host string }
	}
	if err := json.Unmarshal(first, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Kind != "Host" || len(doc.Items) != 2 || doc.Items[0].State != "HOST_STATE_UP" || doc.Items[0].Labels["zone"] != "a" || doc.Unreachable[0].Host != "web-2" {
		t.Errorf("decoded %+v", doc)
	}
}

func TestPrintEmpty(t *testing.T) {
	for format, want := range map[output.Format]string{
		output.FormatTable: "", output.FormatName: "", output.FormatJSON: "{\n  \"kind\": \"Host\",\n  \"items\": []\n}\n", output.FormatYAML: "kind: Host\nitems: []\n",
	} {
		var out, notes bytes.Buffer
		p := &output.Printer{Out: &out, Notes: &notes, Format: format}
		if err := p.Print(output.Data{Kind: "Host", Empty: "there is no host"}); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: %q, want %q", format, out.String(), want)
		}
		if got := notes.String(); (got == "there is no host\n") != (format == output.FormatTable) {
			t.Errorf("%s: notes %q", format, got)
		}
	}
}

func TestPrintYAMLKeepsTypes(t *testing.T) {
	var out bytes.Buffer
	p := &output.Printer{Out: &out, Notes: io.Discard, Format: output.FormatYAML}
	r := &coordinatorv1.Run{Id: "r-1", Title: "123", Cause: "no: yes", Reason: "true", StepsTotal: 7}
	if err := p.Print(output.Data{Kind: "Run", Items: []proto.Message{r}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kind: Run\n", "  - id: r-1\n", `title: "123"`, `cause: 'no: yes'`, `reason: "true"`, "stepsTotal: 7\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestPrintTellsOfBrokenOutput(t *testing.T) {
	p := &output.Printer{Out: brokenPipe{}, Notes: io.Discard, Format: output.FormatTable}
	if err := p.Print(hosts()); err == nil {
		t.Error("an output that cannot be written is no error")
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain äöü":                 "plain äöü",
		"two\nlines\ttab":           "two lines tab",
		"\x1b[2J\x1b[1;1Hyou":       `\u001b[2J\u001b[1;1Hyou`,
		"bell\a, c1 \u009b31m":      `bell\u0007, c1 \u009b31m`,
		"bad \xff utf-8":            `bad \ufffd utf-8`,
		"user\u202egpj.exe":         `user\u202egpj.exe`,
		"del\x7f and back\bspace":   `del\u007f and back\u0008space`,
		"\n  evidence with margin ": "evidence with margin",
	} {
		if got := output.Clean(text); got != want {
			t.Errorf("Clean(%q) = %q, want %q", text, got, want)
		}
	}
	if got := output.Lines("a\r\n\n\x1b[31mb\n"); len(got) != 2 || got[0] != "a" || got[1] != `\u001b[31mb` {
		t.Errorf("Lines = %q", got)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59*time.Second + 900*time.Millisecond: "59s", 61 * time.Second: "1m01s", 10 * time.Minute: "10m",
		59*time.Minute + 59*time.Second: "59m", 61 * time.Minute: "1h01m", 11 * time.Hour: "11h", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		if got := output.Span(d); got != want {
			t.Errorf("Span(%v) = %q, want %q", d, got, want)
		}
	}
	now := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	if got := output.Age(timestamppb.New(now.Add(-time.Minute)), now); got != "1m00s" {
		t.Errorf("Age = %q", got)
	}
	if got := output.Age(nil, now); got != "-" {
		t.Errorf("Age of no time = %q", got)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 16 << 30: "16GiB", 1 << 62: "4096PiB"} {
		if got := output.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"web-1", "web-2", "db", "list", "show", "backend"}
	for name, want := range map[string]string{
		"web1": "web-1", "wbe-2": "web-2", "lsit": "list", "LIST": "list", "sho": "show", "zzz": "", "back": "backend", "x": "", "": "",
	} {
		if got := output.Nearest(name, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestRender(t *testing.T) {
	held := rpcerr.WithMetadata(rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_LOCK_HELD, "lock stack/web is held"),
		map[string]string{"run": "r-1f4"})
	tests := []struct {
		name    string
		err     error
		verbose bool
		want    string
	}{
		{"reason", output.FromRPC("stack web was not applied", held, nil), false,
			"Error: stack web was not applied\nCause: lock stack/web is held (LOCK_HELD)\nHint:  musterctl run watch r-1f4\n"},
		{"own hint", output.FromRPC("x", held, map[string]string{"LOCK_HELD": "musterctl y"}), true,
			"Error: x\nCause: lock stack/web is held (LOCK_HELD)\nHint:  musterctl y\nDetail: code FailedPrecondition\n"},
		{"status", output.FromRPC("x", status.Error(codes.Internal, "y"), nil), false, "Error: x\nCause: y\n"},
		{"status alone", status.Error(codes.Internal, "y"), false, "Error: y\n"},
		{"escape codes", status.Error(codes.Internal, "\x1b[2Jy"), false, "Error: \\u001b[2Jy\n"},
		{"deadline", output.FromRPC("x", status.Error(codes.DeadlineExceeded, "context deadline exceeded"), nil), false,
			"Error: x\nCause: no answer within --timeout\nHint:  repeat the command with a longer --timeout\n"},
		{"exit", output.Exit{Code: output.CodeChanges}, false, ""},
		{"none", nil, false, ""},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		output.Render(&b, tt.err, output.Style{}, tt.verbose)
		if b.String() != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, b.String(), tt.want)
		}
	}
}

// TestEveryReasonHelps makes sure that a reason has a hint, or that its message is known to say what to do.
func TestEveryReasonHelps(t *testing.T) {
	says := map[string]bool{ // the coordinator's message names the file and the fix.
		"STACK_INVALID": true, "INVALID": true, "TOO_LARGE": true, "COMPACTED": true, "OUTCOME_UNKNOWN": true,
	}
	for n, name := range coordinatorv1.ErrorReason_name {
		if n == 0 {
			continue
		}
		e := output.FromRPC("x", rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason(n), "y"), nil)
		if (e.Hint == "") != says[e.Reason] {
			t.Errorf("%s: hint %q", name, e.Hint)
		}
	}
}

// Package definition turns the procedures that users write into plans. It owns their language: the strict reading of YAML into the message
// coordinatorv1.Procedure, the linter, the registry of actions, and the compiler that resolves a procedure and its inputs against the fleet.
//
// It leaves to others how a plan is run (package procedure), what a step may expect of its answer (package expression), and how built-in
// procedures are planned (package runbook). It changes nothing: whatever it finds out, it finds out before a run begins.
package definition

import (
	"cmp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	severityError   = "error"
	severityWarning = "warning"
	// apiVersion is the version of the language.
	apiVersion = "procedure/v1"
)

// Document is a procedure's file, read and checked.
type Document struct {
	// Procedure as far as it could be read. References to inputs are still in its texts.
	Procedure *coordinatorv1.Procedure
	// Findings in order of their places.
	Findings []*coordinatorv1.Finding

	file  string
	root  *yaml.Node            // the mapping of the whole file; nil if there is none
	nodes map[string]*yaml.Node // nodes by their paths, like steps[2].with.argv
}

// Load reads and checks a file. What is wrong with it is in the findings.
func Load(file string, source []byte) *Document {
	d := &Document{file: file, Procedure: &coordinatorv1.Procedure{}, nodes: map[string]*yaml.Node{}}
	if d.file == "" {
		d.file = "procedure.yaml"
	}
	if d.parse(source) {
		reader := &decoder{document: d, scope: placeholders(nil), note: d.found}
		reader.message(d.root, d.Procedure.ProtoReflect(), "", place{})
		d.lint()
	}
	slices.SortStableFunc(d.Findings, func(x, y *coordinatorv1.Finding) int {
		return cmp.Or(cmp.Compare(x.GetLine(), y.GetLine()), cmp.Compare(x.GetColumn(), y.GetColumn()), cmp.Compare(x.GetCode(), y.GetCode()))
	})
	d.Findings = slices.CompactFunc(d.Findings, func(x, y *coordinatorv1.Finding) bool {
		return x.GetLine() == y.GetLine() && x.GetColumn() == y.GetColumn() && x.GetCode() == y.GetCode() && x.GetMessage() == y.GetMessage()
	})
	return d
}

// Err returns the findings of severity "error" as one error for the author; nil if there are none.
func (d *Document) Err() error {
	var lines []string
	for _, f := range d.Findings {
		if f.GetSeverity() == severityError {
			lines = append(lines, Line(f))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_PROCEDURE_INVALID,
		"the procedure cannot be taken as it stands\n  %s", strings.Join(lines, "\n  "))
}

// Warnings returns the findings that do not prevent a run.
func (d *Document) Warnings() []*coordinatorv1.Finding {
	var found []*coordinatorv1.Finding
	for _, f := range d.Findings {
		if f.GetSeverity() != severityError {
			found = append(found, f)
		}
	}
	return found
}

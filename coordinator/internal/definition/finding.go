package definition

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Codes of findings. The language's reference, deploy/stacks/PROCEDURES.md, says what they mean; codes are never given a new meaning.
const (
	codeYAML         = "Y001" // not YAML, or more of it than one mapping
	codeUnknown      = "Y002" // a field that there is not
	codeDuplicate    = "Y003" // a field twice
	codeValue        = "Y004" // a value of another kind
	codeMissing      = "Y005" // a field that must be there
	codeShape        = "Y006" // a step that is no step, or several
	codeAction       = "A001"
	codeArgument     = "A002"
	codeNoArgument   = "A003"
	codeUse          = "A004" // an action used in a way that it cannot be
	codeName         = "C001"
	codeType         = "C002"
	codeNoReference  = "C003" // a reference where none is taken
	codeTwice        = "P001"
	codeNeeds        = "P002"
	codeTarget       = "P003"
	codeNoTarget     = "P004"
	codeOnce         = "D001"
	codeBlind        = "D002"
	codeProbe        = "D003"
	codeNoTimeout    = "D004"
	codeRisk         = "U001"
	codeNoApproval   = "U002"
	codeNotSaid      = "U003"
	codeContradicts  = "U004"
	codeNoLock       = "G001"
	codeFewApprovals = "G002"
	codeShell        = "S001"
	codeSecret       = "S002"
	codeVerifyOnce   = "R001"
	codeTooLong      = "T001"
)

// Line returns a finding as one line: file:line:column: severity code: message.
func Line(f *coordinatorv1.Finding) string {
	return fmt.Sprintf("%s:%d:%d: %s %s: %s", f.GetFile(), f.GetLine(), f.GetColumn(), f.GetSeverity(), f.GetCode(), f.GetMessage())
}

// found enters a finding at a node.
func (d *Document) found(n *yaml.Node, code, format string, args ...any) {
	d.enter(n, code, severityError, format, args...)
}

func (d *Document) enter(n *yaml.Node, code, severity, format string, args ...any) {
	f := &coordinatorv1.Finding{Code: code, Severity: severity, File: d.file, Line: 1, Column: 1, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		f.Line, f.Column = uint32(max(1, n.Line)), uint32(max(1, n.Column))
	}
	d.Findings = append(d.Findings, f)
}

// at returns the node at a path, or at the nearest place above that the file has.
func (d *Document) at(path string) *yaml.Node {
	for path != "" {
		if n := d.nodes[path]; n != nil {
			return n
		}
		path = above(path)
	}
	return d.root
}

func above(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' || path[i] == '[' {
			return path[:i]
		}
	}
	return ""
}

// err and warn enter findings at a path.
func (d *Document) err(path, code, format string, args ...any) {
	d.enter(d.at(path), code, severityError, format, args...)
}

func (d *Document) warn(path, code, format string, args ...any) {
	d.enter(d.at(path), code, severityWarning, format, args...)
}

// didYouMean returns "; did you mean X?" for the known word that is nearest to a wrong one, or nothing if none is near.
func didYouMean(wrong string, known []string) string {
	best, least := "", len(wrong)/3+2
	for _, word := range slices.Sorted(slices.Values(known)) {
		if n := distance(wrong, word); n < least {
			best, least = word, n
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance counts the letters to insert, remove or replace to turn a into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 { // no word of the language is that long.
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		corner := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			corner, row[j] = row[j], min(row[j]+1, row[j-1]+1, corner+cost)
		}
	}
	return row[len(b)]
}

package definition_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spheroseg/muster/coordinator/internal/definition"
)

// shipped is where the procedures that come with Muster are.
const shipped = "../../../deploy/stacks/spheroseg"

// TestLanguageReference: the example of the reference is a good procedure, and the reference names every action that there is.
func TestLanguageReference(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(shipped, "..", "PROCEDURES.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	_, example, _ := strings.Cut(text, "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	if lines := linesOf(example); lines != "" || !strings.HasPrefix(example, "api:") {
		t.Errorf("the example: %s", lines)
	}
	// Actions of one kind stand in one row, by the words after the dot.
	for _, name := range definition.Actions() {
		_, verb, _ := strings.Cut(name, ".")
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+verb+"`") {
			t.Errorf("the reference says nothing of %s", name)
		}
	}
}

// TestShippedProcedures reads the procedures that come with Muster: there is nothing to say against them.
func TestShippedProcedures(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shipped, "maintenance*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no procedure in %s: %v", shipped, err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, finding := range definition.Load(filepath.Base(file), source).Findings {
			t.Error(definition.Line(finding))
		}
	}
}

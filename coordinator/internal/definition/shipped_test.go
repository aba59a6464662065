package definition_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spheroseg/muster/coordinator/internal/definition"
)

// shipped is where the procedures that come with Muster are.
const shipped = "../../../deploy/stacks/spheroseg"

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

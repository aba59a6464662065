package definition_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/spheroseg/muster/coordinator/internal/definition"
)

var update = flag.Bool("update", false, "write the schema that musterctl prints")

// embedded is what `musterctl procedure schema` prints.
const embedded = "../../../ctl/internal/command/procedure.schema.json"

func TestSchemaIsWhatMusterctlPrints(t *testing.T) {
	made, err := definition.Schema()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(embedded, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(embedded)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, kept) {
		t.Errorf("%s is not what the message and the registry make: go test ./coordinator/internal/definition -run Schema -update", embedded)
	}
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	made, err := definition.Schema()
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(made))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("procedure.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("procedure.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

func asJSON(t *testing.T, source string) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal([]byte(source), &value); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// TestSchemaTakesWhatTheLinterTakes: an editor does not complain of a good file, and does of what is plainly wrong.
func TestSchemaTakesWhatTheLinterTakes(t *testing.T) {
	schema := compileSchema(t)
	source, err := os.ReadFile(filepath.Join(shipped, "maintenance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(asJSON(t, string(source))); err != nil {
		t.Errorf("the shipped procedure: %v", err)
	}
	for name, text := range map[string][2]string{
		"unknown field":        {"max_duration: 4h", "max_duration: 4h\nwindow: {}"},
		"unknown action":       {"use: web.maintenance", "use: web.maintenence"},
		"unknown argument":     {"enabled: true", "enable: true"},
		"missing argument":     {"enabled: true, ", ""},
		"duration":             {"max_duration: 4h", "max_duration: 240"},
		"another kind of list": {"argv: [-migrate, \"${inputs.schema}\"]", "argv: {a: b}"},
		"risk":                 {"risk: disruptive", "risk: lots"},
	} {
		changed := strings.Replace(string(source), text[0], text[1], 1)
		if changed == string(source) {
			t.Errorf("%s: the shipped procedure has no %q", name, text[0])
		}
		if schema.Validate(asJSON(t, changed)) == nil {
			t.Errorf("%s: the schema takes it", name)
		}
	}
}

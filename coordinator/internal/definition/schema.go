package definition

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// schemaURL names the schema; nothing is fetched from there.
const schemaURL = "https://muster.invalid/procedure-v1.schema.json"

// Pattern of durations, for editors: the reading itself is Go's.
const durationPattern = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$|\$\{`

// Schema returns the JSON schema of a procedure's file, for editors. It is made from the message Procedure and the registry of actions. The linter
// knows more than a schema can say.
func Schema() ([]byte, error) {
	g := &schemas{definitions: map[string]any{}}
	root := g.object((&coordinatorv1.Procedure{}).ProtoReflect().Descriptor(), nil, nil)
	root["$schema"], root["$id"], root["title"] = "https://json-schema.org/draft/2020-12/schema", schemaURL, "A procedure of Muster"
	root["required"] = []string{"api", "name", "title", "max_duration", "guard", "steps"}
	root["$defs"] = g.definitions
	raw, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("marshal the schema: %w", err)
	}
	return append(raw, '\n'), nil
}

// schemas collects the definitions of messages.
type schemas struct{ definitions map[string]any }

// object describes a message, and which of its fields an author must give.
func (g *schemas) object(m protoreflect.MessageDescriptor, hidden, needs []protoreflect.Name) map[string]any {
	properties := map[string]any{}
	for i := range m.Fields().Len() {
		field := m.Fields().Get(i)
		if slices.Contains(hidden, field.Name()) {
			continue
		}
		properties[string(field.Name())] = g.field(field)
	}
	object := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(needs) > 0 {
		object["required"] = needs
	}
	if use := m.Fields().ByName("use"); use != nil {
		properties["use"] = map[string]any{"enum": Actions()}
		object["allOf"] = g.arguments()
	}
	return object
}

// arguments says for each action what stands under `with`.
func (g *schemas) arguments() []any {
	var all []any
	for _, a := range actions() {
		name := "with " + a.name
		if _, known := g.definitions[name]; !known {
			g.definitions[name] = g.object(a.arguments().ProtoReflect().Descriptor(), a.hidden(), a.needs)
			g.definitions[name].(map[string]any)["description"] = a.name + " " + a.doc
		}
		all = append(all, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"use": map[string]any{"const": a.name}}, "required": []string{"use"}},
			"then": map[string]any{"properties": map[string]any{"with": ref(name)}},
		})
	}
	return all
}

func ref(name string) map[string]any { return map[string]any{"$ref": "#/$defs/" + name} }

func (g *schemas) field(field protoreflect.FieldDescriptor) any {
	switch {
	case field.IsMap():
		return map[string]any{"type": "object", "additionalProperties": g.single(field.MapValue())}
	case field.IsList() && field.Message() == nil:
		item := g.single(field)
		return map[string]any{"oneOf": []any{item, map[string]any{"type": "array", "items": item}}}
	case field.IsList():
		return map[string]any{"type": "array", "items": g.single(field)}
	}
	return g.single(field)
}

func (g *schemas) single(field protoreflect.FieldDescriptor) any {
	reference := map[string]any{"type": "string", "pattern": `\$\{`}
	switch field.Kind() {
	case protoreflect.BoolKind:
		return map[string]any{"anyOf": []any{map[string]any{"type": "boolean"}, reference}}
	case protoreflect.Int64Kind, protoreflect.Uint32Kind:
		return map[string]any{"anyOf": []any{map[string]any{"type": "integer"}, reference}}
	case protoreflect.DoubleKind:
		return map[string]any{"type": "number"}
	case protoreflect.EnumKind:
		return map[string]any{"enum": enumWords(field.Enum())}
	case protoreflect.MessageKind:
		return g.message(field.Message())
	}
	return map[string]any{"type": []string{"string", "number", "boolean"}} // YAML reads 1.10 as a number, and a text keeps it.
}

func (g *schemas) message(m protoreflect.MessageDescriptor) any {
	switch m.FullName() {
	case durationName:
		return map[string]any{"type": "string", "pattern": durationPattern}
	case anyName:
		return map[string]any{"type": "object"}
	}
	name := string(m.Name())
	if _, known := g.definitions[name]; !known {
		g.definitions[name] = nil // a message may hold itself.
		g.definitions[name] = g.object(m, nil, nil)
	}
	if m.FullName() == conditionName {
		return map[string]any{"oneOf": []any{map[string]any{"type": "string"}, ref(name)}}
	}
	return ref(name)
}

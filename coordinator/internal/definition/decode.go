package definition

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	anyName       = protoreflect.FullName("google.protobuf.Any")
	durationName  = protoreflect.FullName("google.protobuf.Duration")
	conditionName = protoreflect.FullName("muster.coordinator.v1.Condition")
	targetName    = protoreflect.FullName("muster.coordinator.v1.Target")
	expressionRef = protoreflect.FullName("muster.coordinator.v1.Condition.expression")
)

// takesReferences lists the fields, beside those of targets and of arguments, whose texts take ${…}.
func takesReferences(field protoreflect.FullName) bool {
	switch strings.TrimPrefix(string(field), "muster.coordinator.v1.") {
	case "Guard.locks", "Question.prompt", "ProcedureStep.title", "ProcedureStep.for_each", "ProcedureUndo.title", "Condition.expression":
		return true
	}
	return false
}

// place is what surrounds a node.
type place struct {
	references bool                // texts take ${…}
	hidden     []protoreflect.Name // fields of the message that the compiler fills, not the author
	argument   bool                // the message holds an action's arguments
}

// decoder reads nodes into messages, strictly.
type decoder struct {
	document *Document
	scope    *references
	note     func(n *yaml.Node, code, format string, args ...any)
	// rescope returns what a question to another target may refer to; nil while that is not known.
	rescope func(on string) *references
}

// message reads a mapping.
func (r *decoder) message(n *yaml.Node, m protoreflect.Message, path string, at place) {
	r.document.nodes[path] = n
	fields := m.Descriptor().Fields()
	if n.Kind != yaml.MappingNode {
		r.note(n, codeValue, "%s is a mapping, with %s", called(path), strings.Join(words(m.Descriptor(), at.hidden), ", "))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, node := n.Content[i], n.Content[i+1]
		field := fields.ByName(protoreflect.Name(key.Value))
		if field == nil || slices.Contains(at.hidden, field.Name()) {
			code := codeUnknown
			if at.argument {
				code = codeArgument
			}
			r.note(key, code, "%s has no field %q%s", called(path), key.Value, didYouMean(key.Value, words(m.Descriptor(), at.hidden)))
			continue
		}
		r.field(n, node, m, field, join(path, key.Value), at)
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func called(path string) string {
	if path == "" {
		return "a procedure"
	}
	return path
}

// words lists the fields of a message that an author may write.
func words(descriptor protoreflect.MessageDescriptor, hidden []protoreflect.Name) []string {
	var names []string
	for i := range descriptor.Fields().Len() {
		if name := descriptor.Fields().Get(i).Name(); !slices.Contains(hidden, name) {
			names = append(names, string(name))
		}
	}
	return names
}

func (r *decoder) field(parent, n *yaml.Node, m protoreflect.Message, field protoreflect.FieldDescriptor, path string, at place) {
	r.document.nodes[path] = n
	at = place{references: at.references || m.Descriptor().FullName() == targetName || takesReferences(field.FullName()), argument: at.argument}
	if n.Tag == "!!null" {
		r.note(n, codeValue, "%s has no value", path)
		return
	}
	switch {
	case field.IsMap():
		r.mapping(n, m.Mutable(field).Map(), field, path, at)
	case field.IsList():
		r.list(n, m.Mutable(field).List(), field, path, at)
	case field.Message() != nil && field.Message().FullName() == anyName:
		r.arguments(parent, n, m, field, path)
	default:
		if v, ok := r.single(n, field, path, at, m.NewField); ok {
			m.Set(field, v)
		}
	}
}

func (r *decoder) mapping(n *yaml.Node, to protoreflect.Map, field protoreflect.FieldDescriptor, path string, at place) {
	if n.Kind != yaml.MappingNode {
		r.note(n, codeValue, "%s is a mapping of names", path)
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, node := n.Content[i], n.Content[i+1]
		below := join(path, key.Value)
		r.document.nodes[below] = node
		fresh := func(protoreflect.FieldDescriptor) protoreflect.Value { return to.NewValue() }
		if v, ok := r.single(node, field.MapValue(), below, at, fresh); ok {
			to.Set(protoreflect.ValueOfString(key.Value).MapKey(), v)
		}
	}
}

func (r *decoder) list(n *yaml.Node, to protoreflect.List, field protoreflect.FieldDescriptor, path string, at place) {
	items := []*yaml.Node{n}
	switch {
	case n.Kind == yaml.SequenceNode:
		items = n.Content
	case field.Message() != nil: // a single text stands for a list of one, a single mapping does not.
		r.note(n, codeValue, "%s is a list: begin each item with a dash", path)
		return
	}
	for i, item := range items {
		below := path + "[" + strconv.Itoa(i) + "]"
		r.document.nodes[below] = item
		if at.references && field.Kind() == protoreflect.StringKind && item.Kind == yaml.ScalarNode {
			if v, whole, err := r.scope.whole(item.Value); whole && err == nil && (v.kind == coordinatorv1.InputType_INPUT_TYPE_LIST || r.scope.lenient) {
				for _, text := range v.list {
					to.Append(protoreflect.ValueOfString(text))
				}
				continue
			}
		}
		fresh := func(protoreflect.FieldDescriptor) protoreflect.Value { return to.NewElement() }
		if v, ok := r.single(item, field, below, at, fresh); ok {
			to.Append(v)
		}
	}
}

// single reads one value that is no list.
func (r *decoder) single(n *yaml.Node, field protoreflect.FieldDescriptor, path string, at place, fresh func(protoreflect.FieldDescriptor) protoreflect.Value) (protoreflect.Value, bool) {
	if field.Message() == nil {
		return r.scalar(n, field, path, at)
	}
	switch field.Message().FullName() {
	case durationName:
		text, ok := r.text(n, path, at, notText)
		if !ok {
			return protoreflect.Value{}, false
		}
		d, err := duration(text)
		if err != nil {
			r.note(n, r.wrong(n), "%s: %s", path, err)
			return protoreflect.Value{}, false
		}
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), true
	case conditionName:
		if n.Kind == yaml.ScalarNode { // a text is its expression.
			v := fresh(field)
			if text, ok := r.text(n, path, place{references: true}, isExpression); ok {
				v.Message().Set(field.Message().Fields().ByName("expression"), protoreflect.ValueOfString(text))
			}
			return v, true
		}
		if on := child(n, "on"); on != nil && r.rescope != nil {
			other := *r
			other.scope = r.rescope(on.Value)
			r = &other
		}
	}
	v := fresh(field)
	r.message(n, v.Message(), path, place{references: at.references, argument: at.argument})
	return v, true
}

// wrong is the code for a value that does not fit: of what the file says, or of what an input holds.
func (r *decoder) wrong(n *yaml.Node) string {
	if strings.Contains(n.Value, "${") {
		return codeType
	}
	return codeValue
}

func (r *decoder) scalar(n *yaml.Node, field protoreflect.FieldDescriptor, path string, at place) (protoreflect.Value, bool) {
	kind := notText
	switch {
	case field.FullName() == expressionRef:
		kind = isExpression
	case field.Kind() == protoreflect.StringKind:
		kind = isText
	}
	text, ok := r.text(n, path, at, kind)
	if !ok {
		return protoreflect.Value{}, false
	}
	fail := func(want string) (protoreflect.Value, bool) {
		r.note(n, r.wrong(n), "%s is %q, and must be %s", path, text, want)
		return protoreflect.Value{}, false
	}
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), true
	case protoreflect.BoolKind:
		if text != "true" && text != "false" {
			return fail("true or false")
		}
		return protoreflect.ValueOfBool(text == "true"), true
	case protoreflect.Int64Kind:
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fail("a whole number")
		}
		return protoreflect.ValueOfInt64(v), true
	case protoreflect.Uint32Kind:
		v, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return fail("a whole number, not below 0")
		}
		return protoreflect.ValueOfUint32(uint32(v)), true
	case protoreflect.DoubleKind:
		if v, err := strconv.ParseFloat(text, 64); err == nil && v >= 0 && v <= 1e6 {
			return protoreflect.ValueOfFloat64(v), true
		}
		return fail("a number, not below 0")
	case protoreflect.EnumKind:
		for i := range field.Enum().Values().Len() {
			if v := field.Enum().Values().Get(i); v.Number() != 0 && word(v) == strings.ToLower(text) {
				return protoreflect.ValueOfEnum(v.Number()), true
			}
		}
		all := enumWords(field.Enum())
		return fail("one of " + strings.Join(all, ", ") + didYouMean(strings.ToLower(text), all))
	}
	return fail("something that a file cannot hold")
}

// word is how a file writes a value of an enum: without the enum's name before it, in small letters.
func word(v protoreflect.EnumValueDescriptor) string {
	prefix := string(v.Parent().(protoreflect.EnumDescriptor).Values().Get(0).Name())
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), strings.TrimSuffix(prefix, "UNSPECIFIED")))
}

func enumWords(enum protoreflect.EnumDescriptor) []string {
	var all []string
	for i := 1; i < enum.Values().Len(); i++ {
		all = append(all, word(enum.Values().Get(i)))
	}
	return all
}

// kind is what a scalar is read as.
type kind int

const (
	isText kind = iota
	notText
	isExpression
)

// text reads a scalar as it is written, with its references replaced where it takes any.
func (r *decoder) text(n *yaml.Node, path string, at place, as kind) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		r.note(n, codeValue, "%s is one value, not a list or a mapping", path)
		return "", false
	}
	if n.Tag == "!!null" {
		r.note(n, codeValue, "%s has no value", path)
		return "", false
	}
	if !at.references {
		if strings.Contains(n.Value, "${") {
			r.note(n, codeNoReference, "%s takes no ${…}: it must be known before a run is planned", path)
			return "", false
		}
		return n.Value, true
	}
	expand := r.scope.expand
	if as == isExpression {
		if strings.Contains(n.Value, "${") {
			r.note(n, codeNoReference, "%s is an expression: write inputs.NAME and each without ${…}", path)
			return "", false
		}
		if expand = r.scope.literals; r.scope.lenient {
			return n.Value, true
		}
	}
	text, err := expand(n.Value)
	if err != nil {
		r.note(n, codeName, "%s: %s", path, err)
		return "", false
	}
	// Whether a value that is not known yet fits is looked at when the inputs are known.
	return text, as == isText || !r.scope.lenient || !strings.Contains(n.Value, "${")
}

// arguments reads what stands under `with` into the message of the action that stands under `use` beside it.
func (r *decoder) arguments(parent, n *yaml.Node, m protoreflect.Message, field protoreflect.FieldDescriptor, path string) {
	use := child(parent, "use")
	if use == nil || use.Kind != yaml.ScalarNode {
		r.note(n, codeShape, "%s belongs to no action: say which with use", path)
		return
	}
	action := lookUp(use.Value)
	if action == nil {
		return // the linter says so, and names the nearest.
	}
	arguments := action.arguments()
	r.message(n, arguments.ProtoReflect(), path, place{references: true, hidden: action.hidden(), argument: true})
	packed, err := pack(arguments)
	if err != nil {
		r.note(n, codeValue, "%s: %s", path, err)
		return
	}
	m.Set(field, protoreflect.ValueOfMessage(packed.ProtoReflect()))
}

func pack(arguments proto.Message) (*anypb.Any, error) {
	packed := &anypb.Any{}
	if err := anypb.MarshalFrom(packed, arguments, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("marshal the arguments: %w", err)
	}
	return packed, nil
}

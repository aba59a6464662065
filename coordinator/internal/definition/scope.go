package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// value is a typed value that a reference stands for.
type value struct {
	kind coordinatorv1.InputType
	text string
	list []string
	// open says that the value is not known yet: the text is the reference itself, for the linter.
	open bool
}

// references are what may be named at one place of the file.
type references struct {
	inputs map[string]value
	each   *value
	target map[string]value
	// lenient takes every reference as it stands: the file is read before it is known what there is to refer to.
	lenient bool
}

// placeholders is the scope of the linter: every input of the procedure with a value that is not known yet. Without inputs it is lenient.
func placeholders(inputs map[string]*coordinatorv1.Input) *references {
	s := &references{inputs: map[string]value{}, lenient: inputs == nil}
	for name, input := range inputs {
		s.inputs[name] = placeholder("inputs."+name, input)
	}
	return s
}

// placeholder is a value of an input that would pass.
func placeholder(reference string, input *coordinatorv1.Input) value {
	v := value{kind: input.GetType(), text: "${" + reference + "}", open: true}
	switch input.GetType() {
	case coordinatorv1.InputType_INPUT_TYPE_INT:
		v.text = strconv.FormatInt(max(input.GetMin(), 1), 10)
	case coordinatorv1.InputType_INPUT_TYPE_BOOL:
		v.text = "true"
	case coordinatorv1.InputType_INPUT_TYPE_DURATION:
		v.text = "1m"
	case coordinatorv1.InputType_INPUT_TYPE_ENUM:
		if len(input.GetValues()) > 0 {
			v.text = input.GetValues()[0]
		}
	case coordinatorv1.InputType_INPUT_TYPE_LIST:
		v.list = []string{"${" + reference + "}"}
	}
	return v
}

// with returns the scope with an element of for_each and a target.
func (s *references) with(each *value, target map[string]value) *references {
	return &references{inputs: s.inputs, each: each, target: target}
}

var reference = regexp.MustCompile(`\$\$\{|\$\{([^}]*)\}?`)

// look finds what a reference stands for.
func (s *references) look(name string) (value, error) {
	name = strings.TrimSpace(name)
	if s.lenient {
		return value{kind: coordinatorv1.InputType_INPUT_TYPE_UNSPECIFIED, text: "${" + name + "}", list: []string{"${" + name + "}"}, open: true}, nil
	}
	if input, ok := strings.CutPrefix(name, "inputs."); ok {
		if v, ok := s.inputs[input]; ok {
			return v, nil
		}
		return value{}, fmt.Errorf("there is no input %q%s", input, didYouMean(input, slices.Collect(maps.Keys(s.inputs))))
	}
	if name == "each" {
		if s.each == nil {
			return value{}, fmt.Errorf("there is no ${each} here: the step has no for_each")
		}
		return *s.each, nil
	}
	if part, ok := strings.CutPrefix(name, "target."); ok {
		if v, ok := s.target[part]; ok {
			return v, nil
		}
		if v, ok := s.target["port.*"]; ok && strings.HasPrefix(part, "port.") {
			return v, nil
		}
		known := slices.Sorted(maps.Keys(s.target))
		if len(known) == 0 {
			return value{}, fmt.Errorf("there is no ${target.%s} here: only the arguments of a step with a target have one", part)
		}
		return value{}, fmt.Errorf("the target has no %q: it has %s", part, strings.Join(known, ", "))
	}
	return value{}, fmt.Errorf("${%s} names nothing: there is ${inputs.NAME}, ${each} and ${target.NAME}", name)
}

// whole returns the value that a text consists of, if it is nothing but one reference.
func (s *references) whole(text string) (value, bool, error) {
	m := reference.FindStringSubmatch(text)
	if len(m) < 2 || m[0] != text || !strings.HasSuffix(text, "}") || strings.HasPrefix(text, "$$") {
		return value{}, false, nil
	}
	v, err := s.look(m[1])
	return v, true, err
}

// expand replaces the references in a text. What a value holds is never read again.
func (s *references) expand(text string) (string, error) {
	var failed error
	out := reference.ReplaceAllStringFunc(text, func(match string) string {
		switch {
		case failed != nil:
			return ""
		case match == "$${" && s.lenient: // the linter must still see that it is no reference.
			return match
		case match == "$${":
			return "${"
		case !strings.HasSuffix(match, "}"):
			failed = fmt.Errorf("%q has no end: write ${inputs.NAME}, or $${ for the characters themselves", match)
			return ""
		}
		v, err := s.look(match[2 : len(match)-1])
		if err == nil && v.kind == coordinatorv1.InputType_INPUT_TYPE_LIST && !s.lenient {
			err = fmt.Errorf("%s is a LIST and stands for several texts: it can only be all of an item", match)
		}
		failed = err
		return v.text
	})
	return out, failed
}

var inputName = regexp.MustCompile(`\binputs\.([A-Za-z_][A-Za-z0-9_]*)|\beach\b`)

// literals replaces inputs.NAME and each in an expression by typed literals of CEL. What stands in quotes stays as it is.
func (s *references) literals(text string) (string, error) {
	var out strings.Builder
	for text != "" {
		plain, quoted, rest := untilQuoted(text)
		var failed error
		out.WriteString(inputName.ReplaceAllStringFunc(plain, func(match string) string {
			v, err := s.look(match)
			if err == nil && v.kind == coordinatorv1.InputType_INPUT_TYPE_SECRET {
				err = fmt.Errorf("%s is a SECRET: an expression is kept in the plan", match)
			}
			if err != nil && failed == nil {
				failed = err
			}
			return v.literal()
		}))
		if failed != nil {
			return "", failed
		}
		out.WriteString(quoted)
		text = rest
	}
	return out.String(), nil
}

// untilQuoted splits a text into what comes before the next quoted one, the quoted one, and the rest.
func untilQuoted(text string) (plain, quoted, rest string) {
	start := strings.IndexAny(text, `"'`)
	if start < 0 {
		return text, "", ""
	}
	for i := start + 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case text[start]:
			return text[:start], text[start : i+1], text[i+1:]
		}
	}
	return text[:start], text[start:], ""
}

// literal writes a value as CEL does.
func (v value) literal() string {
	switch v.kind {
	case coordinatorv1.InputType_INPUT_TYPE_INT:
		n, err := strconv.ParseInt(v.text, 10, 64)
		if err != nil {
			return "0" // not reached: the input was read as a number.
		}
		if n < 0 { // one minus beside another would be none.
			return "(" + strconv.FormatInt(n, 10) + ")"
		}
		return strconv.FormatInt(n, 10)
	case coordinatorv1.InputType_INPUT_TYPE_BOOL:
		return v.text
	case coordinatorv1.InputType_INPUT_TYPE_DURATION:
		d, err := time.ParseDuration(v.text)
		if err != nil {
			return `duration("0s")`
		}
		return "duration(" + quote(strconv.FormatFloat(d.Seconds(), 'f', -1, 64)+"s") + ")"
	case coordinatorv1.InputType_INPUT_TYPE_LIST:
		items := make([]string, len(v.list))
		for i, item := range v.list {
			items[i] = quote(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return quote(v.text)
}

// quote writes a text as a literal of CEL, whose escapes are a part of Go's.
func quote(text string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			out.WriteByte('\\')
			out.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// maxText bounds one given input, in bytes.
const maxText = 4096

// typed reads the text of an input, a LIST's items as several, and checks it against all that the input asks for.
func typed(input *coordinatorv1.Input, texts ...string) (value, error) {
	v := value{kind: input.GetType()}
	if v.kind == coordinatorv1.InputType_INPUT_TYPE_LIST {
		v.list = texts
	} else {
		if len(texts) != 1 {
			return v, fmt.Errorf("has %d values, and takes one", len(texts))
		}
		v.text = texts[0]
	}
	for _, text := range texts {
		if len(text) > maxText {
			return v, fmt.Errorf("has %d bytes, more than %d", len(text), maxText)
		}
		if strings.ContainsRune(text, 0) {
			return v, fmt.Errorf("%q holds a null character", text)
		}
		if err := check(input, text); err != nil {
			return v, err
		}
	}
	return v, nil
}

func check(input *coordinatorv1.Input, text string) error {
	switch input.GetType() {
	case coordinatorv1.InputType_INPUT_TYPE_INT:
		n, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err != nil:
			return fmt.Errorf("%q is no whole number", text)
		case input.Min != nil && n < input.GetMin():
			return fmt.Errorf("%d is less than %d", n, input.GetMin())
		case input.Max != nil && n > input.GetMax():
			return fmt.Errorf("%d is more than %d", n, input.GetMax())
		}
	case coordinatorv1.InputType_INPUT_TYPE_BOOL:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", text)
		}
	case coordinatorv1.InputType_INPUT_TYPE_DURATION:
		if _, err := duration(text); err != nil {
			return err
		}
	case coordinatorv1.InputType_INPUT_TYPE_ENUM:
		if !slices.Contains(input.GetValues(), text) {
			return fmt.Errorf("%q is not one of %s%s", text, strings.Join(input.GetValues(), ", "), didYouMean(text, input.GetValues()))
		}
	case coordinatorv1.InputType_INPUT_TYPE_SECRET:
		if text == "" {
			return fmt.Errorf("is empty: name a secret of the store, `musterctl secret list` shows them")
		}
	}
	if input.GetPattern() == "" {
		return nil
	}
	pattern, err := regexp.Compile(`^(?:` + input.GetPattern() + `)$`)
	if err != nil {
		return fmt.Errorf("the pattern %q cannot be read: %w", input.GetPattern(), err)
	}
	if !pattern.MatchString(text) {
		return fmt.Errorf("%q does not match %s", text, input.GetPattern())
	}
	return nil
}

// duration reads a time with its unit.
func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || text == "0" {
		return 0, fmt.Errorf("%q is no time: give it with its unit, like 90s, 15m or 1h30m", text)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is less than nothing", text)
	}
	return d, nil
}

// values gives every input of the procedure its value: the one given, or its default.
func (d *Document) values(given map[string]string) (*references, error) {
	inputs := d.Procedure.GetInputs()
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if inputs[name] == nil {
			return nil, invalid("procedure %s has no input %q%s", d.Procedure.GetName(), name, didYouMean(name, slices.Collect(maps.Keys(inputs))))
		}
	}
	s := &references{inputs: map[string]value{}}
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		input := inputs[name]
		text, ok := given[name]
		texts := []string{text}
		switch {
		case ok && input.GetType() == coordinatorv1.InputType_INPUT_TYPE_LIST:
			if texts = strings.Split(text, ","); text == "" {
				texts = nil
			}
		case ok:
		case input.GetRequired():
			return nil, invalid("input %s is missing: give it with -i %s=VALUE%s", name, name, described(input))
		default:
			texts = input.GetDefault()
			if len(texts) == 0 && input.GetType() != coordinatorv1.InputType_INPUT_TYPE_LIST {
				texts = []string{zero(input)}
				if input.GetType() == coordinatorv1.InputType_INPUT_TYPE_STRING { // a text that nobody gave is not held against the pattern
					s.inputs[name] = value{kind: input.GetType()}
					continue
				}
			}
		}
		v, err := typed(input, texts...)
		if err != nil {
			return nil, invalid("input %s: %s", name, err)
		}
		s.inputs[name] = v
	}
	return s, nil
}

func described(input *coordinatorv1.Input) string {
	if input.GetDoc() == "" {
		return ""
	}
	return " (" + input.GetDoc() + ")"
}

// zero is what an input holds that is not required, has no default and was not given.
func zero(input *coordinatorv1.Input) string {
	switch input.GetType() {
	case coordinatorv1.InputType_INPUT_TYPE_INT:
		return "0"
	case coordinatorv1.InputType_INPUT_TYPE_BOOL:
		return "false"
	case coordinatorv1.InputType_INPUT_TYPE_DURATION:
		return "0s"
	}
	return ""
}

func invalid(format string, args ...any) error {
	return rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_INVALID, format, args...)
}

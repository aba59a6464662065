// Package expression evaluates the questions that a plan asks of an agent's answer: CEL over one variable, `result`, whose type is the answer's
// message. It owns the language and its limits, and leaves to others what is asked and what follows from the answer.
//
// An expression is typed before anything runs, is bounded in what it may cost, and is never part of a command line.
package expression

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

const (
	// MaxLength of an expression, in bytes.
	MaxLength = 2048
	// costLimit bounds one evaluation, in CEL's own units: some hundred comparisons cost less.
	costLimit = 100_000
	variable  = "result"
)

// Program is an expression that was checked against the type of its answer.
type Program struct {
	text    string
	program cel.Program
}

// Compile checks an expression over an answer of the type. Its value must be a bool.
func Compile(descriptor protoreflect.MessageDescriptor, text string) (*Program, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("the expression is empty: write a condition over %s, the answer %s", variable, descriptor.FullName())
	}
	if len(text) > MaxLength {
		return nil, fmt.Errorf("the expression has %d bytes, more than %d", len(text), MaxLength)
	}
	env, err := cel.NewEnv(cel.CrossTypeNumericComparisons(true), cel.Types(dynamicpb.NewMessage(descriptor)), cel.Variable(variable, cel.ObjectType(string(descriptor.FullName()))))
	if err != nil {
		return nil, fmt.Errorf("make an environment for %s: %w", descriptor.FullName(), err)
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("expression %q, column %d: %s", text, first.Location.Column()+1, first.Message)
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("expression %q gives %s: a condition must give bool", text, ast.OutputType())
	}
	program, err := env.Program(ast, cel.CostLimit(costLimit), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", text, err)
	}
	return &Program{text: text, program: program}, nil
}

// Eval says whether the condition holds for an answer.
func (p *Program) Eval(result proto.Message) (bool, error) {
	value, _, err := p.program.Eval(map[string]any{variable: result})
	if err != nil {
		return false, fmt.Errorf("expression %q: %w", p.text, err)
	}
	holds, ok := value.Value().(bool)
	if !ok {
		return false, fmt.Errorf("expression %q gave %v: a condition must give bool", p.text, value)
	}
	return holds, nil
}

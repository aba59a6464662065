package expression_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/expression"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

func TestEval(t *testing.T) {
	answer := &agentv1.ProbeHttpResponse{Status: 200, Body: "all well", Latency: durationpb.New(20_000_000)}
	for _, tt := range []struct {
		text string
		want bool
	}{
		{"result.status > 199u", true},
		{"result.status == 200", true},
		{"result.status >= 500", false},
		{`result.body.contains("well") && result.error == ""`, true},
		{`result.latency < duration("100ms")`, true},
		{`result.body.matches("^all (well|good)$")`, true},
	} {
		p, err := expression.Compile(answer.ProtoReflect().Descriptor(), tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if got, err := p.Eval(answer); err != nil || got != tt.want {
			t.Errorf("%s = %v, %v; want %v", tt.text, got, err, tt.want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	descriptor := (&agentv1.InspectContainerResponse{}).ProtoReflect().Descriptor()
	for _, tt := range []struct{ text, want string }{
		{"", "empty"},
		{"result.stat == 'running'", "undefined field"},
		{"state == 'running'", "undeclared reference"},
		{"result.state", "must give bool"},
		{"result.exit_code == 'x'", "no matching overload"},
		{"result.healthy &&", "Syntax error"},
		{strings.Repeat("true && ", 300) + "true", "more than 2048"},
	} {
		if _, err := expression.Compile(descriptor, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestEvalIsBounded(t *testing.T) {
	list := "[" + strings.TrimSuffix(strings.Repeat("1,", 60), ",") + "]"
	text := list + ".all(a, " + list + ".all(b, " + list + ".all(c, " + list + ".all(d, a + b + c + d > 0))))"
	p, err := expression.Compile((&agentv1.ProbeTcpResponse{}).ProtoReflect().Descriptor(), text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Eval(&agentv1.ProbeTcpResponse{}); err == nil || !strings.Contains(err.Error(), "cost") {
		t.Errorf("got %v, want the limit of its cost", err)
	}
}

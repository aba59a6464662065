package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spheroseg/muster/coordinator/internal/expression"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// stepLint checks one step.
type stepLint struct {
	*Document
	path   string
	step   *coordinatorv1.ProcedureStep
	action *action // nil if there is none, or none of the name
	scope  *references
}

func (d *Document) stepAt(i int, inputs *references) *stepLint {
	l := &stepLint{Document: d, path: fmt.Sprintf("steps[%d]", i), step: d.Procedure.GetSteps()[i]}
	l.action = lookUp(l.step.GetUse())
	l.scope = d.scopeOf(l.step.GetOn(), len(l.step.GetForEach()) > 0, inputs)
	return l
}

// scopeOf is what the arguments of a step with this target may refer to, with values that are not known yet.
func (d *Document) scopeOf(on string, forEach bool, inputs *references) *references {
	var each *value
	if forEach {
		each = &value{kind: coordinatorv1.InputType_INPUT_TYPE_STRING, text: "${each}", open: true}
	}
	target := d.Procedure.GetTargets()[on]
	if target == nil {
		return inputs.with(each, nil)
	}
	known := []string{"host", "address"}
	if target.GetService() != "" {
		known = append(known, "name", "port.*")
	}
	parts := map[string]value{}
	for _, part := range known {
		parts[part] = value{kind: coordinatorv1.InputType_INPUT_TYPE_STRING, text: "${target." + part + "}", open: true}
	}
	return inputs.with(each, parts)
}

func (l *stepLint) lint(seen map[string]bool) {
	step := l.step
	switch {
	case !idForm.MatchString(step.GetId()):
		l.err(l.path, codeMissing, "step id is %q: take small letters, digits, - and _, at most 40, a letter first", step.GetId())
	case seen[step.GetId()]:
		l.err(l.path+".id", codeTwice, "step %s is here twice", step.GetId())
	}
	acts := 0
	for _, is := range []bool{step.GetUse() != "", step.GetApprove() != nil, step.GetWait() != nil} {
		if is {
			acts++
		}
	}
	if acts != 1 {
		l.err(l.path, codeShape, "step %s must be one thing: an action (use), a question to people (approve), or a while to wait (wait)", step.GetId())
		return
	}
	if step.GetUse() == "" {
		l.lintIdle()
	} else {
		l.lintAction()
	}
	// Once more with what the step may refer to.
	l.reader(l.scope).message(l.at(l.path), (&coordinatorv1.ProcedureStep{}).ProtoReflect(), l.path, place{})
}

// lintIdle checks a step without action.
func (l *stepLint) lintIdle() {
	if l.step.GetApprove() != nil {
		l.lintQuestion(l.path+".approve", l.step.GetApprove())
	}
	m := l.step.ProtoReflect()
	m.Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		switch field.Name() {
		case "id", "title", "approve", "wait", "needs":
		default:
			l.err(join(l.path, string(field.Name())), codeShape, "step %s has no action, and %s is for one", l.step.GetId(), field.Name())
		}
		return true
	})
}

func (l *stepLint) lintAction() {
	step := l.step
	if l.lintUse(l.path, step.GetUse(), l.action, step.GetOn(), l.path) {
		l.lintComposite()
	}
	if step.GetDoneIf() != nil {
		l.lintCondition(l.path+".done_if", step.GetDoneIf(), step.GetOn(), l.action, l.scope)
		if step.GetDoneIf().GetUse() == "" && l.action != nil && l.action.changes() {
			l.err(l.path+".done_if", codeUse, "done_if is asked before %s has done anything: name an action without effect with use, like probe.http", step.GetUse())
		}
	}
	if step.GetVerify() != nil {
		l.lintCondition(l.path+".verify", step.GetVerify(), step.GetOn(), l.action, l.scope)
	}
	if step.GetVerifyFor() != nil && step.GetVerify() == nil {
		l.err(l.path+".verify_for", codeShape, "verify_for without verify: there is nothing to ask again")
	}
	if c := step.GetVerify(); c != nil && c.GetUse() == "" && step.GetVerifyFor() != nil && l.action != nil && l.action.changes() {
		l.err(l.path+".verify_for", codeUse, "%s is not done again, so its answer stays what it is: leave verify_for out, or name an action without effect in verify.use", step.GetUse())
	}
	if r := step.GetRetry(); r != nil && r.GetAttempts() < 2 {
		l.err(l.path+".retry", codeValue, "retry.attempts is %d: it counts the first one, so give 2 or more", r.GetAttempts())
	}
	if rollout := step.GetRollout(); rollout != nil {
		for i, wave := range rollout.GetWaves() {
			if _, err := percent(wave, 1, 1); err != nil || strings.HasPrefix(wave, "0") {
				l.err(fmt.Sprintf("%s.rollout.waves[%d]", l.path, i), codeValue, "wave %q is neither a number from 1 nor a percentage, like 25%%", wave)
			}
		}
		if _, err := percent(rollout.GetMaxFailed(), 1, 0); rollout.GetMaxFailed() != "" && err != nil {
			l.err(l.path+".rollout.max_failed", codeValue, "max_failed: %s", err)
		}
	}
	for i, undo := range step.GetUndo() {
		path := fmt.Sprintf("%s.undo[%d]", l.path, i)
		action := lookUp(undo.GetUse())
		if l.lintUse(path, undo.GetUse(), action, step.GetOn(), l.path) && action.composite() {
			l.err(path+".use", codeUse, "%s becomes several steps and cannot undo one", undo.GetUse())
		}
	}
}

// lintUse checks that an action is there, acts on such a target, and has what it needs. It says whether the action is there.
func (d *Document) lintUse(path, use string, action *action, on, onPath string) bool {
	if action == nil {
		if use == "" {
			d.err(path, codeMissing, "%s names no action: give it with use", path)
		} else {
			d.err(path+".use", codeAction, "there is no action %q%s (there are %s)", use, didYouMean(use, Actions()), strings.Join(Actions(), ", "))
		}
		return false
	}
	target, known := d.Procedure.GetTargets()[on]
	switch {
	case on == "":
		d.err(onPath, codeNoTarget, "%s needs a target: name one of targets with on", use)
	case !known:
		d.err(onPath+".on", codeTarget, "there is no target %q%s", on, didYouMean(on, slices.Collect(maps.Keys(d.Procedure.GetTargets()))))
	case action.on == onHosts && target.GetService() != "":
		d.err(onPath+".on", codeUse, "%s acts on hosts, and target %s is a service: select hosts by labels, hosts or proxy", use, on)
	case (action.on == onInstances || action.on == onService) && target.GetService() == "":
		d.err(onPath+".on", codeUse, "%s acts on a service, and target %s selects hosts: give stack and service", use, on)
	}
	with := d.nodes[path+".with"]
	for _, need := range action.needs {
		given := child(with, string(need))
		if given == nil || given.Kind == yaml.SequenceNode && len(given.Content) == 0 {
			d.err(path, codeNoArgument, "%s needs %s: give it under with", use, need)
		}
	}
	return true
}

// lintComposite checks that nothing is asked of several steps that only one can have.
func (l *stepLint) lintComposite() {
	if !l.action.composite() {
		return
	}
	l.step.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		switch field.Name() {
		case "timeout", "done_if", "verify", "verify_for", "retry", "rollout", "undo", "if_unknown", "irreversible":
			l.err(join(l.path, string(field.Name())), codeUse, "%s becomes several steps, which have their own times, checks and undo: remove %s", l.step.GetUse(), field.Name())
		}
		return true
	})
}

var celName = regexp.MustCompile(`undefined field '([^']*)'|undeclared reference to '([^']*)'`)

// lintCondition checks a question to an agent. Without an action of its own it looks at the response of the step's.
func (d *Document) lintCondition(path string, c *coordinatorv1.Condition, stepOn string, own *action, scope *references) {
	asked := own
	if c.GetUse() != "" {
		asked = lookUp(c.GetUse())
		on, onPath := c.GetOn(), path
		if on == "" {
			on, onPath = stepOn, above(path)
		}
		if !d.lintUse(path, c.GetUse(), asked, on, onPath) {
			return
		}
		if asked.changes() {
			d.err(path+".use", codeUse, "%s changes something, and a question must not: take an action like probe.http or container.inspect", c.GetUse())
			return
		}
	} else if c.GetOn() != "" || c.GetWith() != nil {
		d.err(path, codeShape, "%s has a target or arguments and asks nobody: name an action with use", path)
	}
	if c.GetExpression() == "" {
		d.err(path, codeMissing, "%s has no expression: say what must hold of result", path)
		return
	}
	if asked == nil || asked.composite() {
		return // what there is to say is said of the action.
	}
	text, err := scope.literals(c.GetExpression())
	if err != nil {
		return // said when the step is read with its scope.
	}
	if _, err := expression.Compile(asked.rpc().Output(), text); err != nil {
		code, hint := codeType, ""
		if m := celName.FindStringSubmatch(err.Error()); m != nil {
			code, hint = codeName, didYouMean(m[1]+m[2], append(words(asked.rpc().Output(), nil), "result", "inputs", "each"))
		}
		at := path
		if d.nodes[path+".expression"] != nil {
			at = path + ".expression"
		}
		d.err(at, code, "%s%s", err, hint)
	}
}

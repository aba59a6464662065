package definition

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// lintSafety checks what would make a procedure dangerous: outcomes that nobody can know, changes that nobody agreed to or that others make at the
// same time, values that become commands, secrets in the open.
func (d *Document) lintSafety(inputs *references) {
	guard := d.Procedure.GetGuard()
	asked := guard.GetApproveStart() != nil
	if guard.GetRisk() == coordinatorv1.ProcedureRisk_PROCEDURE_RISK_DESTRUCTIVE && guard.GetApproveStart().GetCount() < 2 {
		d.err("guard", codeFewApprovals, "a destructive procedure needs the approval of two people: guard.approve_start with count: 2")
	}
	d.secrets(inputs)
	for i := range d.Procedure.GetSteps() {
		l := d.stepAt(i, inputs)
		asked = asked || l.step.GetApprove() != nil
		if l.action == nil {
			continue
		}
		l.lintOutcome()
		l.lintReversal(asked)
		l.lintGuarded()
		l.lintShell(l.path, l.step.GetWith())
		for j, undo := range l.step.GetUndo() {
			path := fmt.Sprintf("%s.undo[%d]", l.path, j)
			if undo.GetTimeout().AsDuration() <= 0 {
				l.err(path, codeNoTimeout, "%s has no timeout: say how long it may take", path)
			}
			l.lintShell(path, undo.GetWith())
		}
		if c := l.step.GetVerify(); c != nil && (c.GetUse() != "" || !l.action.changes()) && l.step.GetVerifyFor() == nil {
			l.warn(l.path+".verify", codeVerifyOnce, "verify is asked once, right after the action: give it time with verify_for, like 1m")
		}
	}
}

// lintOutcome checks that a lost outcome means something.
func (l *stepLint) lintOutcome() {
	step, once := l.step, l.action.rule().GetEffect() == accessv1.Effect_EFFECT_ONCE
	unknown := step.GetIfUnknown()
	if once && step.GetDoneIf() == nil && unknown != coordinatorv1.IfUnknown_IF_UNKNOWN_ASK && unknown != coordinatorv1.IfUnknown_IF_UNKNOWN_STOP {
		l.err(l.path, codeOnce, "%s must not be done twice, and nothing tells whether it was: give the step a done_if, or if_unknown: ask", step.GetUse())
	}
	if once && unknown == coordinatorv1.IfUnknown_IF_UNKNOWN_REPEAT {
		l.err(l.path+".if_unknown", codeBlind, "%s must not be done twice, and if_unknown: repeat would: take probe, ask or stop", step.GetUse())
	}
	if unknown == coordinatorv1.IfUnknown_IF_UNKNOWN_PROBE && step.GetDoneIf() == nil {
		l.err(l.path+".if_unknown", codeProbe, "if_unknown: probe asks done_if, and the step has none")
	}
	if l.action.changes() && !l.action.composite() && step.GetTimeout().AsDuration() <= 0 {
		l.err(l.path, codeNoTimeout, "step %s changes something and has no timeout: say how long an attempt may take", step.GetId())
	}
}

// lintReversal checks what is said of the way back.
func (l *stepLint) lintReversal(asked bool) {
	step, destructive := l.step, l.Procedure.GetGuard().GetRisk() == coordinatorv1.ProcedureRisk_PROCEDURE_RISK_DESTRUCTIVE
	if l.action.destroys && !step.GetIrreversible() {
		l.err(l.path, codeNotSaid, "nothing brings back what %s takes away: say irreversible: true", step.GetUse())
	}
	if !step.GetIrreversible() {
		return
	}
	if !destructive {
		l.err(l.path+".irreversible", codeRisk, "an irreversible step makes the procedure destructive: say so with guard.risk")
	}
	if !asked {
		l.err(l.path+".irreversible", codeNoApproval, "nobody is asked before the irreversible step %s: put an approve before it", step.GetId())
	}
	if len(step.GetUndo()) > 0 {
		l.err(l.path+".undo", codeContradicts, "step %s is irreversible and has an undo: it can be one of them", step.GetId())
	}
}

// lintGuarded checks that a change is announced: by the procedure's risk, and by locks that keep others away.
func (l *stepLint) lintGuarded() {
	if !l.action.changes() {
		return
	}
	guard := l.Procedure.GetGuard()
	least := coordinatorv1.ProcedureRisk_PROCEDURE_RISK_CHANGE
	if l.action.rule().GetRisk() >= accessv1.Risk_RISK_DISRUPT {
		least = coordinatorv1.ProcedureRisk_PROCEDURE_RISK_DISRUPTIVE
	}
	if guard.GetRisk() != coordinatorv1.ProcedureRisk_PROCEDURE_RISK_UNSPECIFIED && guard.GetRisk() < least {
		l.err("guard.risk", codeRisk, "%s in step %s is %s, more than guard.risk says", l.step.GetUse(), l.step.GetId(), riskWord(least))
	}
	if len(guard.GetLocks()) == 0 {
		l.err(l.path, codeNoLock, "step %s changes something and the procedure takes no lock: name what it changes in guard.locks, like stack/NAME", l.step.GetId())
		return
	}
	for _, stack := range l.stacks() {
		if !slices.Contains(guard.GetLocks(), "stack/"+stack) {
			l.err(l.path, codeNoLock, "step %s changes stack %s: take stack/%s into guard.locks", l.step.GetId(), stack, stack)
		}
	}
}

func riskWord(risk coordinatorv1.ProcedureRisk) string {
	return word(risk.Descriptor().Values().ByNumber(risk.Number()))
}

// stacks that a step touches.
func (l *stepLint) stacks() []string {
	var all []string
	if stack := l.Procedure.GetTargets()[l.step.GetOn()].GetStack(); stack != "" {
		all = append(all, stack)
	}
	maintenance := &agentv1.SetMaintenanceRequest{}
	if l.step.GetWith().MessageIs(maintenance) && l.step.GetWith().UnmarshalTo(maintenance) == nil {
		all = append(all, stacksOfRoutes(maintenance.GetRoutes())...)
	}
	return all
}

// stacksOfRoutes lists the stacks of routes by their names, stack.service.
func stacksOfRoutes(routes []string) []string {
	var all []string
	for _, route := range routes {
		if i := strings.LastIndex(route, "."); i > 0 {
			all = append(all, route[:i])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// lintShell refuses a value inside a text that a shell reads.
func (l *stepLint) lintShell(at string, with *anypb.Any) {
	job := &coordinatorv1.JobArguments{}
	if !with.MessageIs(job) || with.UnmarshalTo(job) != nil {
		return
	}
	argv, option := job.GetArgv(), -1
	if len(argv) == 0 || !isShell(argv[0]) {
		return
	}
	for i, arg := range argv[1:] {
		if strings.HasPrefix(arg, "-") && strings.Contains(arg, "c") {
			option = i + 1
			break
		}
	}
	if option > 0 && option+1 < len(argv) && reference.MatchString(strings.ReplaceAll(argv[option+1], "$${", "")) {
		l.err(at+".with.argv["+strconv.Itoa(option+1)+"]", codeShell,
			"a value becomes a part of a command that a shell reads: give it as an argument after the command, where the shell knows it as $1, or in env")
	}
}

func isShell(program string) bool {
	switch path.Base(program) {
	case "sh", "bash", "ash", "dash", "zsh", "ksh", "busybox":
		return true
	}
	return false
}

// secrets checks that the name of a secret goes where its value is mounted, and nowhere else.
func (d *Document) secrets(inputs *references) {
	var names []string
	for name, v := range inputs.inputs {
		if v.kind == coordinatorv1.InputType_INPUT_TYPE_SECRET {
			names = append(names, "${inputs."+name+"}")
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	for i, step := range d.Procedure.GetSteps() {
		at := fmt.Sprintf("steps[%d]", i)
		d.walk(step.ProtoReflect(), at, func(where, text string) {
			for _, name := range names {
				if strings.Contains(text, name) && !strings.Contains(where, ".with.secrets.") {
					d.err(where, codeSecret, "%s is a SECRET and would be read in the plan: give it to job.run under with.secrets, which mounts its value as a file", name)
				}
			}
		})
	}
}

// walk visits every text of a message, arguments included.
func (d *Document) walk(m protoreflect.Message, at string, visit func(where, text string)) {
	if packed, ok := m.Interface().(*anypb.Any); ok {
		if unpacked, err := packed.UnmarshalNew(); err == nil {
			d.walk(unpacked.ProtoReflect(), at, visit)
		}
		return
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		where := join(at, string(field.Name()))
		each := func(item protoreflect.Value, f protoreflect.FieldDescriptor, where string) {
			switch {
			case f.Message() != nil:
				d.walk(item.Message(), where, visit)
			case f.Kind() == protoreflect.StringKind:
				visit(where, item.String())
			}
		}
		switch {
		case field.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, item protoreflect.Value) bool {
				each(item, field.MapValue(), join(where, key.String()))
				return true
			})
		case field.IsList():
			for i := range v.List().Len() {
				each(v.List().Get(i), field, where+"["+strconv.Itoa(i)+"]")
			}
		default:
			each(v, field, where)
		}
		return true
	})
}

package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

var (
	nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	idForm   = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,39}$`)
	wordForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	lockForm = regexp.MustCompile(`^[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*$`)
)

// lint checks what the file means.
func (d *Document) lint() {
	d.lintHead()
	d.lintInputs()
	scope := placeholders(d.Procedure.GetInputs())
	d.lintTargets(scope)
	if len(d.Procedure.GetSteps()) == 0 {
		d.err("steps", codeMissing, "the procedure has no steps")
	}
	if n := len(d.Procedure.GetSteps()) + len(d.Procedure.GetGuard().GetPreconditions()); n > maxFileSteps {
		d.err("steps", codeShape, "the procedure has %d steps and preconditions, more than %d: split it", n, maxFileSteps)
		return
	}
	d.lintGuard(scope)
	seen := map[string]bool{}
	var ids []string
	for i := range d.Procedure.GetSteps() {
		l := d.stepAt(i, scope)
		l.lint(seen)
		if id := l.step.GetId(); id != "" {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	d.lintNeeds(ids)
	d.lintSafety(scope)
	d.lintTime()
}

func (d *Document) lintHead() {
	p := d.Procedure
	if p.GetApi() != apiVersion {
		d.err("api", codeMissing, "api is %q, and must be %s", p.GetApi(), apiVersion)
	}
	if !nameForm.MatchString(p.GetName()) {
		d.err("name", codeMissing, "name is %q: take small letters, digits and dashes, at most 63, a letter first", p.GetName())
	}
	if builtIn(p.GetName()) {
		d.err("name", codeValue, "%s is what Muster calls a procedure of its own: take another name", p.GetName())
	}
	if p.GetTitle() == "" || strings.Contains(p.GetTitle(), "\n") {
		d.err("title", codeMissing, "title is missing, or has several lines: say in one line what the procedure does")
	}
	if p.GetMaxDuration().AsDuration() <= 0 {
		d.err("max_duration", codeMissing, "max_duration is missing: every run has a deadline, like 4h")
	}
	d.lintFailureAction("on_deadline", p.GetOnDeadline())
}

// builtIn says that a name is one of Muster's own procedures, by which runs are told apart.
func builtIn(name string) bool {
	for verb := range coordinatorv1.ServiceVerb_name {
		if name == runbook.ServiceProcedure(coordinatorv1.ServiceVerb(verb)) {
			return true
		}
	}
	return slices.Contains([]string{"rolling-update", runbook.DrainProcedure, runbook.ScaleProcedure, runbook.TidyProcedure}, name)
}

func (d *Document) lintFailureAction(path string, action coordinatorv1.FailureAction) {
	if action == coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE {
		d.err(path, codeValue, "%s is continue, and must be rollback or pause", path)
	}
}

func (d *Document) lintInputs() {
	inputs := d.Procedure.GetInputs()
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		input, path := inputs[name], "inputs."+name
		if !wordForm.MatchString(name) {
			d.err(path, codeValue, "input %q: take letters, digits and _, a letter first", name)
		}
		if input.GetType() == coordinatorv1.InputType_INPUT_TYPE_UNSPECIFIED {
			d.err(path, codeMissing, "%s has no type: string, int, bool, duration, enum, list or secret", path)
			continue
		}
		d.lintBounds(path, input)
		switch {
		case len(input.GetDefault()) == 0:
		case input.GetRequired():
			d.err(path+".default", codeShape, "%s is required and has a default: only one of them means anything", path)
		case input.GetType() == coordinatorv1.InputType_INPUT_TYPE_SECRET:
			d.err(path+".default", codeShape, "%s is a SECRET and has no default: which one is used is said at each run", path)
		default:
			if _, err := typed(input, input.GetDefault()...); err != nil {
				d.err(path+".default", codeType, "%s.default: %s", path, err)
			}
		}
	}
}

// lintBounds checks what restricts an input's values.
func (d *Document) lintBounds(path string, input *coordinatorv1.Input) {
	kind := input.GetType()
	text := kind == coordinatorv1.InputType_INPUT_TYPE_STRING || kind == coordinatorv1.InputType_INPUT_TYPE_LIST || kind == coordinatorv1.InputType_INPUT_TYPE_SECRET
	switch {
	case input.GetPattern() != "" && !text:
		d.err(path+".pattern", codeShape, "%s.pattern is for a STRING, a LIST or a SECRET", path)
	case (input.Min != nil || input.Max != nil) && kind != coordinatorv1.InputType_INPUT_TYPE_INT:
		d.err(path, codeShape, "%s: min and max are for an INT", path)
	case kind == coordinatorv1.InputType_INPUT_TYPE_ENUM && len(input.GetValues()) == 0:
		d.err(path, codeMissing, "%s is an ENUM without values", path)
	case kind != coordinatorv1.InputType_INPUT_TYPE_ENUM && len(input.GetValues()) > 0:
		d.err(path+".values", codeShape, "%s.values are for an ENUM", path)
	}
	if _, err := regexp.Compile(input.GetPattern()); err != nil {
		d.err(path+".pattern", codeValue, "%s.pattern cannot be read: %s", path, err)
	}
}

func (d *Document) lintTargets(scope *references) {
	targets := d.Procedure.GetTargets()
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		path := "targets." + name
		if !wordForm.MatchString(name) {
			d.err(path, codeValue, "target %q: take letters, digits and _, a letter first", name)
		}
		target, each := targets[name], value{kind: coordinatorv1.InputType_INPUT_TYPE_STRING, text: "${each}", open: true}
		d.reader(scope.with(&each, nil)).message(d.at(path), (&coordinatorv1.Target{}).ProtoReflect(), path, place{})
		hosts := len(target.GetLabels()) > 0 || len(target.GetHosts()) > 0 || target.GetProxy()
		switch {
		case target.GetService() != "" && target.GetStack() == "":
			d.err(path, codeMissing, "%s names the service %s and not its stack", path, target.GetService())
		case target.GetStack() != "" && target.GetService() == "":
			d.err(path, codeMissing, "%s names the stack %s and none of its services", path, target.GetStack())
		case target.GetService() != "" && hosts:
			d.err(path, codeShape, "%s selects hosts and a service: it can be one of them", path)
		case target.GetService() == "" && !hosts:
			d.err(path, codeMissing, "%s selects nothing: give labels, hosts, proxy, or stack and service", path)
		}
	}
}

func (d *Document) reader(scope *references) *decoder {
	return &decoder{document: d, scope: scope, note: d.found, rescope: func(on string) *references {
		return d.scopeOf(on, scope.each != nil, scope)
	}}
}

func (d *Document) lintGuard(scope *references) {
	guard := d.Procedure.GetGuard()
	if guard.GetRisk() == coordinatorv1.ProcedureRisk_PROCEDURE_RISK_UNSPECIFIED {
		d.err("guard", codeMissing, "guard.risk is missing: read, change, disruptive or destructive")
	}
	if n := d.nodes["guard"]; n != nil {
		d.reader(scope).message(n, (&coordinatorv1.Guard{}).ProtoReflect(), "guard", place{})
	}
	for i, lock := range guard.GetLocks() {
		if !lockForm.MatchString(reference.ReplaceAllString(lock, "x")) {
			d.err(fmt.Sprintf("guard.locks[%d]", i), codeValue, "lock %q: write it like stack/NAME or db/NAME", lock)
		}
	}
	if guard.GetApproveStart() != nil {
		d.lintQuestion("guard.approve_start", guard.GetApproveStart())
	}
	for i, condition := range guard.GetPreconditions() {
		path := fmt.Sprintf("guard.preconditions[%d]", i)
		if condition.GetUse() == "" {
			d.err(path, codeShape, "%s asks nobody: name an action without effect with use", path)
			continue
		}
		d.lintCondition(path, condition, "", nil, scope)
	}
}

func (d *Document) lintQuestion(path string, q *coordinatorv1.Question) {
	if q.GetPrompt() == "" {
		d.err(path, codeMissing, "%s asks nothing: give it a prompt", path)
	}
	for i, role := range q.GetRoles() {
		if w := strings.ToLower(role.String()); w == "role_agent" || w == "role_coordinator" || w == "role_viewer" {
			d.err(fmt.Sprintf("%s.roles[%d]", path, i), codeValue, "%s: %s may not answer: take operator, admin or service", path, strings.TrimPrefix(w, "role_"))
		}
	}
	d.lintFailureAction(path+".on_expiry", q.GetOnExpiry())
}

// lintNeeds checks that steps come after what they need.
func (d *Document) lintNeeds(ids []string) {
	at := map[string]int{}
	for i, step := range d.Procedure.GetSteps() {
		if _, twice := at[step.GetId()]; !twice {
			at[step.GetId()] = i
		}
	}
	for i, step := range d.Procedure.GetSteps() {
		for j, need := range step.GetNeeds() {
			path := fmt.Sprintf("steps[%d].needs[%d]", i, j)
			switch before, known := at[need]; {
			case !known:
				d.err(path, codeNeeds, "there is no step %q%s", need, didYouMean(need, ids))
			case before >= i:
				d.err(path, codeNeeds, "step %s needs %s, which does not come before it", step.GetId(), need)
			}
		}
	}
}

// lintTime compares what the steps may take at most with what a run may take.
func (d *Document) lintTime() {
	p := d.Procedure
	limit := p.GetMaxDuration().AsDuration()
	longest, ends := time.Duration(0), map[string]time.Duration{}
	begin := expiry(p.GetGuard().GetApproveStart())
	for _, step := range p.GetSteps() {
		from := max(begin, longest)
		if len(step.GetNeeds()) > 0 {
			from = begin
			for _, need := range step.GetNeeds() {
				from = max(from, ends[need])
			}
		}
		end := from + d.worst(step)
		ends[step.GetId()] = end
		longest = max(longest, end)
	}
	if limit > 0 && longest > limit {
		d.err("max_duration", codeTooLong, "the steps may take %s, approvals and attempts included, more than max_duration, %s", longest, limit)
	}
}

func expiry(q *coordinatorv1.Question) time.Duration {
	if q == nil {
		return 0
	}
	if e := q.GetExpires().AsDuration(); e > 0 {
		return e
	}
	return time.Hour
}

// worst is the most that a step takes in one wave, for each element that is known.
func (d *Document) worst(step *coordinatorv1.ProcedureStep) time.Duration {
	retry := step.GetRetry()
	once := attempts(retry.GetAttempts(), step.GetTimeout().AsDuration(), retry.GetDelay().AsDuration(), retry.GetBackoff())
	once += step.GetVerifyFor().AsDuration() + step.GetWait().AsDuration() + expiry(step.GetApprove())
	times := 0
	for _, item := range step.GetForEach() {
		times++
		if name, ok := strings.CutPrefix(strings.TrimSuffix(item, "}"), "${inputs."); ok {
			times += max(0, len(d.Procedure.GetInputs()[name].GetDefault())-1)
		}
	}
	return once * time.Duration(max(1, times))
}

// percent reads a number or a percentage, of so many, rounded down but for sizes, which are at least 1.
func percent(text string, of, least int) (int, error) {
	number, isPercent := strings.CutSuffix(text, "%")
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || isPercent && n > 100 {
		return 0, fmt.Errorf("%q is neither a number nor a percentage", text)
	}
	if isPercent {
		n = of * n / 100
	}
	return max(n, least), nil
}

package command

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// hasChanges tells whether a plan does anything. A release that differs in a policy alone takes no steps, and is put in place all the same.
func hasChanges(p *coordinatorv1.Plan) bool {
	return len(p.GetSteps()) > 0 || slices.ContainsFunc(p.GetChanges(), func(c *coordinatorv1.ServiceChange) bool {
		return c.GetKind() != coordinatorv1.ChangeKind_CHANGE_KIND_NONE
	})
}

// removed returns the services that a plan removes.
func removed(p *coordinatorv1.Plan) []string {
	var out []string
	for _, c := range p.GetChanges() {
		if c.GetKind() == coordinatorv1.ChangeKind_CHANGE_KIND_REMOVE {
			out = append(out, c.GetService())
		}
	}
	return out
}

// writePlan shows a plan: what changes, why so, and what it takes. With steps, it shows all of them.
func writePlan(w io.Writer, p *coordinatorv1.Plan, warnings []string, steps bool, style output.Style) {
	line := func(format string, args ...any) {
		_, _ = fmt.Fprintln(w, strings.TrimRight(output.Clean(sprintf(format, args...)), " "))
	}
	indented := func(tone output.Tone, label, text string) {
		_, _ = fmt.Fprintln(w, "  "+style.Paint(tone, label)+output.Clean(text))
	}
	line("plan: %s", first(p.GetTitle(), p.GetProcedure()))
	same := 0
	for _, c := range p.GetChanges() {
		if c.GetKind() == coordinatorv1.ChangeKind_CHANGE_KIND_NONE {
			same++
			continue
		}
		writeChange(w, c, verbOf(p), style)
	}
	if same > 0 {
		indented(output.ToneFaint, "", sprintf("%d %s unchanged", same, plural(same, "service stays", "services stay")))
	}
	for _, n := range p.GetNotes() {
		indented(output.ToneBold, "note: ", n)
	}
	for _, n := range warnings {
		indented(output.ToneWarn, "warning: ", n)
	}
	if !hasChanges(p) {
		line("nothing to do")
		return
	}
	if steps || asksOrChecks(p) {
		writeSteps(w, p, style)
	}
	facts := []string{sprintf("%d %s", len(p.GetSteps()), plural(len(p.GetSteps()), "step", "steps"))}
	if hosts := hostsOf(p); hosts > 0 {
		facts = append(facts, sprintf("on %d %s", hosts, plural(hosts, "host", "hosts")))
	}
	if d := p.GetMaxDuration(); d != nil {
		facts = append(facts, "at most "+output.Span(d.AsDuration()))
	}
	if len(p.GetLocks()) > 0 {
		facts = append(facts, "locks "+strings.Join(p.GetLocks(), ", "))
	}
	line("%s", strings.Join(facts, ", "))
	line("hash %s", p.GetHash())
}

// verbOf returns what a plan does to services whose definition stays as it is; empty for a plan that changes definitions.
func verbOf(p *coordinatorv1.Plan) string {
	for _, v := range verbs() {
		if v.name() == p.GetProcedure() {
			return v.name()
		}
	}
	return ""
}

func writeChange(w io.Writer, c *coordinatorv1.ServiceChange, verb string, style output.Style) {
	kind := output.Word(c.GetKind(), "CHANGE_KIND_")
	sign := map[string]string{"create": "+", "update": "~", "remove": "-"}[kind]
	facts := []string{instances(c)}
	atOnce := verb == "stop" || verb == "start" || verb == "signal"
	if kind == "update" && !atOnce {
		if c.GetOrder() != "" {
			facts = append(facts, c.GetOrder())
		}
		if p := c.GetParallelism(); p > 0 {
			facts = append(facts, sprintf("%d at a time", p))
		} else {
			facts = append(facts, "all at a time")
		}
	}
	_, _ = fmt.Fprintf(w, "  %s %s  %s\n", style.Paint(output.ToneOf(kind), first(sign, "?")+" "+first(verb, kind)),
		output.Clean(c.GetService()), output.Clean(strings.Join(facts, ", ")))
	for _, f := range c.GetFields() {
		_, _ = fmt.Fprintf(w, "      %s: %s -> %s\n", output.Clean(f.GetPath()), value(f.GetBefore()), value(f.GetAfter()))
	}
}

func instances(c *coordinatorv1.ServiceChange) string {
	before, after := c.GetInstancesBefore(), c.GetInstancesAfter()
	switch {
	case before == after, c.GetKind() == coordinatorv1.ChangeKind_CHANGE_KIND_CREATE:
		return sprintf("%d %s", after, plural(int(after), "instance", "instances"))
	case c.GetKind() == coordinatorv1.ChangeKind_CHANGE_KIND_REMOVE:
		return sprintf("%d %s", before, plural(int(before), "instance", "instances"))
	}
	return sprintf("%d -> %d instances", before, after)
}

func value(s string) string {
	if s == "" {
		return "(none)"
	}
	return output.Clean(s)
}

func writeSteps(w io.Writer, p *coordinatorv1.Plan, style output.Style) {
	rows := make([][]string, 0, len(p.GetSteps()))
	for i, s := range p.GetSteps() {
		wait := ""
		if d := s.GetDelay().AsDuration(); d > 0 {
			wait = output.Span(d)
		}
		rows = append(rows, []string{sprintf("%d", i+1), s.GetHost(), s.GetId(), wait, asked(s) + first(s.GetTitle(), s.GetAction().GetMethod())})
	}
	output.WriteTable(w, []output.Column{{Title: "#"}, {Title: "HOST"}, {Title: "STEP"}, {Title: "DELAY"}, {Title: "WHAT"}}, rows, true, style)
}

// asksOrChecks says that a plan is told by its steps, not by what becomes of services: somebody wrote it.
func asksOrChecks(p *coordinatorv1.Plan) bool {
	return len(p.GetChanges()) == 0 || slices.ContainsFunc(p.GetSteps(), func(s *coordinatorv1.Step) bool {
		return s.GetApproval() != nil || s.GetDoneIf() != nil || s.GetVerify() != nil
	})
}

// asked says whom a step asks, and how many of them.
func asked(s *coordinatorv1.Step) string {
	approval := s.GetApproval()
	if approval == nil {
		return ""
	}
	var roles []string
	for _, role := range approval.GetRoles() {
		roles = append(roles, output.Word(role, "ROLE_"))
	}
	if len(roles) == 0 {
		roles = []string{"operator", "admin"}
	}
	return sprintf("asks %d of %s: ", max(1, approval.GetCount()), strings.Join(roles, ", "))
}

func hostsOf(p *coordinatorv1.Plan) int {
	hosts := map[string]bool{}
	for _, s := range p.GetSteps() {
		if s.GetHost() != "" {
			hosts[s.GetHost()] = true
		}
	}
	return len(hosts)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

package definition

import (
	"slices"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// service plans a verb of a service, as `musterctl service` does, and takes the steps of that plan into this one.
func (c *compiler) service(path, id string, a *action, s *site, each *value, at point) (point, error) {
	def, err := c.resolved(path, s, each)
	if err != nil {
		return at, err
	}
	args := &coordinatorv1.ServiceArguments{}
	if def.GetWith() != nil {
		if err := def.GetWith().UnmarshalTo(args); err != nil {
			return at, invalid("arguments of %s: %s", a.name, err)
		}
	}
	proposal, err := c.operate(&coordinatorv1.OperateServiceRequest{
		Stack: s.stack, Service: s.service.GetName(), Verb: a.verb, Delay: args.GetDelay(), Signal: args.GetSignal(),
	})
	if err != nil {
		return at, err
	}
	c.warnings = append(c.warnings, proposal.Warnings...)
	for _, note := range proposal.Plan.GetNotes() {
		c.plan.Notes = append(c.plan.Notes, id+": "+note)
	}
	return c.splice(id, proposal.Plan, at), nil
}

// splice takes the steps of another plan into this one at a point, and returns the point after all of them.
func (c *compiler) splice(id string, plan *coordinatorv1.Plan, at point) point {
	waited := map[string]bool{}
	for _, step := range plan.GetSteps() {
		for _, before := range step.GetAfter() {
			waited[before] = true
		}
	}
	var ends point
	for _, step := range plan.GetSteps() {
		last := !waited[step.GetId()] && !step.GetCleanUp()
		first := len(step.GetAfter()) == 0
		step.Id = id + "/" + step.GetId()
		for i := range step.GetAfter() {
			step.After[i] = id + "/" + step.GetAfter()[i]
		}
		if step.GetGroup() != "" {
			step.Group = id + "/" + step.GetGroup()
		}
		where := point{}
		if first {
			where = at
		}
		if end := c.add(step, where); last {
			ends = ends.and(end)
		}
	}
	for _, budget := range plan.GetBudgets() {
		budget.Name = id + "/" + budget.GetName()
		for i := range budget.GetGroups() {
			budget.Groups[i] = id + "/" + budget.GetGroups()[i]
		}
		c.plan.Budgets = append(c.plan.Budgets, budget)
	}
	c.plan.Changes = append(c.plan.Changes, slices.Clone(plan.GetChanges())...)
	if len(ends.steps) == 0 {
		return at
	}
	return ends
}

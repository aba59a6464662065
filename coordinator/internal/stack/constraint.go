package stack

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// constraint is one condition on a host, like node.labels.zone==a.
type constraint struct {
	// attribute is node.hostname, node.id, node.platform.os, node.platform.arch or node.labels.NAME.
	attribute string
	// negated means != instead of ==.
	negated bool
	// value to compare with, case-insensitively as Docker does.
	value string
}

// parseConstraint reads a constraint and says which attributes there are.
func parseConstraint(text string) (constraint, error) {
	m := regexp.MustCompile(`^\s*([A-Za-z0-9._/-]+)\s*(==|!=)\s*(\S(?:.*\S)?)\s*$`).FindStringSubmatch(text)
	if m == nil {
		return constraint{}, fmt.Errorf("constraint %q is not of the form node.labels.zone==a or node.hostname!=web-1", text)
	}
	c := constraint{attribute: m[1], negated: m[2] == "!=", value: m[3]}
	if label, ok := strings.CutPrefix(c.attribute, "node.labels."); ok && label != "" {
		return c, nil
	}
	known := []string{"node.hostname", "node.id", "node.platform.os", "node.platform.arch"}
	if slices.Contains(known, c.attribute) {
		return c, nil
	}
	return constraint{}, fmt.Errorf("constraint %q: %s is not known here; there are %s and node.labels.NAME",
		text, c.attribute, strings.Join(known, ", "))
}

// String writes the constraint in one way, however it was written.
func (c constraint) String() string {
	if c.negated {
		return c.attribute + "!=" + c.value
	}
	return c.attribute + "==" + c.value
}

// holds says whether the host satisfies the constraint.
func (c constraint) holds(h *coordinatorv1.Host) bool {
	equal := slices.ContainsFunc(attributeValues(h, c.attribute), func(v string) bool { return strings.EqualFold(v, c.value) })
	return equal != c.negated
}

// attributeValues returns what a host has for an attribute. A host is known by its Muster name and by the name of its machine.
func attributeValues(h *coordinatorv1.Host, attribute string) []string {
	os, arch, _ := strings.Cut(h.GetInventory().GetPlatform(), "/")
	switch attribute {
	case "node.hostname":
		return []string{h.GetName(), h.GetInventory().GetHostname()}
	case "node.id":
		return []string{h.GetName()}
	case "node.platform.os":
		return []string{os}
	case "node.platform.arch":
		return []string{arch}
	}
	return []string{h.GetLabels()[strings.TrimPrefix(attribute, "node.labels.")]}
}

// unmet returns the constraints of a service that a host does not satisfy. Constraints that cannot be read are met by no host.
func unmet(s *coordinatorv1.Service, h *coordinatorv1.Host) []string {
	var out []string
	for _, text := range s.GetPlacement().GetConstraints() {
		c, err := parseConstraint(text)
		if err != nil {
			out = append(out, text)
		} else if !c.holds(h) {
			out = append(out, c.String())
		}
	}
	return out
}

// describeHosts tells what the hosts have for the attributes that the constraints of a service ask for.
func describeHosts(s *coordinatorv1.Service, hosts []*room) string {
	var parts []string
	for _, r := range hosts {
		var has []string
		for _, text := range s.GetPlacement().GetConstraints() {
			c, err := parseConstraint(text)
			if err != nil {
				continue
			}
			value := attributeValues(r.host, c.attribute)[0]
			if value == "" {
				value = "(none)"
			}
			has = append(has, c.attribute+"="+value)
		}
		slices.Sort(has)
		parts = append(parts, r.name()+" has "+strings.Join(slices.Compact(has), ", "))
	}
	return strings.Join(parts, "; ")
}

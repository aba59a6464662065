package stack

import (
	"slices"
	"strings"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// The text of Service.pinned names what pins, one item after the other, so that placement can tell which services share data.
const (
	pinVolume   = "volume "
	pinExternal = "external volume "
	pinBind     = "directory "
	pinSep      = ", "
)

// pin is one piece of data that lives on a host.
type pin struct {
	// key is equal for services that share the data. All relative binds of a stack share one: the project directory.
	key string
	// item names the data for the operator.
	item string
	// existed says that the data was there before Muster, on a host that Muster cannot guess.
	existed bool
}

// describePins writes Service.pinned for the mounts that pin a service.
func describePins(mounts []*agentv1.Mount) string {
	var items []string
	for _, m := range mounts {
		switch {
		case m.GetType() == "volume" && m.GetExternal():
			items = append(items, pinExternal+m.GetSource())
		case m.GetType() == "volume":
			items = append(items, pinVolume+m.GetSource())
		default:
			items = append(items, pinBind+m.GetSource())
		}
	}
	slices.Sort(items)
	return strings.Join(slices.Compact(items), pinSep)
}

// pins reads Service.pinned back. Global services are not pinned: each host has its own data.
func pins(s *coordinatorv1.Service) []pin {
	if s.GetPinned() == "" || s.GetPlacement().GetGlobal() {
		return nil
	}
	var out []pin
	for item := range strings.SplitSeq(s.GetPinned(), pinSep) {
		switch {
		case strings.HasPrefix(item, pinBind):
			out = append(out, pin{key: "project directory", item: item, existed: true})
		case strings.HasPrefix(item, pinExternal):
			out = append(out, pin{key: pinVolume + strings.TrimPrefix(item, pinExternal), item: item, existed: true})
		default:
			out = append(out, pin{key: item, item: item})
		}
	}
	return out
}

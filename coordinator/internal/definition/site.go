package definition

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// site is one place where a step acts: a host, or an instance of a service on its host.
type site struct {
	id         string // the host's name, or service.slot
	host       string
	address    string
	stack      string // empty for a host
	service    *coordinatorv1.Service
	assignment *coordinatorv1.Assignment
}

// parts are what ${target.…} stands for.
func (s *site) parts() map[string]value {
	texts := map[string]string{"host": s.host, "address": s.address}
	if s.assignment != nil {
		texts["name"] = s.assignment.GetContainer()
		for _, port := range s.assignment.GetPorts() {
			if port.GetProtocol() == "udp" {
				continue
			}
			host := port.GetHostIp()
			if host == "" || host == "0.0.0.0" || host == "::" {
				host = s.assignment.GetHostAddress()
			}
			texts["port."+strconv.FormatUint(uint64(port.GetContainerPort()), 10)] = net.JoinHostPort(host, strconv.FormatUint(uint64(port.GetHostPort()), 10))
		}
	}
	parts := map[string]value{}
	for name, text := range texts {
		parts[name] = value{kind: coordinatorv1.InputType_INPUT_TYPE_STRING, text: text}
	}
	return parts
}

// decode reads the node at a path within a scope. What the linter could not know, because it depends on the inputs, is refused here.
func (c *compiler) decode(path string, scope *references, m protoreflect.Message) error {
	n := c.document.nodes[path]
	if n == nil {
		return nil
	}
	var wrong error
	reader, failed := c.reader(scope)
	reader.note = func(n *yaml.Node, _, format string, args ...any) {
		if wrong == nil {
			wrong = invalid("%s:%d:%d: %s", c.document.file, n.Line, n.Column, fmt.Sprintf(format, args...))
		}
	}
	reader.message(n, m, path, place{})
	if *failed != nil {
		return *failed
	}
	return wrong
}

// sites resolves a target for one element of for_each.
func (c *compiler) sites(on string, each *value) ([]*site, error) {
	target := &coordinatorv1.Target{}
	if err := c.decode("targets."+on, c.inputs.with(each, nil), target.ProtoReflect()); err != nil {
		return nil, err
	}
	find := c.hosts
	if target.GetService() != "" {
		find = c.instances
	}
	sites, err := find(on, target)
	if err != nil {
		return nil, err
	}
	var down []string
	for _, s := range sites {
		if c.view.Host(s.host).GetState() != coordinatorv1.HostState_HOST_STATE_UP {
			down = append(down, s.host)
		}
	}
	if len(down) > 0 {
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_HOST_DOWN,
			"target %s needs %s, which is not up: `musterctl host list` shows why", on, strings.Join(union(down), ", "))
	}
	return sites, nil
}

func (c *compiler) hosts(on string, target *coordinatorv1.Target) ([]*site, error) {
	var sites []*site
	for _, host := range c.view.Hosts() {
		if selects(target, host) {
			sites = append(sites, &site{id: host.GetName(), host: host.GetName(), address: host.GetInventory().GetAddress()})
		}
	}
	if len(sites) == 0 {
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"target %s selects no host: %s; `musterctl host list` shows them with their labels", on, wanted(target))
	}
	return sites, nil
}

func selects(target *coordinatorv1.Target, host *coordinatorv1.Host) bool {
	if len(target.GetHosts()) > 0 && !slices.Contains(target.GetHosts(), host.GetName()) {
		return false
	}
	if target.GetProxy() && len(host.GetInventory().GetRouteDrivers()) == 0 {
		return false
	}
	for key, want := range target.GetLabels() {
		if have, ok := host.GetInventory().GetLabels()[key]; !ok || have != want {
			return false
		}
	}
	return true
}

func wanted(target *coordinatorv1.Target) string {
	var all []string
	if len(target.GetHosts()) > 0 {
		all = append(all, "one of "+strings.Join(target.GetHosts(), ", "))
	}
	if target.GetProxy() {
		all = append(all, "one that drives a proxy")
	}
	for _, key := range slices.Sorted(maps.Keys(target.GetLabels())) {
		all = append(all, "one with the label "+key+"="+target.GetLabels()[key])
	}
	return strings.Join(all, ", and ")
}

// instances of a service in the current release of its stack, in the order of their slots.
func (c *compiler) instances(on string, target *coordinatorv1.Target) ([]*site, error) {
	release, service, err := runbook.FindService(c.view, target.GetStack(), target.GetService())
	if err != nil {
		return nil, err
	}
	c.stacks = append(c.stacks, target.GetStack())
	var sites []*site
	for _, a := range release.GetAssignments() {
		if a.GetService() == service.GetName() {
			sites = append(sites, &site{
				id: state.GroupOf(a), host: a.GetHost(), address: a.GetHostAddress(), stack: target.GetStack(), service: service, assignment: a,
			})
		}
	}
	slices.SortFunc(sites, func(x, y *site) int { return cmp.Compare(x.assignment.GetSlot(), y.assignment.GetSlot()) })
	if len(sites) == 0 {
		return nil, rpcerr.New(codes.FailedPrecondition, coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
			"target %s: service %s of stack %s has no instance", on, target.GetService(), target.GetStack())
	}
	return sites, nil
}

// asked is where a question is asked: the first place of its target.
func (c *compiler) asked(on string, each *value) (*site, error) {
	sites, err := c.sites(on, each)
	if err != nil {
		return nil, err
	}
	return sites[0], nil
}

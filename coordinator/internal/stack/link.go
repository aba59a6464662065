package stack

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// LinkRequest is what links between services are made from.
type LinkRequest struct {
	// Services of the release.
	Services []*coordinatorv1.Service
	// Assignments of the release.
	Assignments []*coordinatorv1.Assignment
	// Proxies is the address under which the route proxy that leads to a service is reached, by the name of the routed service. The proxy
	// must listen there on the port that the dependants use.
	Proxies map[string]string
}

// Links tells how service names resolve in containers, beyond what the stack's own network on each host does.
type Links struct {
	// Warnings are names that a service seems to use and that do not resolve on its host.
	Warnings []string

	// hosts holds extra_hosts by service and host.
	hosts map[string]map[string][]string
	// errs are declared links that cannot be made.
	errs []error
}

// ExtraHosts returns the extra_hosts, as name:address and sorted, of a service's containers on a host. A nil Links has none.
func (l *Links) ExtraHosts(service, host string) []string {
	if l == nil {
		return nil
	}
	return l.hosts[service][host]
}

// Link resolves names across hosts. Instances on one host share the stack's network and find each other there, as with compose. A service
// that depends on another (depends_on, links) with no instance on the same host is led to it: through the route proxy if it has a
// route, else to its only instance's published port. A name that is only mentioned, in a variable or in the command, is led there too
// if that can be done, and otherwise is a warning.
//
// Error: PLACEMENT (FAILED_PRECONDITION) with the line to add, for a declared link that cannot be made.
func Link(req LinkRequest) (*Links, error) {
	l := link(req)
	if len(l.errs) > 0 {
		return nil, l.errs[0]
	}
	return l, nil
}

// link makes all links that can be made.
func link(req LinkRequest) *Links {
	l := &Links{hosts: map[string]map[string][]string{}}
	services := byName(req.Services)
	at := map[string][]*coordinatorv1.Assignment{}
	for _, a := range sortedAssignments(req.Assignments) {
		at[a.GetService()] = append(at[a.GetService()], a)
	}
	names := make([]string, 0, len(services))
	for name := range services {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		s := services[name]
		if mode := s.GetTemplate().GetNetworkMode(); mode == "none" {
			continue
		}
		for _, host := range hostsOf(at[name]) {
			for _, target := range names {
				declared := dependsOn(s, target)
				if target == name || len(at[target]) == 0 || !declared && !mentions(s, target) {
					continue
				}
				l.one(s, services[target], host, at[target], req.Proxies[target], declared)
			}
		}
	}
	return l
}

// one makes the link from the instances of s on host to target.
func (l *Links) one(s, target *coordinatorv1.Service, host string, at []*coordinatorv1.Assignment, proxy string, declared bool) {
	if target.GetJob() || l.local(s, target, host, at) {
		return
	}
	address, problem := reach(target, at, proxy)
	if problem == "" {
		byHost := l.hosts[s.GetName()]
		if byHost == nil {
			byHost = map[string][]string{}
			l.hosts[s.GetName()] = byHost
		}
		byHost[host] = append(byHost[host], target.GetName()+":"+address)
		return
	}
	where := strings.Join(hostsOf(at), ", ")
	if !declared {
		l.Warnings = append(l.Warnings, fmt.Sprintf("service %s on host %s mentions %s, which runs on %s and will not be found by that name: %s",
			s.GetName(), host, target.GetName(), where, problem))
		return
	}
	l.errs = append(l.errs, refuse(coordinatorv1.ErrorReason_ERROR_REASON_PLACEMENT,
		"service %s on host %s depends on %s, which runs on %s: %s; or keep them together with deploy: {placement: {constraints: [\"node.hostname==%s\"]}} under %s",
		s.GetName(), host, target.GetName(), where, problem, hostsOf(at)[0], s.GetName()))
}

// local says whether an instance of target on the same host is found by Docker itself.
func (l *Links) local(s, target *coordinatorv1.Service, host string, at []*coordinatorv1.Assignment) bool {
	if !slices.Contains(hostsOf(at), host) {
		return false
	}
	if s.GetTemplate().GetNetworkMode() == "host" { // no name server of Docker's there: its published port is on this host.
		return false
	}
	return slices.ContainsFunc(s.GetTemplate().GetNetworks(), func(n *agentv1.NetworkAttachment) bool {
		return slices.ContainsFunc(target.GetTemplate().GetNetworks(), func(t *agentv1.NetworkAttachment) bool { return t.GetName() == n.GetName() })
	})
}

// reach returns the address that leads to a service from another host, or what must be added so that there is one.
func reach(target *coordinatorv1.Service, at []*coordinatorv1.Assignment, proxy string) (address, problem string) {
	name := target.GetName()
	if target.GetRoute() != nil {
		if proxy != "" {
			return proxy, ""
		}
		return "", "it has a route, and no host has a route proxy: start an agent with --route-driver caddy"
	}
	if len(at) > 1 {
		return "", fmt.Sprintf("it has %d instances, to which one name leads only through the route proxy: add x-muster: {route: {port: %d}} under %s",
			len(at), guessPort(target), name)
	}
	for _, b := range at[0].GetPorts() {
		if b.GetHostPort() == b.GetContainerPort() && reachable(b.GetHostIp()) {
			if b.GetHostIp() != "" && bindIP("", b) != "*" {
				return b.GetHostIp(), ""
			}
			if at[0].GetHostAddress() == "" {
				return "", fmt.Sprintf("the address of host %s is not known yet", at[0].GetHost())
			}
			return at[0].GetHostAddress(), ""
		}
	}
	if target.GetTemplate().GetNetworkMode() == "host" && at[0].GetHostAddress() != "" {
		return at[0].GetHostAddress(), ""
	}
	port := guessPort(target)
	return "", fmt.Sprintf("it publishes no port under its own number: add ports: [\"%d:%d\"] under %s", port, port, name)
}

// reachable says whether other hosts can connect to a published address.
func reachable(ip string) bool {
	return ip != "127.0.0.1" && ip != "::1" && ip != "localhost"
}

// guessPort returns the port that a service most likely serves on, for the line to add.
func guessPort(s *coordinatorv1.Service) uint32 {
	if port := s.GetRoute().GetPort(); port != 0 {
		return port
	}
	for _, b := range s.GetTemplate().GetPorts() {
		return b.GetContainerPort()
	}
	if port := wellKnownPort(s.GetImage()); port != 0 {
		return port
	}
	return 8080
}

// wellKnownPort knows the ports of images that everybody uses.
func wellKnownPort(image string) uint32 {
	repository, _, _ := strings.Cut(image[strings.LastIndex(image, "/")+1:], "@")
	repository, _, _ = strings.Cut(repository, ":")
	switch repository {
	case "postgres", "postgis", "timescaledb":
		return 5432
	case "redis", "valkey":
		return 6379
	case "mysql", "mariadb":
		return 3306
	case "mongo":
		return 27017
	case "rabbitmq":
		return 5672
	case "nginx", "httpd", "caddy", "traefik":
		return 80
	case "prometheus":
		return 9090
	case "alertmanager":
		return 9093
	case "grafana":
		return 3000
	case "node-exporter":
		return 9100
	case "postgres-exporter":
		return 9187
	}
	return 0
}

// hostsOf lists the hosts of assignments, sorted.
func hostsOf(at []*coordinatorv1.Assignment) []string {
	var hosts []string
	for _, a := range at {
		hosts = append(hosts, a.GetHost())
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// dependsOn says whether a service declares that it depends on another.
func dependsOn(s *coordinatorv1.Service, target string) bool {
	return slices.ContainsFunc(s.GetDependsOn(), func(d *coordinatorv1.Dependency) bool { return d.GetService() == target })
}

// mentions says whether a service names another as a host: alone as a value, before a port, or in a URL.
func mentions(s *coordinatorv1.Service, target string) bool {
	t := s.GetTemplate()
	host := regexp.MustCompile(`(?:^|://|@|[\s,;='"])` + regexp.QuoteMeta(target) + `(?::\d{1,5}\b|/|$)`)
	// A bare name counts in variables that are meant to hold one; elsewhere it is any word, like a database called db.
	for _, kv := range t.GetEnv() {
		name, value, _ := strings.Cut(kv, "=")
		upper := strings.ToUpper(name)
		if value == target && !strings.HasSuffix(upper, "HOST") && !strings.HasSuffix(upper, "SERVER") && !strings.HasSuffix(upper, "ADDR") {
			continue
		}
		if host.MatchString(value) {
			return true
		}
	}
	port := regexp.MustCompile(`(?:^|://|@|[\s,;='"])` + regexp.QuoteMeta(target) + `:\d{1,5}\b`)
	return port.MatchString(strings.Join(append(slices.Clone(t.GetEntrypoint()), t.GetCommand()...), " "))
}

package stack

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// treatment is what becomes of a key of a compose file.
type treatment int

const (
	// taken keys are mapped to the service, or are settled by compose-go itself.
	taken treatment = iota + 1
	// warned keys have no effect here, and the operator is told what Muster does otherwise.
	warned
	// refused keys would change what runs if they were left out.
	refused
)

// rule is the treatment of one key, with what is said about it.
type rule struct {
	treatment treatment
	note      string
}

// keyRules is the table of all keys of the sections that compose-go decodes, by their paths with "*" for names. A key that is in no table
// is refused, so that what the specification gains later is never dropped in silence; a test holds the table to compose-go's types.
func keyRules() map[string]rule {
	rules := map[string]rule{}
	add := func(prefix string, r rule, keys ...string) {
		for _, k := range keys {
			rules[prefix+k] = r
		}
	}
	addServiceRules(add)
	addContainerRules(add)
	addDeployRules(add)
	addResourceRules(add)
	return rules
}

// addServiceRules covers what a service is, apart from its container.
func addServiceRules(add func(string, rule, ...string)) {
	const s = "services.*."
	add("", rule{treatment: taken}, "name", "services", "services.*", "networks", "networks.*", "volumes", "volumes.*", "secrets", "secrets.*", "configs", "configs.*")
	add("", rule{refused, "make each a service with x-muster: {job: true}"}, "jobs")
	add("", rule{refused, "run the model server as a service"}, "models")
	add(s, rule{treatment: taken}, "name", "profiles", "deploy", "restart", "scale", "extends", "extends.file", "extends.service", "build", "depends_on", "depends_on.*",
		"depends_on.*.condition", "depends_on.*.required", "healthcheck", "healthcheck.test", "healthcheck.timeout", "healthcheck.interval",
		"healthcheck.retries", "healthcheck.start_period", "healthcheck.disable", "tty",
		"ports", "ports.mode", "ports.host_ip", "ports.target", "ports.published", "ports.protocol")
	add(s, rule{warned, "development on the compose host is not part of operating a stack: ignored"}, "develop")
	add(s, rule{warned, "it concerns the terminal of docker compose up: ignored"}, "attach")
	add(s, rule{warned, "instances are named <stack>.<service>.<slot>.rN; the name given stays as an alias on the stack's networks of each host"}, "container_name")
	add(s, rule{warned, "services of a stack find each other by name without it; here it only says that the other service comes first"}, "links")
	add(s, rule{warned, "services on one network reach every port of each other: it only documents"}, "expose")
	add(s, rule{warned, "nothing is attached to the standard input of instances: ignored"}, "stdin_open")
	add(s, rule{warned, "dependants are not restarted because something they depend on was replaced: ignored"}, "depends_on.*.restart")
	add(s, rule{warned, "the engine probes at interval from the start on: ignored"}, "healthcheck.start_interval")
	add(s, rule{warned, "it only documents: ignored"}, "ports.name", "ports.app_protocol")
	add(s, rule{refused, "providers are programs on the compose host: run the service itself"}, "provider")
	add(s, rule{refused, "join the other stack's network: declare it under networks: with external: true"}, "external_links")
	add(s, rule{refused, "use network_mode"}, "net")
	add(s, rule{refused, "make the hook a service of its own with x-muster: {job: true}, and depend on it with condition: service_completed_successfully"}, "pre_start")
	add(s, rule{refused, "hooks in running containers are not supported: do it in the entrypoint"}, "post_start")
	add(s, rule{refused, "hooks in running containers are not supported: handle the stop signal, and set stop_grace_period"}, "pre_stop")
	add(s, rule{refused, "write it as build: {dockerfile: …}"}, "dockerfile")
}

// addContainerRules covers what a container is made of.
func addContainerRules(add func(string, rule, ...string)) {
	const s = "services.*."
	add(s, rule{treatment: taken}, "cap_add", "cap_drop", "command", "configs", "configs.source", "configs.target", "configs.uid", "configs.gid", "configs.mode",
		"cpus", "cpu_quota", "cpu_period", "devices", "devices.source", "devices.target", "devices.permissions", "dns", "entrypoint", "environment", "env_file",
		"env_file.path", "env_file.required", "env_file.format", "extra_hosts", "group_add", "hostname", "image", "init", "ipc", "labels", "label_file",
		"logging", "logging.driver", "logging.options", "mem_limit", "mem_reservation", "network_mode", "networks", "networks.*", "networks.*.aliases",
		"networks.*.priority", "networks.*.use_service_name_alias", "pid", "pids_limit", "platform", "privileged", "read_only", "secrets",
		"secrets.source", "secrets.target", "secrets.uid", "secrets.gid", "secrets.mode", "security_opt", "shm_size", "stop_grace_period", "stop_signal",
		"sysctls", "tmpfs", "ulimits", "ulimits.*", "ulimits.*.single", "ulimits.*.soft", "ulimits.*.hard", "user", "volumes", "volumes.type", "volumes.source",
		"volumes.target", "volumes.read_only", "volumes.bind", "volumes.bind.propagation", "volumes.bind.create_host_path", "volumes.volume", "volumes.tmpfs",
		"volumes.tmpfs.size", "working_dir")
	add(s, rule{warned, "images are pinned by digest and pulled before anything is touched: ignored"}, "pull_policy", "pull_refresh_after")
	add(s, rule{warned, "annotations are for other runtimes: ignored; use labels"}, "annotations")
	add(s, rule{warned, "it has no effect on Linux: ignored"}, "volumes.consistency")
	add(s, rule{warned, "SELinux labels are not changed: label the directory on the host once, with chcon or semanage"}, "volumes.bind.selinux")
	add(s, rule{warned, "labels are not set on volumes: ignored"}, "volumes.volume.labels")
	add(s, rule{refused, "name what to mount: the same named volume or path in both services"}, "volumes_from")
	add(s, rule{refused, "set the driver under the top-level volumes:"}, "volume_driver")
	add(s, rule{refused, "mount a whole volume, or put the data where the container looks for it"}, "volumes.volume.nocopy", "volumes.volume.subpath", "volumes.bind.recursive")
	add(s, rule{refused, "images cannot be mounted: copy the files into the service's image"}, "volumes.image")
	add(s, rule{refused, "use logging: {driver: …, options: …}"}, "log_driver", "log_opt")
	add(s, rule{refused, "use cpus, or deploy.resources.limits.cpus"}, "cpu_shares", "cpuset", "cpu_rt_period", "cpu_rt_runtime", "cpu_count", "cpu_percent")
	add(s, rule{refused, "limit memory with deploy.resources.limits.memory; swap is the host's"}, "memswap_limit", "mem_swappiness")
	add(s, rule{refused, "an address cannot be held by two instances during a rolling update: services are found by name; remove it"},
		"networks.*.ipv4_address", "networks.*.ipv6_address", "networks.*.link_local_ips", "networks.*.mac_address", "mac_address")
	add(s, rule{refused, "set options on a network that you create on the hosts, and declare it external"}, "networks.*.driver_opts", "networks.*.gw_priority", "networks.*.interface_name")
	add(s, rule{refused, "reserve the GPU with deploy.resources.reservations.devices; other runtimes are set in the engine of the host"}, "runtime")
	add(s, rule{refused, "it is a setting of the host's engine, not of a stack: set it there and remove it here"}, "cgroup", "cgroup_parent", "blkio_config",
		"device_cgroup_rules", "isolation", "credential_spec", "storage_opt", "userns_mode", "oom_kill_disable", "oom_score_adj", "uts", "umask", "domainname")
	add(s, rule{refused, "names resolve as on the host: use extra_hosts for single names, dns for servers"}, "dns_opt", "dns_search")
	add(s, rule{refused, "mount /var/run/docker.sock where the host's policy allows it"}, "use_api_socket")
	add(s, rule{refused, "run the model server as a service"}, "models")
	add(s, rule{refused, "the mode of a tmpfs is 1777: use the user of the container, or a volume"}, "volumes.tmpfs.mode")
	add(s, rule{treatment: taken}, "gpus")
}

// addDeployRules covers Docker's deploy section.
func addDeployRules(add func(string, rule, ...string)) {
	const d = "services.*.deploy."
	add(d, rule{treatment: taken}, "mode", "replicas", "update_config", "rollback_config", "resources", "resources.limits", "resources.limits.cpus",
		"resources.limits.memory", "resources.limits.pids", "resources.reservations", "resources.reservations.cpus", "resources.reservations.memory",
		"resources.reservations.devices", "restart_policy", "restart_policy.condition", "restart_policy.max_attempts", "placement",
		"placement.constraints", "placement.preferences", "placement.preferences.spread", "placement.max_replicas_per_node")
	for _, config := range []string{"update_config.", "rollback_config."} {
		add(d+config, rule{treatment: taken}, "parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order")
	}
	add(d, rule{warned, "they are labels of a Swarm service: ignored; labels: under the service reach the containers"}, "labels")
	add(d, rule{warned, "names resolve by Docker on each host, and by address or route proxy across hosts: ignored"}, "endpoint_mode")
	add(d, rule{warned, "the engine waits 100 ms before a restart and doubles that up to a minute: ignored"}, "restart_policy.delay", "restart_policy.window")
	add(d, rule{refused, "devices are reserved, not limited: use deploy.resources.reservations.devices"}, "resources.limits.devices")
	add(d, rule{refused, "they are counters of Swarm: reserve GPUs with deploy.resources.reservations.devices, and choose hosts with placement.constraints"},
		"resources.limits.generic_resources", "resources.reservations.generic_resources", "resources.reservations.pids")
	for _, devices := range []string{"services.*.deploy.resources.reservations.devices.", "services.*.gpus."} {
		add(devices, rule{treatment: taken}, "capabilities", "driver", "count", "device_ids")
		add(devices, rule{refused, "options of a device driver are not passed on: remove them"}, "options")
	}
}

// addResourceRules covers the sections beside the services.
func addResourceRules(add func(string, rule, ...string)) {
	const n = "networks.*."
	add(n, rule{treatment: taken}, "name", "driver", "ipam", "ipam.config", "ipam.config.subnet", "external", "internal", "labels", "enable_ipv4", "enable_ipv6")
	add(n, rule{warned, "it is for Swarm: ignored"}, "attachable")
	add(n, rule{refused, "create such a network on the hosts, and declare it with external: true"}, "driver_opts", "ipam.driver", "ipam.options",
		"ipam.config.gateway", "ipam.config.ip_range", "ipam.config.aux_addresses")
	add("volumes.*.", rule{treatment: taken}, "name", "driver", "driver_opts", "external")
	add("volumes.*.", rule{warned, "labels are not set on volumes: ignored"}, "labels")
	for _, s := range []string{"secrets.*.", "configs.*."} {
		add(s, rule{treatment: taken}, "name", "file", "environment", "content", "external")
		add(s, rule{warned, "it has no meaning here: ignored"}, "labels")
		add(s, rule{refused, "secrets come from Muster's store (external: true), configs from the files: remove it"}, "driver", "driver_opts", "template_driver")
	}
}

// checkKeys applies the table to all that the files say.
func (p *project) checkKeys() (warnings, found []string) {
	k := keyCheck{p: p, rules: keyRules()}
	root := reflect.ValueOf(p.Project).Elem()
	for i := range root.NumField() {
		if name := yamlName(root.Type().Field(i)); name != "" {
			k.value(root.Field(i), name, []string{name})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(p.Project.Extensions)) {
		if key == extensionKey {
			k.found = append(k.found, p.survey.where(key)+extensionKey+" at the top of the file has no meaning: it belongs under a service")
		}
	}
	return k.warnings, k.found
}

// keyCheck goes through the decoded files and collects.
type keyCheck struct {
	p               *project
	rules           map[string]rule
	warnings, found []string
}

// value applies the rule of a key that is set, and goes on below it. Pattern is the key in the table, path where it stands.
func (k *keyCheck) value(v reflect.Value, pattern string, path []string) {
	if v.IsZero() || (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.Len() == 0 {
		return
	}
	r, ok := k.rules[pattern]
	switch {
	case !ok:
		k.found = append(k.found, k.p.sentence(path, "is not supported by this version of Muster: remove it"))
	case r.treatment == refused:
		k.found = append(k.found, k.p.sentence(path, "is not supported: "+r.note))
	case r.treatment == warned:
		if !k.implied(pattern, path) {
			k.warnings = append(k.warnings, k.p.sentence(path, r.note))
		}
	default:
		k.below(v, pattern, path)
	}
}

// implied says that compose-go set a key itself: what a link adds to depends_on is not in the file.
func (k *keyCheck) implied(pattern string, path []string) bool {
	if pattern != "services.*.depends_on.*.restart" {
		return false
	}
	depth := 0
	for _, name := range k.p.survey.order {
		_, d := k.p.survey.documents[name].position(path)
		depth = max(depth, d)
	}
	return depth < len(path)
}

// below goes into a value that is made of others. Build sections are not part of operating a stack.
func (k *keyCheck) below(v reflect.Value, pattern string, path []string) {
	switch v.Kind() {
	case reflect.Pointer:
		k.below(v.Elem(), pattern, path)
	case reflect.Struct:
		if pattern == "services.*.build" {
			return
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Anonymous {
				k.below(v.Field(i), pattern, path)
				continue
			}
			if f.Name == "Extensions" {
				k.extensions(v.Field(i), pattern, path)
				continue
			}
			if name := yamlName(f); name != "" {
				k.value(v.Field(i), pattern+"."+name, append(slices.Clone(path), name))
			}
		}
	case reflect.Slice:
		if hasStruct(v.Type().Elem()) {
			for i := range v.Len() {
				k.below(v.Index(i), pattern, append(slices.Clone(path), fmt.Sprint(i)))
			}
		}
	case reflect.Map:
		if hasStruct(v.Type().Elem()) {
			keys := v.MapKeys()
			slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
			for _, key := range keys {
				k.value(v.MapIndex(key), pattern+".*", append(slices.Clone(path), key.String()))
			}
		}
	}
}

// extensions refuses x-muster where it has no meaning, and what looks like a misspelling of it.
func (k *keyCheck) extensions(v reflect.Value, pattern string, path []string) {
	for _, key := range v.MapKeys() {
		name := key.String()
		at := append(slices.Clone(path), name)
		switch {
		case name == extensionKey && pattern != "services.*":
			k.found = append(k.found, k.p.sentence(at, "has no meaning here: it belongs directly under a service"))
		case name != extensionKey && editDistance(name, extensionKey) <= 2:
			k.found = append(k.found, k.p.sentence(at, "is ignored by every tool; did you mean "+extensionKey+"?"))
		}
	}
}

// yamlName is the key of a field; empty for fields that are not keys.
func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" || strings.HasPrefix(name, "#") {
		return ""
	}
	return name
}

// hasStruct says that a type is a struct or points to one.
func hasStruct(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct
}

// sentence names where a key stands, whose it is, and what is to be said about it.
func (p *project) sentence(path []string, text string) string {
	where := p.survey.where(path...)
	if len(path) > 2 && path[0] == "services" {
		return fmt.Sprintf("%sservice %s: %s: %s", where, path[1], strings.Join(path[2:], "."), text)
	}
	if len(path) > 1 {
		return fmt.Sprintf("%s%s %s: %s", where, strings.TrimSuffix(path[0], "s"), strings.Join(path[1:], "."), text)
	}
	return fmt.Sprintf("%s%s: %s", where, strings.Join(path, "."), text)
}

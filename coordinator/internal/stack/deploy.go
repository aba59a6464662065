package stack

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// maxReplicas of a service; more is a slip of the finger.
const maxReplicas = 10_000

// Docker's defaults of a rolling update and of a HEALTHCHECK, which apply where the file says nothing.
const (
	defaultMonitor        = 5 * time.Second
	defaultProbeInterval  = 30 * time.Second
	defaultProbeRetries   = 3
	defaultGateDeadline   = 5 * time.Minute
	orderStartFirst       = "start-first"
	orderStopFirst        = "stop-first"
	modeGlobal            = "global"
	modeReplicatedJob     = "replicated-job"
	restartUnlessStopped  = "unless-stopped"
	restartOnFailure      = "on-failure"
	restartNo             = "no"
	nanosPerCPU           = 1e9
	defaultCPUQuotaPeriod = 100_000
)

// replicas maps how many instances there shall be.
func (m *mapper) replicas(s types.ServiceConfig, out *coordinatorv1.Service) {
	mode := ""
	if s.Deploy != nil {
		mode = s.Deploy.Mode
	}
	switch mode {
	case "", "replicated", modeReplicatedJob:
	case modeGlobal:
		out.Placement.Global = true
		if s.GetScale() > 1 {
			m.refuse(s.Name, "deploy.replicas", "a global service runs one instance per host: remove replicas, or mode: global")
		}
		return
	default:
		m.refuse(s.Name, "deploy.mode", "%s: there are replicated, global and replicated-job", cut(mode))
	}
	n := s.GetScale()
	switch {
	case n < 0 || n > maxReplicas:
		m.refuse(s.Name, "deploy.replicas", "%d: there may be 0 to %d", n, maxReplicas)
	case out.Job && n > 1:
		m.refuse(s.Name, "deploy.replicas", "%d: a job runs once per release", n)
	default:
		out.Replicas = uint32(n)
	}
}

// restart maps the policy of the engine. "always" would start containers that Muster keeps stopped for a rollback when the engine's
// daemon restarts, so it becomes unless-stopped.
func (m *mapper) restart(s types.ServiceConfig, out *coordinatorv1.Service) {
	policy := &agentv1.RestartPolicy{Name: restartNo}
	out.Template.Restart = policy
	key, text := "restart", s.Restart
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		r := s.Deploy.RestartPolicy
		key, text = "deploy.restart_policy", map[string]string{"none": restartNo, "on-failure": restartOnFailure, "any": restartUnlessStopped, "": restartUnlessStopped}[r.Condition]
		if text == "" {
			m.refuse(s.Name, key+".condition", "%s: there are none, on-failure and any", cut(r.Condition))
		}
		if r.MaxAttempts != nil && text == restartOnFailure {
			policy.MaxRetries = uint32(min(*r.MaxAttempts, math.MaxInt32))
		} else if r.MaxAttempts != nil {
			m.warn(s.Name, key+".max_attempts", "the engine counts attempts only with condition: on-failure: ignored")
		}
	}
	name, retries, bounded := strings.Cut(text, ":")
	switch name {
	case "":
		if !out.Job {
			m.warnings = append(m.warnings, m.survey.where("services", s.Name)+"service "+s.Name+": no restart policy: an instance that exits stays down, as with compose; add restart: unless-stopped")
		}
	case "always":
		m.warn(s.Name, key, "always becomes unless-stopped: a container kept for a rollback must stay stopped when the engine restarts")
		policy.Name = restartUnlessStopped
	case restartNo, restartUnlessStopped, restartOnFailure:
		policy.Name = name
	default:
		m.refuse(s.Name, key, "%s: there are no, on-failure[:retries], always and unless-stopped", cut(text))
	}
	if bounded {
		n, err := strconv.ParseUint(retries, 10, 31)
		if err != nil || name != restartOnFailure {
			m.refuse(s.Name, key, "%s: a number of retries belongs to on-failure, as in on-failure:3", cut(text))
		}
		policy.MaxRetries = uint32(n)
	}
	if out.Job && policy.Name == restartUnlessStopped {
		m.refuse(s.Name, key, "a job ends, and must not be started again: use restart: \"no\" or on-failure")
	}
}

// placement maps where instances may be.
func (m *mapper) placement(s types.ServiceConfig) *coordinatorv1.Placement {
	out := &coordinatorv1.Placement{}
	if s.Platform != "" {
		os, rest, _ := strings.Cut(s.Platform, "/")
		arch, _, _ := strings.Cut(rest, "/")
		if arch != "" {
			out.Constraints = append(out.Constraints, "node.platform.arch=="+arch)
		}
		out.Constraints = append(out.Constraints, "node.platform.os=="+os)
	}
	if s.Deploy == nil {
		return out
	}
	p := s.Deploy.Placement
	for i, text := range p.Constraints {
		c, err := parseConstraint(text)
		if err != nil {
			m.refuse(s.Name, "deploy.placement.constraints."+strconv.Itoa(i), "%v", err)
			continue
		}
		out.Constraints = append(out.Constraints, c.String())
	}
	slices.Sort(out.Constraints)
	out.Constraints = slices.Compact(out.Constraints)
	for i, preference := range p.Preferences {
		if _, err := parseConstraint(preference.Spread + "==x"); err != nil {
			m.refuse(s.Name, "deploy.placement.preferences."+strconv.Itoa(i), "spread: %s: give a label of the hosts, like node.labels.zone", cut(preference.Spread))
			continue
		}
		out.Spread = append(out.Spread, preference.Spread)
	}
	out.MaxReplicasPerHost = uint32(min(p.MaxReplicas, math.MaxInt32))
	return out
}

// resources maps limits and reservations, from deploy or from the older keys beside it.
func (m *mapper) resources(s types.ServiceConfig) *agentv1.Resources {
	out := &agentv1.Resources{
		MemoryLimitBytes:       int64(s.MemLimit),
		NanoCpuLimit:           nanoCPUs(types.NanoCPUs(s.CPUS)),
		MemoryReservationBytes: int64(s.MemReservation),
		PidsLimit:              max(s.PidsLimit, 0),
	}
	if s.CPUQuota > 0 {
		if out.NanoCpuLimit != 0 {
			m.refuse(s.Name, "cpu_quota", "cpus says the same: keep one of them")
		}
		out.NanoCpuLimit = int64(math.Round(float64(s.CPUQuota) / float64(cmp.Or(s.CPUPeriod, defaultCPUQuotaPeriod)) * nanosPerCPU))
	}
	requests := slices.Clone(s.Gpus)
	if s.Deploy != nil {
		if l := s.Deploy.Resources.Limits; l != nil {
			out.MemoryLimitBytes = cmp.Or(int64(l.MemoryBytes), out.MemoryLimitBytes)
			out.NanoCpuLimit = cmp.Or(nanoCPUs(l.NanoCPUs), out.NanoCpuLimit)
			out.PidsLimit = cmp.Or(max(l.Pids, 0), out.PidsLimit)
		}
		if r := s.Deploy.Resources.Reservations; r != nil {
			out.MemoryReservationBytes = cmp.Or(int64(r.MemoryBytes), out.MemoryReservationBytes)
			out.NanoCpuReservation = nanoCPUs(r.NanoCPUs)
			requests = append(requests, r.Devices...)
		}
	}
	for _, r := range requests {
		out.Gpus = append(out.Gpus, m.gpu(s.Name, r))
	}
	if min(out.MemoryLimitBytes, out.NanoCpuLimit, out.MemoryReservationBytes, out.NanoCpuReservation) < 0 {
		m.refuse(s.Name, "deploy.resources", "a limit or a reservation is negative")
	}
	if out.MemoryLimitBytes > 0 && out.MemoryReservationBytes > out.MemoryLimitBytes {
		m.refuse(s.Name, "deploy.resources", "the memory reservation of %s is above the limit of %s", formatBytes(out.MemoryReservationBytes), formatBytes(out.MemoryLimitBytes))
	}
	if proto.Equal(out, &agentv1.Resources{}) {
		return nil
	}
	return out
}

// nanoCPUs are billionths of a CPU.
func nanoCPUs(n types.NanoCPUs) int64 { return int64(math.Round(widen(n.Value()) * nanosPerCPU)) }

// gpu maps one device request.
func (m *mapper) gpu(service string, r types.DeviceRequest) *agentv1.GpuRequest {
	const key = "deploy.resources.reservations.devices"
	out := &agentv1.GpuRequest{Driver: cmp.Or(r.Driver, "nvidia"), Count: int32(max(min(int64(r.Count), math.MaxInt16), -1)), DeviceIds: r.IDs, Capabilities: r.Capabilities}
	if out.Driver != "nvidia" {
		m.refuse(service, key, "driver %s: only nvidia is supported", cut(r.Driver))
	}
	if len(r.Capabilities) > 0 && !slices.Contains(r.Capabilities, "gpu") {
		m.refuse(service, key, "capabilities %s: only gpu devices can be reserved", strings.Join(r.Capabilities, ", "))
	}
	if r.Count != 0 && len(r.IDs) > 0 {
		m.refuse(service, key, "count and device_ids exclude each other: keep one")
	}
	if r.Count == 0 && len(r.IDs) == 0 { // Docker's default.
		out.Count = -1
	}
	return out
}

// policies maps update_config and rollback_config, and decides the order.
func (m *mapper) policies(s types.ServiceConfig, out *coordinatorv1.Service) {
	var update, rollback *types.UpdateConfig
	if s.Deploy != nil {
		update, rollback = s.Deploy.UpdateConfig, s.Deploy.RollbackConfig
	}
	out.Update = m.policy(s.Name, "deploy.update_config", update, out, coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK)
	// A rollback is never rolled back: it stops and asks.
	out.Rollback = m.policy(s.Name, "deploy.rollback_config", rollback, out, coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE)
}

// policy maps one of them.
func (m *mapper) policy(service, key string, c *types.UpdateConfig, s *coordinatorv1.Service, action coordinatorv1.FailureAction) *coordinatorv1.UpdatePolicy {
	out := &coordinatorv1.UpdatePolicy{Parallelism: 1, FailureAction: action, Order: orderStartFirst}
	monitor, order := defaultMonitor, ""
	if c != nil {
		if c.Parallelism != nil {
			out.Parallelism = uint32(min(*c.Parallelism, maxReplicas))
		}
		if c.Delay != 0 {
			out.Delay = durationpb.New(time.Duration(c.Delay))
		}
		monitor = max(time.Duration(c.Monitor), 0)
		if c.Monitor == 0 {
			monitor = defaultMonitor
		}
		out.MaxFailureRatio = widen(c.MaxFailureRatio)
		if out.MaxFailureRatio < 0 || out.MaxFailureRatio > 1 {
			m.refuse(service, key+".max_failure_ratio", "%v is not between 0 and 1", c.MaxFailureRatio)
		}
		switch c.FailureAction {
		case "":
		case "rollback":
			out.FailureAction = coordinatorv1.FailureAction_FAILURE_ACTION_ROLLBACK
		case "pause":
			out.FailureAction = coordinatorv1.FailureAction_FAILURE_ACTION_PAUSE
		case "continue":
			out.FailureAction = coordinatorv1.FailureAction_FAILURE_ACTION_CONTINUE
		default:
			m.refuse(service, key+".failure_action", "%s: there are rollback, pause and continue", cut(c.FailureAction))
		}
		order = c.Order
	}
	switch order {
	case "", orderStartFirst, orderStopFirst:
		out.Order = cmp.Or(order, orderStartFirst)
	default:
		m.refuse(service, key+".order", "%s: there are start-first and stop-first", cut(order))
	}
	if s.GetStopFirst() != "" {
		if order == orderStartFirst {
			m.warn(service, key+".order", "start-first is not possible, stop-first is used: %s", s.GetStopFirst())
		}
		out.Order = orderStopFirst
	}
	out.Monitor = durationpb.New(max(monitor, watchWindow(s.GetTemplate().GetHealthcheck())))
	return out
}

// widen takes the noise of a 32-bit float away: 0.3 shall stay 0.3.
func widen(f float32) float64 {
	wide, err := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'g', -1, 32), 64)
	if err != nil {
		return float64(f)
	}
	return wide
}

// watchWindow is how long a HEALTHCHECK may take to notice that an instance is broken: a shorter watch would call the update a success.
func watchWindow(h *agentv1.Healthcheck) time.Duration {
	if h == nil || disabled(h) {
		return 0
	}
	interval, retries := defaultProbeInterval, uint32(defaultProbeRetries)
	if d := h.GetInterval().AsDuration(); d > 0 {
		interval = d
	}
	if h.GetRetries() > 0 {
		retries = h.GetRetries()
	}
	const limit = 24 * time.Hour // far beyond sense, and far from overflow.
	window := min(interval, limit) * time.Duration(min(retries, 1000)) * 2
	return min(window+min(h.GetStartPeriod().AsDuration(), limit), limit)
}

// disabled says that a HEALTHCHECK is switched off.
func disabled(h *agentv1.Healthcheck) bool {
	return len(h.GetTest()) > 0 && h.GetTest()[0] == "NONE"
}

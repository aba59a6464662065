package api

import (
	"errors"
	"fmt"
	"net"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// valid says what is missing in a request. What its values mean is left to the capability.
func valid(req proto.Message) error {
	var errs []error
	need := func(ok bool, field string) {
		if !ok {
			errs = append(errs, fmt.Errorf("field %s is missing", field))
		}
	}
	if r, ok := req.(operated); ok {
		id := r.GetOperation().GetId()
		need(id != "", "operation.id")
		if len(id) > maxIDBytes {
			errs = append(errs, fmt.Errorf("operation.id has %d bytes, more than %d", len(id), maxIDBytes))
		}
	}
	switch r := req.(type) {
	case *agentv1.ResolveImageRequest:
		need(r.GetImage() != "", "image")
	case *agentv1.CheckContainersRequest:
		for i, spec := range r.GetSpecs() {
			need(spec.GetName() != "", fmt.Sprintf("specs[%d].name", i))
		}
	case *agentv1.PullImageRequest:
		need(r.GetImage() != "", "image")
	case interface{ GetSpec() *agentv1.ContainerSpec }: // create, job.
		need(r.GetSpec().GetName() != "", "spec.name")
		need(r.GetSpec().GetImage() != "", "spec.image")
	case *agentv1.SignalContainerRequest:
		need(r.GetName() != "", "name")
		need(r.GetSignal() != "", "signal")
	case *agentv1.ProbeHttpRequest:
		need(r.GetUrl() != "", "url")
	case *agentv1.ProbeTcpRequest:
		need(r.GetAddress() != "", "address")
	case *agentv1.AwaitReadyRequest:
		need(r.GetName() != "", "name")
		need(r.GetGate().GetProbe() != nil, "gate.probe")
	case *agentv1.WatchContainerRequest:
		need(r.GetName() != "", "name")
		need(r.GetWindow() != nil, "window")
	case *agentv1.SetMaintenanceRequest:
		need(len(r.GetRoutes()) > 0, "routes")
	case *agentv1.UpdateRouteRequest:
		need(r.GetRoute().GetName() != "", "route.name")
		for _, upstream := range append(r.GetAdd(), r.GetRemove()...) {
			if _, _, err := net.SplitHostPort(upstream); err != nil {
				errs = append(errs, fmt.Errorf("upstream %q is not address:port", upstream))
			}
		}
	case interface{ GetName() string }: // start, drain, stop, inspect, remove.
		need(r.GetName() != "", "name")
	case *agentv1.CancelOperationRequest:
		need(r.GetOperationId() != "", "operation_id")
	}
	return errors.Join(errs...)
}

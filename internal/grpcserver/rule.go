package grpcserver

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// rules remembers the rules of methods that exist, of which there are few; the zero value is ready.
type rules struct {
	mu    sync.RWMutex
	known map[string]*accessv1.Rule
}

// of returns the rule of a method such as /muster.coordinator.v1.StackService/ApplyStack.
func (r *rules) of(fullMethod string) (*accessv1.Rule, error) {
	service, method, ok := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if !ok || !strings.HasPrefix(fullMethod, "/") {
		return nil, errors.New("the name is not of the form /package.Service/Method")
	}
	if rule := foreignRule(service); rule != nil { // not remembered: any name of a method would be.
		return rule, nil
	}
	r.mu.RLock()
	rule, ok := r.known[fullMethod]
	r.mu.RUnlock()
	if ok {
		return rule, nil
	}
	rule, err := declared(service, method)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = make(map[string]*accessv1.Rule)
	}
	r.known[fullMethod] = rule
	return rule, nil
}

func declared(service, method string) (*accessv1.Rule, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return nil, err
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is not a method", d.FullName())
	}
	if !proto.HasExtension(m.Options(), accessv1.E_Rule) {
		return nil, errors.New("it declares no (muster.access.v1.rule)")
	}
	rule, ok := proto.GetExtension(m.Options(), accessv1.E_Rule).(*accessv1.Rule)
	if !ok {
		return nil, errors.New("its (muster.access.v1.rule) is of another type")
	}
	return rule, nil
}

// foreignRule returns the rule of services of grpc-go that every identity may call, and nil for any other: their protos have no rules.
func foreignRule(service string) *accessv1.Rule {
	switch service {
	case "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection":
		return &accessv1.Rule{Risk: accessv1.Risk_RISK_READ, Roles: []accessv1.Role{
			accessv1.Role_ROLE_AGENT, accessv1.Role_ROLE_COORDINATOR, accessv1.Role_ROLE_VIEWER,
			accessv1.Role_ROLE_OPERATOR, accessv1.Role_ROLE_ADMIN, accessv1.Role_ROLE_SERVICE,
		}}
	default:
		return nil
	}
}

// validRule returns an error that says why a server with such a rule must not serve.
func validRule(r *accessv1.Rule) error {
	var errs []error
	if r.GetAnonymous() == (len(r.GetRoles()) > 0) {
		errs = append(errs, errors.New("its rule must have either roles or anonymous"))
	}
	for _, role := range r.GetRoles() {
		if role == accessv1.Role_ROLE_UNSPECIFIED {
			errs = append(errs, errors.New("its rule names ROLE_UNSPECIFIED, which is nobody"))
		}
	}
	if r.GetRisk() == accessv1.Risk_RISK_UNSPECIFIED {
		errs = append(errs, errors.New("its rule has no risk"))
	}
	if r.GetMaxRequestBytes() > MaxRequestBytes {
		errs = append(errs, fmt.Errorf("its max_request_bytes %d is above %d", r.GetMaxRequestBytes(), MaxRequestBytes))
	}
	return errors.Join(errs...)
}

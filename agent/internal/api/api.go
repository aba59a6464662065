// Package api serves the agent's gRPC services: it checks a request, hands it to the ledger or to a capability, and maps errors. What
// an operation does is left to the capabilities, that it is done once to the ledger, and who may call to the gate.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/agent/internal/ledger"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// maxIDBytes is what the contract allows in Operation.id.
const maxIDBytes = 200

// Options are what the services work with. All but Routes are required.
type Options struct {
	// Ledger performs the operations.
	Ledger *ledger.Ledger
	// Containers of the host.
	Containers Containers
	// Routes of the proxy that the host drives; nil if it drives none.
	Routes Routes
	// Prober asks others how they are.
	Prober Prober
	// Host to watch.
	Host Host
	// Coordinators is told where the coordinators are.
	Coordinators Coordinators
	// Logger receives the causes of internal errors.
	Logger *slog.Logger
}

// Register adds the services to a server.
func Register(s grpc.ServiceRegistrar, o Options) error {
	if o.Ledger == nil || o.Containers == nil || o.Prober == nil || o.Host == nil || o.Coordinators == nil || o.Logger == nil {
		return errors.New("api: Ledger, Containers, Prober, Host, Coordinators and Logger are required")
	}
	b := base{ledger: o.Ledger, logger: o.Logger.With("component", "api")}
	agentv1.RegisterContainerServiceServer(s, &containerServer{base: b, containers: o.Containers})
	agentv1.RegisterRouteServiceServer(s, &routeServer{base: b, routes: o.Routes})
	agentv1.RegisterProbeServiceServer(s, &probeServer{base: b, prober: o.Prober})
	agentv1.RegisterHostServiceServer(s, &hostServer{base: b, host: o.Host, coordinators: o.Coordinators})
	agentv1.RegisterOperationServiceServer(s, &operationServer{base: b})
	return nil
}

// base is what every service has.
type base struct {
	ledger *ledger.Ledger
	logger *slog.Logger
}

// operated is a request that carries an operation.
type operated interface {
	proto.Message
	GetOperation() *agentv1.Operation
}

// perform does the operation of a request once, and answers as it was answered the first time. The method, and with it what a repetition
// means, is that of the call.
func perform[Req operated, Resp proto.Message](ctx context.Context, b base, req Req, act func(context.Context) (Resp, error)) (Resp, error) {
	var none Resp
	op := req.GetOperation()
	if err := valid(req); err != nil {
		failure := rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, "%v", err)
		failure.Failure.OperationId = op.GetId()
		return none, failure
	}
	method, ok := grpc.Method(ctx)
	if !ok {
		return none, b.wire(errors.New("the context is not that of a call"))
	}
	effect, err := effectOf(method)
	if err != nil {
		return none, b.wire(err)
	}
	recorded, err := b.ledger.Do(ctx, op, method, effect, func(ctx context.Context) (proto.Message, error) { return act(ctx) })
	if err != nil {
		return none, b.wire(err)
	}
	resp, ok := none.ProtoReflect().New().Interface().(Resp)
	if !ok {
		return none, b.wire(fmt.Errorf("%T cannot be made anew", none))
	}
	if err := proto.Unmarshal(recorded, resp); err != nil {
		return none, b.wire(fmt.Errorf("response of operation %q: %w", op.GetId(), err))
	}
	return resp, nil
}

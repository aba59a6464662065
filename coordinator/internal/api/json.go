package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/grpcserver"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	"github.com/spheroseg/muster/proto/gen/muster/coordinator/v1/coordinatorv1connect"
)

// The same servers over HTTP: JSON, Connect and gRPC-Web. Every unary method is the gRPC server's own; streams are adapted here.

type runJSON struct{ *RunServer }

// WatchRun serves the stream over connect.
func (s runJSON) WatchRun(ctx context.Context, req *coordinatorv1.WatchRunRequest, stream *connect.ServerStream[coordinatorv1.WatchRunResponse]) error {
	return s.watch(ctx, req, stream.Send)
}

type clusterJSON struct{ *ClusterServer }

// WatchEvents serves the stream over connect.
func (s clusterJSON) WatchEvents(ctx context.Context, req *coordinatorv1.WatchEventsRequest, stream *connect.ServerStream[coordinatorv1.WatchEventsResponse]) error {
	return s.watch(ctx, req, stream.Send)
}

// Handler returns the HTTP handler of all services, behind the same gate as gRPC.
func (s *Servers) Handler(gate *grpcserver.Gate) http.Handler {
	mux := http.NewServeMux()
	options := []connect.HandlerOption{
		connect.WithInterceptors(&gateInterceptor{gate: gate}), connect.WithReadMaxBytes(grpcserver.MaxRequestBytes),
		connect.WithCodec(strictJSON{}),
	}
	mux.Handle(coordinatorv1connect.NewHostServiceHandler(s.Host, options...))
	mux.Handle(coordinatorv1connect.NewStackServiceHandler(s.Stack, options...))
	mux.Handle(coordinatorv1connect.NewRunServiceHandler(runJSON{s.Run}, options...))
	mux.Handle(coordinatorv1connect.NewClusterServiceHandler(clusterJSON{s.Cluster}, options...))
	mux.Handle(coordinatorv1connect.NewEnrollServiceHandler(s.Enroll, options...))
	mux.Handle(coordinatorv1connect.NewSecretServiceHandler(s.Secret, options...))
	mux.Handle(coordinatorv1connect.NewServiceServiceHandler(s.Service, options...))
	mux.Handle(coordinatorv1connect.NewProcedureServiceHandler(s.Procedure, options...))
	return withCaller(mux)
}

// strictJSON refuses fields that a message does not have: a misspelt one would be dropped in silence otherwise.
type strictJSON struct{}

// Name of the codec, as in the content type.
func (strictJSON) Name() string { return "json" }

// Marshal writes a message.
func (strictJSON) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return protojson.Marshal(m)
}

// Unmarshal reads a message. An empty body is an empty message.
func (strictJSON) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	if len(data) == 0 {
		return nil
	}
	return protojson.Unmarshal(data, m)
}

// withCaller puts the identity of the client certificate into the context.
func withCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := grpcserver.Caller{Anonymous: true}
		if r.TLS != nil {
			var err error
			if caller, err = grpcserver.CallerOf(*r.TLS); err != nil {
				http.Error(w, "the client certificate is not valid: "+err.Error(), http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(grpcserver.WithCaller(r.Context(), caller)))
	})
}

// gateInterceptor asks the gate before every call, and translates the errors of the servers.
type gateInterceptor struct{ gate *grpcserver.Gate }

// WrapUnary guards a unary method.
func (g *gateInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		size := 0
		if message, ok := req.Any().(proto.Message); ok {
			size = proto.Size(message)
		}
		if err := g.authorize(ctx, req.Spec().Procedure, size); err != nil {
			return nil, connectError(err)
		}
		response, err := next(ctx, req)
		if err != nil {
			return nil, connectError(err)
		}
		return response, nil
	}
}

// WrapStreamingClient is not used: the coordinator is no connect client.
func (g *gateInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler guards a stream. The size of its request is bounded by the handler's limit.
func (g *gateInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := g.authorize(ctx, conn.Spec().Procedure, 0); err != nil {
			return connectError(err)
		}
		return connectError(next(ctx, conn))
	}
}

func (g *gateInterceptor) authorize(ctx context.Context, procedure string, size int) error {
	caller, ok := grpcserver.CallerFrom(ctx)
	if !ok {
		caller = grpcserver.Caller{Anonymous: true}
	}
	return g.gate.Authorize(ctx, procedure, caller, size)
}

// connectError gives an error of a gRPC server the same code, message and details over connect.
func connectError(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	if errors.As(err, &already) {
		return err
	}
	s := status.Convert(err)
	translated := connect.NewError(connect.Code(s.Code()), errors.New(s.Message()))
	for _, detail := range s.Proto().GetDetails() {
		message, err := detail.UnmarshalNew()
		if err != nil {
			continue
		}
		if d, err := connect.NewErrorDetail(message); err == nil {
			translated.AddDetail(d)
		}
	}
	return translated
}

// Package grpcserver owns the gate that every call passes, whatever listener it came through: who calls, whether the method's rule in the proto
// allows it, how large and how often. What the call then does is left to the services.
package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sort"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	// defaultRequestBytes bounds a request whose rule has no bound.
	defaultRequestBytes = 256 << 10
	// MaxRequestBytes is the largest bound that a rule can have.
	MaxRequestBytes = 4 << 20
)

// Caller is who makes a call.
type Caller struct {
	// ID of the caller; zero if it is anonymous.
	ID identity.ID
	// Serial of its certificate, as the registry holds it.
	Serial []byte
	// Anonymous callers have shown no certificate.
	Anonymous bool
}

// String names the caller in logs.
func (c Caller) String() string {
	if c.Anonymous {
		return "anonymous"
	}
	return c.ID.String()
}

type callerKey struct{}

// WithCaller returns a context that knows the caller.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller whom the gate has let in, and false outside of a call.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// GateOptions are the settings of a Gate.
type GateOptions struct {
	// Lookup asks the registry whether a caller with a verified certificate is still somebody. An error refuses the call and is told to the caller.
	// Nil means that the certificate suffices. Methods that are open to anonymous callers do not ask.
	Lookup func(Caller) error
	// Logger of refusals and internal errors; nil discards.
	Logger *slog.Logger
}

// Gate decides about calls. It is safe for concurrent use.
type Gate struct {
	lookup func(Caller) error
	logger *slog.Logger
	rules  rules
	rates  *rates
	send   time.Duration // bounds every send of a stream.
}

// NewGate returns a gate.
func NewGate(opts GateOptions) *Gate {
	logger := opts.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Gate{lookup: opts.Lookup, logger: logger.With("component", "gate"), rates: newRates(time.Now), send: sendTimeout}
}

// Authorize returns nil if the caller may call the method with a request of that size, and an error to answer with otherwise. It counts the call
// against the method's rate. Anonymous callers are told apart by the address of the gRPC peer in ctx, if there is one.
func (g *Gate) Authorize(ctx context.Context, fullMethod string, c Caller, requestBytes int) error {
	rule, err := g.rules.of(fullMethod)
	if err != nil {
		g.logger.Error("method without a rule refused", "method", fullMethod, "err", err)
		return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "nobody may call %s", fullMethod)
	}
	if !rule.GetAnonymous() {
		if err := g.admit(fullMethod, rule, c); err != nil {
			return err
		}
	}
	if wait, ok := g.rates.take(fullMethod, rateKey(ctx, c), rule.GetRatePerMinute()); !ok {
		return tooOften(fullMethod, rule.GetRatePerMinute(), wait)
	}
	return checkSize(fullMethod, rule, requestBytes)
}

// CheckSize returns an error to answer with if a message to the method is larger than its rule allows. Authorize has checked the first one.
func (g *Gate) CheckSize(fullMethod string, requestBytes int) error {
	rule, err := g.rules.of(fullMethod)
	if err != nil {
		return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "nobody may call %s", fullMethod)
	}
	return checkSize(fullMethod, rule, requestBytes)
}

// Check returns an error that names every method of the server whose rule is missing or makes no sense. A server that it refuses must not serve.
func (g *Gate) Check(s *grpc.Server) error {
	var methods []string
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			methods = append(methods, "/"+service+"/"+m.Name)
		}
	}
	sort.Strings(methods)
	var errs []error
	for _, m := range methods {
		rule, err := g.rules.of(m)
		if err == nil {
			err = validRule(rule)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("method %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// admit checks a caller who needs an identity.
func (g *Gate) admit(fullMethod string, rule *accessv1.Rule, c Caller) error {
	if c.Anonymous {
		return rpcerr.New(codes.Unauthenticated, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY,
			"%s needs a client certificate: log in or join first", fullMethod)
	}
	if c.ID.Role == accessv1.Role_ROLE_UNSPECIFIED || !slices.Contains(rule.GetRoles(), c.ID.Role) {
		return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_NOT_ALLOWED, "%s may not call %s", c, fullMethod)
	}
	if g.lookup == nil {
		return nil
	}
	if err := g.lookup(c); err != nil {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, "%s is not known: %v", c, err)
	}
	return nil
}

func checkSize(fullMethod string, rule *accessv1.Rule, n int) error {
	max := int(rule.GetMaxRequestBytes())
	if max == 0 {
		max = defaultRequestBytes
	}
	if n > max {
		return rpcerr.New(codes.ResourceExhausted, coordinatorv1.ErrorReason_ERROR_REASON_TOO_LARGE,
			"the request has %d bytes; %s takes at most %d", n, fullMethod, max)
	}
	return nil
}

func tooOften(fullMethod string, perMinute uint32, wait time.Duration) error {
	err := rpcerr.New(codes.ResourceExhausted, coordinatorv1.ErrorReason_ERROR_REASON_RATE_LIMITED,
		"%s may be called %d times a minute: try again in %s", fullMethod, perMinute, wait)
	return rpcerr.WithMetadata(err, map[string]string{"retry_after": wait.String()})
}

// rateKey tells callers apart.
func rateKey(ctx context.Context, c Caller) string {
	if !c.Anonymous {
		return c.ID.String()
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			return host
		}
	}
	return "anonymous"
}
